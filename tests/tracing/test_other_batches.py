"""Programs that ask for the size of their batch: a claim holds for every batch, or is refused where it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced_networks import EXAMPLES, of

from lopjax.tracing import network as network_module
from lopjax.tracing import trace_model
from lopjax.tracing.network import Network
from lopjax.tracing.recognise import recognised

LARGE = 20
SHAPES = dict(w=of(4, 6), b=of(6), u=of(6, 5), head=of(5, 2), skip=of(6, 2))


def layers(p, x, *, activation=jax.nn.relu, scale=1.0, past=False, count=6.0, bias=True):
    z = x @ p["w"] + (p["b"] if bias else 0)
    h = activation(z)
    y = h @ p["u"] if scale == 1 else h @ (scale * p["u"])
    extra = z @ p["skip"] if past else 0 * (h @ p["skip"])
    return jnp.tanh(y) @ p["head"] + extra + jnp.tanh(h.sum(-1, keepdims=True) / count)


def nameless(z):
    return jnp.tanh(z) * jax.nn.sigmoid(2 * z)


# What a large batch is computed with, and what is then no longer true.
DIFFERENT = {
    "past the site": (dict(past=True), "what params/b does does not all pass the site 'w'"),
    "another activation": (dict(activation=jnp.tanh), "site 'w' has another activation"),
    "an activation without a name": (dict(activation=nameless), "site 'w' has another activation"),
    "another product": (dict(scale=2.0), "params/u does not alone make a pre-activation from 'w'"),
    "a sum that is no mean": (dict(count=7.0), "unit space 'w' is permutable and not cloneable"),
}


def depends_on_its_batch(different):
    return lambda p, x: layers(p, x, **(different if len(x) > LARGE else {}))


def drawn(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_does_not_hold_of_a_larger_batch_is_refused_there(name):
    different, reason = DIFFERENT[name]
    params, x = drawn(SHAPES), np.random.default_rng(1).normal(size=(2 * LARGE, 4)).astype(np.float32)
    apply = depends_on_its_batch(different)
    traced = trace_model(apply, params, x[:3], check=False)
    variables = traced.split(params)
    np.testing.assert_allclose(traced.model.apply(variables, x[:5]).logits, apply(params, x[:5]), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=rf"depends on its inputs: for those of shapes \[\(40, 4\)\], {reason}"):
        traced.model.apply(variables, x)
    # Asked about such a batch, the program is read as it is there.
    there = trace_model(apply, params, x, check=False)
    np.testing.assert_allclose(there.model.apply(there.split(params), x).logits, apply(params, x), rtol=1e-5, atol=1e-5)


def test_without_the_comparison_a_claim_would_be_false_at_the_larger_batch(monkeypatch):
    params, x = drawn(SHAPES), np.random.default_rng(1).normal(size=(2 * LARGE, 4)).astype(np.float32)
    monkeypatch.setattr(network_module, "unconfirmed", lambda first, second: "")
    model = trace_model(depends_on_its_batch(dict(scale=2.0)), params, x[:3], check=False).model
    assert dict(model.wiring.labels)["params", "u"].source == "w"
    for batch, times in ((LARGE, 1), (2 * LARGE, 2)):
        taps = model.apply(model.view.split(params), x[:batch]).taps
        np.testing.assert_allclose(taps["u"].pre, times * taps["w"].post @ params["u"], rtol=1e-4, atol=1e-5)


def test_a_larger_batch_of_which_more_is_known_is_taken():
    def apply(p, x):
        return layers(p, x, past=len(x) < LARGE)

    model = trace_model(apply, SHAPES, of(3, 4), check=False).model
    assert dict(model.wiring.labels)["params", "w"].site is None
    taps = jax.eval_shape(model.apply, model.view.split(drawn(SHAPES)), of(2 * LARGE, 4)).taps
    assert taps["w"].pre.shape == (2 * LARGE, 6)


@pytest.mark.parametrize("name", ["convolution_and_flatten", "gpt_tied", "lstm", "blocks_by_scan", "u_net"])
def test_networks_that_do_not_ask_are_read_alike_at_every_batch(name):
    example = EXAMPLES[name]()
    network = Network(example.apply, example.params, {}, ()).taken_apart(example.inputs)
    for batch in (len(example.inputs.shape), 1, 2, 16, 100):
        network.plan(jax.ShapeDtypeStruct((batch, *example.inputs.shape[1:]), example.inputs.dtype))
    assert len(network.plans) > 3


@jax.custom_vjp
def straight_through(z):
    return jnp.maximum(z, 0.0)


straight_through.defvjp(lambda z: (straight_through(z), z), lambda _, g: (g,))


@jax.custom_jvp
def honest(z):
    return jnp.maximum(z, 0.0)


honest.defjvp(lambda z, t: (honest(*z), jnp.where(z[0] > 0, t[0], 0.0)))


@pytest.mark.parametrize(("rule", "name"), [(straight_through, "unnamed"), (honest, "relu")])
def test_a_derivative_rule_of_ones_own_is_confirmed_in_its_own_precision(rule, name):
    def apply(p, x):
        return rule(x @ p["w"] + p["b"]) @ p["head"]

    params = {name: SHAPES[name] for name in ("w", "b", "head")} | {"head": of(6, 2)}
    network = Network(apply, params, {}, ())
    network.plan(of(3, 4))
    with jax.enable_x64(True):
        plan = network.plan(jax.ShapeDtypeStruct((9, 4), jnp.float64), [jnp.float64] * 3)
    kind = recognised(plan.typing, plan.sites["w"], {})
    assert getattr(kind, "name", kind) == name
