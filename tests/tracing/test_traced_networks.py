"""Unit spaces of networks without labels, against those written by hand, and against the networks themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced_networks import EXAMPLES, Example, of

from lopjax.models.check import check_wiring
from lopjax.tracing import trace_model
from lopjax.tracing import traced as traced_module
from lopjax.tracing.degrees import Ledger


def states(traced, state):
    return sorted(space.size for space in traced.spaces if space.state == state)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_unit_spaces_are_those_written_by_hand(name):
    network = EXAMPLES[name]()
    traced = trace_model(network.apply, network.params, network.inputs, check=False)
    assert states(traced, "cloneable") == sorted(network.cloneable), traced.report()
    assert states(traced, "permutable") == sorted(network.permutable), traced.report()


VERIFIED_AT_ONCE = ("plain", "gated", "layer_norm_over_two_spaces", "lstm")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in VERIFIED_AT_ONCE else pytest.mark.slow) for n in EXAMPLES]
)
def test_no_network_contradicts_its_wiring(name):
    network = EXAMPLES[name]()
    seen = trace_model(network.apply, network.params, network.inputs).verification
    assert seen.is_checked
    assert max(seen.permutation, seen.cloning, seen.tangency) < 1e-13
    assert not seen.unreached


def test_reasons_name_the_line_of_the_users_file():
    network = EXAMPLES["gpt_tied"]()
    traced = trace_model(network.apply, network.params, network.inputs, check=False)
    reasons = {space.size: space.reason for space in traced.spaces if space.state == "permutable"}
    assert "dot_general at " in reasons[4]
    assert "traced_networks.py" in reasons[4]
    assert "exp at " in reasons[4]
    assert "divided by the number of clones" in reasons[8]
    assert "traced_networks.py" in reasons[8]
    assert all(reason in traced.report() for reason in reasons.values())


def test_a_function_of_jax_that_was_traced_elsewhere_is_told_by_the_line_that_calls_it():
    def apply(p, x):
        return jnp.cumsum(jnp.tanh(x @ p["w"]), -1) @ p["head"]

    jax.make_jaxpr(lambda x: jnp.cumsum(x, -1))(of(3, 6))  # fills JAX's cache from this line
    traced = trace_model(apply, dict(w=of(4, 6), head=of(6, 2)), of(3, 4), check=False)
    (reason,) = [space.reason for space in traced.spaces if space.size == 6]
    assert f"test_traced_networks.py:{apply.__code__.co_firstlineno + 1}" in reason


# --- Corruptions: each must be seen --------------------


def small():
    def apply(p, x):
        h = jnp.tanh(x @ p["w"] + p["b"])
        return jnp.exp((h @ p["q"]) * (h @ p["k"]).sum(-1, keepdims=True)) @ p["head"]

    shapes = dict(w=of(4, 6), b=of(6), q=of(6, 5), k=of(6, 3), head=of(5, 2))
    return Example(apply, shapes, of(3, 4), [5, 6], [3])


def corrupted(monkeypatch, change):
    true = traced_module.Network.plan

    def plan(self, *args):
        self.diagram = None
        made = true(self, *args)
        diagram = change(made.diagram)
        self.diagram = diagram
        return made._replace(diagram=diagram)

    monkeypatch.setattr(traced_module.Network, "plan", plan)


def relabelled(diagram, array, index, axis):
    labels = tuple(
        (path, label if path[-1] != array else type(label)((*label.axes[:index], axis, *label.axes[index + 1 :])))
        for path, label in diagram.labels
    )
    return type(diagram)(diagram.spaces, diagram.layouts, diagram.paths, labels)


def in_state(diagram, name, state):
    spaces = tuple(s._replace(state=state, reason="") if s.name == name else s for s in diagram.spaces)
    return type(diagram)(spaces, diagram.layouts, diagram.paths, diagram.labels)


@pytest.mark.parametrize(
    ("what", "space"),
    [
        ("in for out", "w"),
        ("out for in", "w"),
        ("forgotten bias", "w"),
        ("permutable as cloneable", "k"),
        ("fixed as permutable", "head"),
    ],
)
def test_a_wrong_wiring_is_refuted_and_the_space_named(monkeypatch, what, space):
    from lopjax.wiring import In, Out

    changes = {
        "in for out": lambda d: relabelled(d, "b", 0, In("w")),
        "out for in": lambda d: relabelled(d, "q", 0, Out("w")),
        "forgotten bias": lambda d: relabelled(d, "b", 0, None),
        "permutable as cloneable": lambda d: in_state(d, "k", "cloneable"),
        "fixed as permutable": lambda d: in_state(d, "head", "permutable"),
    }
    network = small()
    corrupted(monkeypatch, changes[what])
    with pytest.raises(ValueError, match=rf"unit space '{space}'"):
        trace_model(network.apply, network.params, network.inputs)


def test_without_the_conditions_on_powers_the_network_refutes_what_is_left(monkeypatch):
    monkeypatch.setattr(Ledger, "must_vanish", lambda *args, **kwargs: None)
    network = small()
    with pytest.raises(ValueError, match="cloning its units changes the outputs"):
        trace_model(network.apply, network.params, network.inputs)


def test_a_number_that_happens_to_be_a_count_is_found_out():
    def apply(p, x):
        h = jnp.tanh(x @ p["w"])
        return jnp.tanh(h.sum(-1, keepdims=True) / 6.0) * p["s"]  # six units; but is it their number?

    traced = trace_model(apply, dict(w=of(4, 6), s=of(2)), of(3, 4))
    assert states(traced, "cloneable") == [6]  # a mean, as far as the program tells: cloning with it is consistent

    def other(p, x):
        return jnp.tanh(jnp.tanh(x @ p["w"]).sum(-1, keepdims=True) / 5.0) * p["s"]

    assert states(trace_model(other, dict(w=of(4, 6), s=of(2)), of(3, 4), check=False), "permutable") == [6]


def test_a_network_that_is_dead_at_the_first_parameters_is_tried_at_others_or_said_to_be_unseen():
    def apply(p, x):
        h = jax.nn.relu(x**2 @ jax.lax.stop_gradient(0 * p["w"]) + p["b"] - p["c"] ** 2 - 2.0 * (p["b"] < 1.2))
        return h @ p["head"]

    shapes = dict(w=of(4, 6), b=of(6), c=of(6), head=of(6, 2))
    seen = trace_model(apply, shapes, of(3, 4)).verification
    assert seen.unreached == ()  # dead at the first draw

    def dead(p, x):
        return jax.nn.relu(-jnp.exp(x @ p["w"])) @ p["head"] + p["b"]

    traced = trace_model(dead, dict(w=of(4, 6), head=of(6, 2), b=of(2)), of(3, 4))
    assert traced.verification.unreached == ("w",)
    assert "nothing seen of ['w'], to which the outputs do not react" in traced.report()


# --- Bad input --------------------


def tanh(p, x):
    return jnp.tanh(x @ p["w"])


def branches_in_python(p, x):
    return tanh(p, x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("apply", "params", "inputs", "message"),
    [
        (
            branches_in_python,
            dict(w=of(4, 4)),
            of(3, 4),
            "Python control flow looks at the value of an array.*jnp.where",
        ),
        (tanh, dict(w=np.ones((4, 2), int)), of(3, 4), "parameter params/w is of type int.*floating point"),
        (lambda p, x: "logits", dict(w=of(4, 4)), of(3, 4), "outputs must be arrays.*return arrays only"),
        (tanh, dict(w=of(4, 4)), of(1, 4), "a batch of 1.*pass two inputs"),
        (lambda p, x: p["w"] * x, dict(w=of(4, 4)), of(), "first axis must be the batch"),
        (tanh, {}, of(3, 4), "params has no arrays"),
    ],
)
def test_bad_input_is_told_in_one_sentence(apply, params, inputs, message):
    with pytest.raises(ValueError, match=message):
        trace_model(apply, params, inputs, check=False)


def test_a_random_key_that_a_network_keeps_is_no_number():
    key = jax.random.key(0)

    def apply(p, x):
        keys = jax.random.split(key)
        return jnp.tanh(x @ p["w"]) @ p["head"] + 0 * jax.random.normal(keys[1], (2,))

    traced = trace_model(apply, dict(w=of(4, 6), head=of(6, 2)), of(3, 4), check=False)
    assert states(traced, "cloneable") == [6]


def test_layers_of_a_stack_are_of_one_width_in_the_users_arrays():
    network = EXAMPLES["blocks_by_scan"]()
    traced = trace_model(network.apply, network.params, network.inputs, check=False)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), network.params)
    wide, variables = traced.clone(params, {"blocks/a/0": 2})
    with pytest.raises(ValueError, match="layers of a stack must be of one width; clone the spaces of all its layers"):
        wide.view.merge(variables)


def test_names_and_fixed_spaces():
    network = EXAMPLES["plain"]()
    traced = trace_model(
        network.apply, network.params, network.inputs, names={"w1": "first"}, fixed=("w2",), check=False
    )
    assert traced.model.wiring.cloneable == ("first",)
    assert traced.model.wiring.why_not_cloneable("w2") == "fixed (fixed by the caller)"
    with pytest.raises(ValueError, match="no unit space 'w9'"):
        trace_model(network.apply, network.params, network.inputs, fixed=("w9",), check=False)


def test_mixed_types_are_noted():
    def apply(p, x):
        return (jnp.tanh(x @ p["w"]).astype(jnp.float32) @ p["head"].astype(jnp.float32)).astype(jnp.float64)

    with jax.enable_x64(True):
        wide = jax.ShapeDtypeStruct((4, 6), jnp.float64), jax.ShapeDtypeStruct((6, 2), jnp.float64)
        x = jax.ShapeDtypeStruct((3, 4), jnp.float64)
        traced = trace_model(apply, dict(w=wide[0], head=wide[1]), x, check=False)
    assert any("'float32', 'float64'" in note for note in traced.notes)


def test_a_network_in_16_bits_is_read_and_not_verified():
    def apply(p, x):
        return jnp.tanh(x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16)) @ p["head"].astype(jnp.bfloat16)

    traced = trace_model(apply, dict(w=of(4, 6), head=of(6, 2)), of(3, 4))
    assert not traced.verification.is_checked
    assert "not verified" in traced.report()


def single_only(p, x):
    start = jnp.zeros((len(x), 6), jnp.float32)  # as Flax's recurrent cells start, whatever the type of the inputs
    h, _ = jax.lax.scan(lambda h, now: (jnp.tanh(now @ p["w"] + h @ p["u"]), None), start, x.swapaxes(0, 1))
    return h @ p["head"]


@pytest.mark.parametrize("is_right", [True, False])
def test_a_loop_that_runs_in_single_precision_only_is_verified_in_it(monkeypatch, is_right):
    from lopjax.wiring import Out

    params = dict(w=of(4, 6), u=of(6, 6), head=of(6, 2))
    if not is_right:
        corrupted(monkeypatch, lambda d: relabelled(d, "u", 0, Out("w")))
        with pytest.raises(ValueError, match=r"unit space 'w'.*cloning its units changes the outputs"):
            trace_model(single_only, params, of(3, 5, 4))
        return
    traced = trace_model(single_only, params, of(3, 5, 4))
    seen = traced.verification
    assert seen.is_checked
    assert 1e-4 < seen.tolerance < 1e-3
    assert max(seen.permutation, seen.cloning, seen.tangency) < 1e-5
    check_wiring(traced.model, (np.zeros((3, 5, 4), np.float32), None))


def test_equations_are_visited_once_whatever_the_depth(monkeypatch):
    from lopjax.tracing import cloning

    calls = []
    true = cloning.results
    monkeypatch.setattr(cloning, "results", lambda *args: calls.append(1) or true(*args))

    def count(depth):
        def apply(p, x):
            for index in range(depth):
                x = x + jax.nn.gelu(x @ p[f"a{index}"]) @ p[f"b{index}"]
            return x @ p["head"]

        params = {f"a{index}": of(4, 6) for index in range(depth)} | {f"b{index}": of(6, 4) for index in range(depth)}
        calls.clear()
        trace_model(apply, params | dict(head=of(4, 2)), of(3, 4), check=False)
        return len(calls)

    assert count(12) - count(8) == count(8) - count(4)
