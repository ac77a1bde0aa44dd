"""Clonings that the divide rule does not make: other exponents, and spaces with one factor.

Oracles: the exponents by hand, written down before the tracer was asked; the function itself at the wide size.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced_networks import EXAMPLES, Example, layer_norm, of

from lopjax.tracing import cloning as cloning_module
from lopjax.tracing import trace_model
from lopjax.tracing.degrees import Condition, Form
from lopjax.tracing.recipes import groups_of, solve

HALF = Fraction(1, 2)


def normalised(kernel):
    return kernel / jnp.sqrt((kernel**2).sum(0, keepdims=True))


def weight_norm_with_a_gain():
    def apply(p, x):
        h = jnp.tanh(x @ (normalised(p["v"]) * p["g"]) + p["b"])
        return jnp.tanh(h @ (normalised(p["u"]) * p["s"]) + p["c"]) @ p["head"]

    shapes = dict(v=of(4, 6), g=of(6), b=of(6), u=of(6, 5), s=of(5), c=of(5), head=of(5, 2))
    return Example(apply, shapes, of(3, 4), [5], [6])


def tied_with_a_scale():
    def apply(p, x):
        return jnp.tanh(x @ p["w"] + p["b"]) @ p["w"].T * p["s"] + p["c"]

    return Example(apply, dict(w=of(4, 6), b=of(6), s=of(4), c=of(4)), of(3, 4), [], [6])


def ratio_of_sums():
    def apply(p, x):
        a, b = jax.nn.softplus(x @ p["a"]), jax.nn.softplus(x @ p["b"])
        return jnp.tanh(a.sum(-1, keepdims=True) / b.sum(-1, keepdims=True)) * p["s"]

    return Example(apply, dict(a=of(4, 5), b=of(4, 6), s=of(2)), of(3, 4), [], [5, 6])


def three_under_one_norm():
    def apply(p, x):
        h = jnp.concatenate([jnp.tanh(x @ p[name]) for name in "abc"], -1)
        return layer_norm(h, p["g"]) @ p["head"]

    shapes = dict(a=of(4, 5), b=of(4, 6), c=of(4, 3), g=of(14), head=of(14, 2))
    return Example(apply, shapes, of(4, 4), [], [3, 5, 6])


def norm_over_units_and_inputs():
    def apply(p, x):
        return layer_norm(jnp.concatenate([x, jnp.tanh(x @ p["a"])], -1)) @ p["head"]

    return Example(apply, dict(a=of(4, 5), head=of(9, 2)), of(3, 4), [], [5])


# Sizes of the spaces that are cloned together, and the exponents of the arrays that the divide rule does not give, by
# size of the space; nothing for a space that cannot be cloned at all.
BY_HAND = {
    "weight norm with a gain": (weight_norm_with_a_gain, {6: ({6}, {"s": -HALF, "u": Fraction(0)})}),
    "tied with a scale": (tied_with_a_scale, {6: ({6}, {"s": Fraction(-1), "w": Fraction(0)})}),
    "ratio of sums": (ratio_of_sums, {5: ({5, 6}, {}), 6: ({5, 6}, {})}),
    "three under one norm": (three_under_one_norm, {n: ({3, 5, 6}, {}) for n in (3, 5, 6)}),
    "norm over two": (EXAMPLES["layer_norm_over_two_spaces"], {n: ({5, 6}, {}) for n in (5, 6)}),
    "unit features": (EXAMPLES["unit_features"], {6: ({6}, {"head": -HALF})}),
    "sum into a scale": (EXAMPLES["not_divided"], {6: ({6}, {"s": Fraction(-1)})}),
    "tied embedding": (EXAMPLES["gpt_tied"], {8: ({8}, {"g3": Fraction(-1), "wte": Fraction(0)})}),
    "norm over units and inputs": (norm_over_units_and_inputs, {5: None}),
    "tied without a scale": (EXAMPLES["auto_encoder_tied"], {6: None}),
    "weight norm without a gain": (EXAMPLES["weight_norm"], {6: None}),
    "product of units": (EXAMPLES["product_of_units"], {6: None}),
}


def exponents_of_whole(recipe):
    """By array of the user: pieces of one array that have the same exponent are that array."""
    return {path[1]: power for path, power in recipe.exponents}


@pytest.mark.parametrize("name", BY_HAND)
def test_exponents_are_those_found_by_hand(name):
    make, expected = BY_HAND[name]
    network = make()
    traced = trace_model(network.apply, network.params, network.inputs, check=False)
    assert sorted(s.size for s in traced.spaces if s.state == "permutable") == sorted(network.permutable)
    by_size = {space.size: space for space in traced.spaces if space.state == "permutable"}
    size_of = {space.name: space.size for space in traced.spaces}
    for size, what in expected.items():
        recipe = by_size[size].recipe
        if what is None:
            assert recipe is None
            assert not by_size[size].can_be_cloned
            continue
        together, exponents = what
        assert {size_of[other] for other in recipe.together} == together
        given = exponents_of_whole(recipe)
        assert {array: given.get(array, 0) for array in exponents} == exponents


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)


@pytest.mark.parametrize(
    ("make", "copies"),
    [(weight_norm_with_a_gain, {"v": 3}), (three_under_one_norm, {"a": 3, "b": 3, "c": 3})],
)
def test_the_network_itself_confirms_the_clones_and_refutes_others(make, copies, x64):
    network = make()
    params, x = drawn(network.params), np.random.default_rng(1).normal(size=network.inputs.shape)
    traced = trace_model(network.apply, params, x)
    assert traced.verification.cloning < 1e-13
    wide, variables = traced.clone(params, copies)
    expected = network.apply(params, x)
    np.testing.assert_allclose(wide.apply(variables, x).logits, expected, rtol=1e-12)
    # The user's own function at the wide size: no program of the tracer's.
    np.testing.assert_allclose(network.apply(wide.view.merge(variables), x), expected, rtol=1e-12)
    if make is weight_norm_with_a_gain:  # the divide rule, which leaves the gain as it is
        other = network.apply(wide.view.merge(variables) | {"s": params["s"]}, x)
    else:  # another factor in one of the spaces
        own = wide.view.merge(variables)
        fewer = np.r_[:15, 15:33, 33:42:3]  # one clone of each unit of `c` in place of three
        head = own["head"].at[33:].multiply(3)
        other = network.apply(own | {"c": own["c"][:, ::3], "g": own["g"][fewer], "head": head[fewer]}, x)
    assert np.abs(np.asarray(other) - expected).max() > 1e-2


def test_factors_are_refused_in_a_sentence(unchecked):
    network = three_under_one_norm()
    traced = trace_model(network.apply, network.params, network.inputs, check=False)
    params = drawn(network.params)
    for factors, message in (
        ({"a": 2}, "must be cloned by the same factor"),
        ({"a": 2, "b": 2, "c": 3}, r"'c': 3.*must be cloned by the same factor"),
        ({"head": 2}, r"factors\['head'\]: its units cannot be cloned: a network output"),
        ({"z": 2}, "no unit space 'z'"),
        ({"a": 0, "b": 0, "c": 0}, "must be a positive integer"),
        (1.5, "must be a positive integer"),
    ):
        with pytest.raises(ValueError, match=message):
            traced.clone(params, factors)
    assert "together with 'b', 'c'" in traced.report()


def test_a_wrong_exponent_is_refuted_and_the_space_named(monkeypatch):
    true = cloning_module.solve
    wrong = lambda *given: {key: power * 2 for key, power in (true(*given) or {}).items()}  # noqa: E731
    monkeypatch.setattr(cloning_module, "solve", wrong)
    network = EXAMPLES["unit_features"]()
    with pytest.raises(ValueError, match=r"unit space 'w'.*cloning its units changes the outputs"):
        trace_model(network.apply, network.params, network.inputs)


# --- The linear system alone --------------------


def condition(number, **terms):
    named = tuple(((int(name[1:]), 0 if name[0] == "o" else -1), c) for name, c in terms.items())
    return Condition(Form(number, named), None, False)


def test_solutions_satisfy_the_conditions_exactly_and_change_little():
    # o: an exponent of an array's own axis, w: of a whole array.
    assert solve([condition(0.5, o0=1, w1=1)], lambda _: 0) == {(0, 0): -HALF}  # an own axis is preferred
    assert solve([condition(0.5, o0=1, w1=1), condition(0, o0=2)], lambda _: 0) == {(1, -1): -HALF}
    assert solve([condition(1, o0=1), condition(1, o1=1)], lambda u: -int(u == (0, 0))) == {
        (0, 0): -1, (1, 0): -1,
    }  # fmt: skip
    assert solve([condition(1, o0=1), condition(0, o0=1)], lambda _: 0) is None  # contradictory
    assert solve([condition(1)], lambda _: 0) is None  # nothing to choose
    assert solve([condition(1 / 3, o0=1)], lambda _: 0) == {(0, 0): Fraction(-1, 3)}


def test_groups_are_the_connected_sets_of_what_met():
    from lopjax.tracing.atoms import Atom

    a, b, c, d, e = (Atom(2) for _ in range(5))
    met = [frozenset({a, b}), frozenset({b, c}), frozenset({d}), frozenset({d, e}), frozenset()]
    assert sorted(map(len, groups_of([a, b, c, d], met))) == [3]
    assert groups_of([a, b, c, d], met)[0] == frozenset({a, b, c})
