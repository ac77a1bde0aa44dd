"""Sites and sources of traced networks: against the labels of the built-in models, and against the networks."""

import re
from contextlib import nullcontext
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.architectures import batch_of, build, draw
from test_agreement import OPTIONS, inputs
from traced_networks import EXAMPLES, layer_norm, of

from lopjax.certificates import FrozenVerdict, certify_frozen
from lopjax.models.check import check_wiring
from lopjax.stability import unit_blocks
from lopjax.tracing import trace_model


def traced_like(model, x):
    """The model without its labels."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return trace_model(lambda variables, x: model.apply(variables, x).logits, shapes, x, check=False)


def names_by_hand(model, traced):
    """Spaces and sites that were read, and what they are called by hand.

    Spaces by the arrays that they stand on, the sites of each space in the order of the forward pass.
    """
    read, names = dict(traced.model.wiring.labels), {}
    for path, label in model.wiring.labels:
        for one, other in zip(label.axes, read[path].axes, strict=True):
            if one is not None and other is not None:
                names.setdefault(other.space, one.space)
    for space in traced.model.wiring.permutable:
        by_hand = model.wiring.sites_of(names[space])
        names |= dict(zip(traced.model.wiring.sites_of(space), by_hand))
    return names


def both_labels(model, traced):
    """Of every array what its label says by hand, and what was read, in the same words."""
    names, read = names_by_hand(model, traced), dict(traced.model.wiring.labels)
    for path, label in model.wiring.labels:
        scales = label.scales if label.site is not None else None
        own = read[path]
        yield (
            path,
            (label.site, label.source, label.window, scales),
            (names.get(own.site, own.site), names.get(own.source, own.source), own.window, own.scales),
        )


@pytest.mark.parametrize(("name", "options"), [*OPTIONS, ("cnn", dict(norm="none", pooling="none"))])
def test_sites_and_sources_are_those_of_the_labels(name, options):
    model = build(name, **options)
    both = list(both_labels(model, traced_like(model, inputs(name))))
    assert any(site for _, (site, *_), _ in both)
    assert not {path: (by_hand, read) for path, by_hand, read in both if by_hand != read}


SOUND_AT_ONCE = ("plain", "low_rank", "weight_norm", "squeeze_and_excite", "gru", "branches")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in SOUND_AT_ONCE else pytest.mark.slow)
        for name in EXAMPLES
        if name != "film"  # it has two inputs
    ],
)
def test_no_network_contradicts_what_is_said_of_its_sites(name):
    network = EXAMPLES[name]()
    model = trace_model(network.apply, network.params, network.inputs, check=False).model
    x = network.inputs
    values = np.random.default_rng(0).integers(0, 3, x.shape) if x.dtype == np.int32 else np.zeros(x.shape)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network.params)
    check_wiring(model, (values.astype(x.dtype), None), model.view.split(zeros))


# --- What may not be claimed --------------------


def label_of(apply, params, array, x=None):
    traced = trace_model(apply, params, of(7, 4) if x is None else x, check=False)
    return dict(traced.model.wiring.labels)["params", array], traced


def skipping(p, x):
    z = x @ p["w"]
    return jnp.tanh(z) @ p["head"] + z @ p["skip"]


def normed(p, x):
    return jnp.tanh(layer_norm(x @ p["w"])) @ p["head"]


def in_two_places(p, x):
    return jnp.tanh(jnp.tanh(x @ p["w"]) @ p["u"] + x @ p["w"]) @ p["head"]


def softmaxed(p, x):
    return jnp.tanh(jax.nn.softmax(x @ p["w"])) @ p["head"]


def of_while(p, x):
    return jax.lax.while_loop(lambda h: h.sum() < 9, lambda h: jnp.tanh(h @ p["w"]) + 1, x) @ p["head"]


SQUARE = dict(w=of(4, 4), head=of(4, 2), skip=of(4, 2), u=of(4, 4))


@pytest.mark.parametrize(
    ("apply", "names", "reason"),
    [
        (skipping, "w head skip", r"its units meet at dot_general at .*test_claims.py"),
        (normed, "w head", r"its units meet at reduce_sum at .*traced_networks.py"),
        (in_two_places, "w u head", "its units pass several sites: w, w:1"),
        (softmaxed, "w head", "its units meet at reduce_max"),
        (of_while, "w head", r"its units go through while at .*test_claims.py.*, which is not looked into"),
    ],
)
def test_where_units_meet_before_a_site_none_is_named_and_the_report_says_why(apply, names, reason):
    label, traced = label_of(apply, {name: SQUARE[name] for name in names.split()}, "w")
    assert label.site is None
    (line,) = [line for line in traced.report().splitlines() if re.match("no site for .*w", line)]
    assert re.search(reason, line), line


def flattened(order):
    def apply(p, x):
        h = jax.nn.relu(jnp.einsum("btc,cu->btu", x, p["w"]))
        return h.transpose(0, *order).reshape(len(x), -1) @ p["head"]

    return apply, dict(w=of(4, 6), head=of(30, 2)), of(7, 5, 4)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_flattened_map_is_read_in_any_order_of_units_and_positions(order):
    apply, params, x = flattened(order)
    label, traced = label_of(apply, params, "head", x)
    assert label.source == "w"
    check_wiring(traced.model, (np.zeros(x.shape), None), jax.eval_shape(traced.model.init, jax.random.key(0)))


def scaled_product(p, x):
    return 2.0 * (jnp.tanh(x @ p["w"]) @ p["head"])


def with_a_square(p, x):
    h = jnp.tanh(x @ p["w"])
    return h @ p["head"] + (h * h).sum(-1, keepdims=True)


def reversed_positions(p, x):
    h = jax.nn.relu(jnp.einsum("btc,cu->btu", x[:, :, None] * jnp.ones(4), p["w"]))
    return h[:, ::-1].reshape(len(x), -1) @ p["head"]


@pytest.mark.parametrize("apply", [scaled_product, with_a_square, reversed_positions])
def test_a_kernel_that_does_not_alone_make_what_it_writes_names_no_source(apply):
    size = 24 if apply is reversed_positions else 6
    label, traced = label_of(apply, dict(w=of(4, 6), head=of(size, 2)), "head")
    assert (label.site, label.source) == ("head", None)
    assert "head" in next(line for line in traced.report().splitlines() if line.startswith("no source"))


def test_a_derivative_rule_of_ones_own_is_no_activation_of_the_library():
    @jax.custom_vjp
    def guided(x):
        return jnp.maximum(x, 0.0)

    guided.defvjp(lambda x: (jnp.maximum(x, 0.0), x), lambda x, g: (jnp.maximum(g, 0.0),))

    @jax.custom_jvp
    def honest(x):
        return jnp.maximum(x, 0.0)

    honest.defjvp(lambda x, t: (honest(*x), jnp.where(x[0] > 0, t[0], 0.0)))
    params = dict(w=of(4, 6), b=of(6), head=of(6, 2))
    for rule, name, source in ((guided, "unnamed", None), (honest, "relu", "w")):
        label, traced = label_of(lambda p, x, rule=rule: rule(x @ p["w"] + p["b"]) @ p["head"], params, "head")
        kind = traced.model.wiring.site("w").activation
        assert (getattr(kind, "name", kind), label.source) == (name, source)


def padded_coordinates(p, x):
    h = jnp.tanh(x @ p["w"]).reshape(len(x), 2, 3)
    return jnp.tanh(jnp.pad(h, [(0, 0), (0, 0), (0, 1)]) + p["b"]).reshape(len(x), -1) @ p["head"]


@pytest.mark.parametrize("is_right", [True, False])
def test_units_may_index_a_part_of_what_others_do_at_a_site(is_right):
    params = dict(w=of(4, 6), b=of(4), head=of(8, 2))
    model = trace_model(padded_coordinates, params, of(7, 4), check=False).model
    assert sorted(map(model.wiring.size, model.wiring.cloneable)) == [2, 3]
    if not is_right:  # the control: the bias of the second space is forgotten
        (path,) = [path for path, _ in model.wiring.labels if path[1] == "b" and "rest" not in path]
        labels = tuple((each, replace(l, axes=(None,)) if each == path else l) for each, l in model.wiring.labels)
        model = model._replace(wiring=replace(model.wiring, labels=labels))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    with nullcontext() if is_right else pytest.raises(ValueError, match="the labels of this network are wrong"):
        check_wiring(model, (np.zeros((7, 4), np.float32), None), model.view.split(zeros))


# --- What stands on it --------------------

VERDICTS = [("mlp", dict(norm="none")), ("mlp", {}), ("cnn", {}), ("cnn", dict(norm="none", pooling="none")),
            ("resnet", {}), ("vit", {}), ("gpt", {})]  # fmt: skip


def with_a_dead_unit(model, name, variables):
    """A unit whose pre-activation is below zero on every input, at the site that the architecture's table names."""
    from oracles.architectures import ARCHITECTURES

    site, array = ARCHITECTURES[name].bias
    if name in ("mlp", "cnn") and array[0] not in variables["params"]:
        array = (site, "bias")
    dead = jax.tree.map(lambda leaf: leaf, variables)
    inner = dead["params"]
    for key in array[:-1]:
        inner = inner[key]
    inner[array[-1]] = inner[array[-1]].at[1].set(-50.0)
    return site, dead


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), VERDICTS)
def test_certificates_of_dead_units_are_those_of_the_labelled_network(name, options, x64):
    model = build(name, activation="relu", **options)
    site, variables = with_a_dead_unit(model, name, draw(model))
    data = batch_of(name, 5)
    traced = traced_like(model, data[0])
    # The coordinates of heads are units of their own, whose site is that of the heads.
    names = {one: name for one, name in names_by_hand(model, traced).items() if name in dict(model.wiring.sites)}
    (other,) = [one for one, name in names.items() if name == site and one in dict(traced.model.wiring.sites)]
    own = certify_frozen(model, variables, data, {site: [0, 1]})
    read = certify_frozen(traced.model, traced.split(variables), data, {other: [0, 1]})
    assert own.units[1].verdict is FrozenVerdict.FROZEN
    for one, two in zip(own.units, read.units, strict=True):
        known = {names.get(each, each) for each in two.depends_on} - {"heads_0/value"}
        assert (one.verdict, set(one.depends_on), set(one.arrays)) == (two.verdict, known, set(two.arrays))
        for field in ("largest", "radius", "source_radius", "gradient"):
            a, b = getattr(one, field), getattr(two, field)
            assert (a is None) == (b is None)
            assert a is None or np.isclose(a, b, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", dict(norm="none", activation="tanh")),
        pytest.param("cnn", dict(norm="none", pooling="none", activation="tanh"), marks=pytest.mark.slow),
    ],
)
def test_the_closed_form_of_the_blocks_is_that_of_the_labelled_network(name, options, x64):
    model, data = build(name, **options), batch_of(name, 6)
    variables = draw(model)
    traced = traced_like(model, data[0])
    own = unit_blocks(model, variables, data, factor=2, method="closed form")
    read = unit_blocks(traced.model, traced.split(variables), data, factor=2, method="closed form")
    assert own.spaces.keys() == read.spaces.keys()
    for space in own.spaces:
        np.testing.assert_allclose(read.spaces[space].eigenvalues, own.spaces[space].eigenvalues, rtol=1e-9, atol=1e-13)
        assert [each.verdict for each in read.spaces[space].reports] == [
            each.verdict for each in own.spaces[space].reports
        ]


# --- Claims that were false --------------------


def multiple_read_apart(p, x):
    z = x @ p["w"]
    double = 2 * z  # entry by entry from z, and read by the skip alone
    return jax.nn.relu(z) @ p["head"] + double @ p["skip"]


def test_what_is_computed_beside_an_activation_leads_past_its_site():
    label, _ = label_of(multiple_read_apart, SQUARE, "w")
    assert label.site is None
    label, _ = label_of(lambda p, x: jax.nn.relu(x @ p["w"]) @ (p["head"] + 2 * p["skip"]), SQUARE, "w")
    assert label.site == "w"


@pytest.mark.parametrize("times", [1, 2])
def test_a_bias_that_is_added_twice_moves_a_unit_twice_as_far(times):
    def apply(p, x):
        z = x @ p["w"]
        for _ in range(times):
            z = z + p["bias"]
        return jax.nn.relu(z) @ p["head"]

    label, _ = label_of(apply, SQUARE | dict(bias=of(4)), "w")
    assert (label.source is None) == (times == 2)


@pytest.mark.parametrize("is_scaled", [True, False])
@pytest.mark.parametrize("number", [1, 3, 4, 7])
def test_sums_over_units_that_come_out_of_a_long_row_of_carries_are_seen(number, is_scaled):
    def apply(p, x):
        def step(carry, xt):
            late = carry[0] @ p["head"] if is_scaled else carry[0].sum(-1, keepdims=True)
            return (*carry[1:], jnp.tanh(xt @ p["w"])), jnp.tanh(late)

        rows = (jnp.zeros((len(x), 4)),) * number
        carry, made = jax.lax.scan(step, rows, jnp.stack([x] * 9))
        return carry[0] @ p["skip"] + made.sum(0)

    wiring = trace_model(apply, SQUARE, of(7, 4), check=False).model.wiring
    assert "w" in wiring.permutable
    assert ("w" in wiring.cloneable) == is_scaled


@jax.custom_vjp
def told_apart(h):
    return h


told_apart.defvjp(lambda h: (h, None), lambda _, g: (g * np.array([1.0, 1.0, 3.0, 1.0], np.float32),))


def test_a_derivative_rule_that_singles_out_the_third_unit_is_refuted():
    def apply(p, x):
        return told_apart(jnp.tanh(x @ p["w"])) @ p["head"]

    with pytest.raises(ValueError, match=r"unit space 'w'.* permuting its units changes the gradient"):
        trace_model(apply, SQUARE, of(7, 4))
    free = trace_model(lambda p, x: jnp.tanh(x @ p["w"]) @ p["head"], SQUARE, of(7, 4))
    assert free.model.wiring.cloneable == ("w",)
