"""Layers in one array, queries, keys and values in one kernel: units of different entries are different spaces.

The spaces were written by hand, by the mathematics of the network, before the tracer was asked. Oracles: the user's own
function; permutations in one layer alone, which the network must not see, and in one layer's readers alone, which it
must.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_programs import evaluate
from traced_networks import EXAMPLES, Example, layer_norm, of, tokens

from lopjax.tracing import trace_model
from lopjax.tracing.network import Network

LAYERS = 2


def gpt_by_scan():
    """Blocks scanned over under remat, kernels of queries, keys and values `(width, 3, heads, width of a head)`."""

    def block(x, p):
        q, k, v = jnp.moveaxis(jnp.einsum("btd,dnhw->bnhtw", layer_norm(x, p["g"]), p["qkv"]), 1, 0)
        y = jax.nn.softmax(q @ k.mT / 2.0) @ v
        x = x + jnp.einsum("bhtw,hwd->btd", y, p["out"])
        return x + jax.nn.silu(x @ p["up"]) @ p["down"], None

    def apply(p, t):
        blocks = jax.tree.map(lambda leaf: leaf.astype(p["wte"].dtype) * 1.0, p["blocks"])
        x, _ = jax.lax.scan(jax.checkpoint(block), p["wte"][t], blocks)
        return x @ p["head"]

    blocks = dict(
        g=of(LAYERS, 8), qkv=of(LAYERS, 8, 3, 3, 4), out=of(LAYERS, 3, 4, 8), up=of(LAYERS, 8, 6), down=of(LAYERS, 6, 8)
    )
    # The stream; in each layer: heads, the width of values, the hidden units, and the width of queries and keys.
    return Example(apply, dict(wte=of(7, 8), blocks=blocks, head=of(8, 7)), tokens(5, 6), [8, 3, 4, 6, 3, 4, 6], [4, 4])


def layers_by_index():
    def apply(p, x):
        x = x @ p["in"]
        for layer in range(3):
            x = x + jax.nn.relu(x @ p["a"][layer] + p["c"][layer]) @ p["b"][layer]
        return x @ p["head"]

    shapes = {"in": of(4, 8), "a": of(3, 8, 6), "c": of(3, 6), "b": of(3, 6, 8), "head": of(8, 2)}
    return Example(apply, shapes, of(5, 4), [8, 6, 6, 6], [])


def backwards_with_all_layers_read():
    def apply(p, x):
        def step(x, p):
            h = jnp.tanh(x @ p["a"])
            return x + h @ p["b"], h

        x, every = jax.lax.scan(step, x @ p["in"], p["layers"], reverse=True)
        return x @ p["head"], jnp.einsum("lbh,lho->bo", every, p["read"])

    layers = dict(a=of(3, 8, 6), b=of(3, 6, 8))
    shapes = {"in": of(4, 8), "layers": layers, "head": of(8, 2), "read": of(3, 6, 2)}
    # All layers' hidden units lie side by side in one value and are read along with each other: one space.
    return Example(apply, shapes, of(5, 4), [8, 6], [])


def backwards_with_the_stream_read():
    def apply(p, x):
        def step(x, p):
            return x + jnp.tanh(x @ p["a"]) @ p["b"], x

        x, every = jax.lax.scan(step, x @ p["in"], p["layers"], reverse=True)
        return x @ p["head"] + jnp.einsum("lbh,lho->bo", every, p["read"])

    layers = dict(a=of(3, 8, 6), b=of(3, 6, 8))
    shapes = {"in": of(4, 8), "layers": layers, "head": of(8, 2), "read": of(3, 8, 2)}
    return Example(apply, shapes, of(5, 4), [8, 6, 6, 6], [])


def heads_with_three_each():
    """One axis of a kernel in the order of heads, what it is, and the width."""

    def apply(p, x):
        qkv = (x @ p["qkv"] + p["b"]).reshape(*x.shape[:2], 2, 3, 4)
        q, k, v = (qkv[..., index, :].swapaxes(1, 2) for index in range(3))
        return (jax.nn.softmax(q @ k.mT) @ v).swapaxes(1, 2).reshape(*x.shape[:2], 8) @ p["out"]

    return Example(apply, dict(qkv=of(6, 24), b=of(24), out=of(8, 2)), of(7, 5, 6), [2, 4], [4])


def two_of_three_layers_tied():
    def apply(p, x):
        x = jnp.tanh(x @ p["a"][0])
        x = jnp.tanh(x @ p["w"][0])
        x = jnp.tanh(x @ p["w"][1])
        return jnp.tanh(x @ p["w"][0]) @ p["head"]

    # The first and the third layer have one kernel: what it reads at both places is one space, as is what it writes.
    return Example(apply, dict(a=of(1, 4, 6), w=of(2, 6, 6), head=of(6, 2)), of(5, 4), [6, 6], [])


def heads_of_an_actor_and_a_critic():
    def apply(p, x):
        out = jnp.tanh(x @ p["w"]) @ p["out"]
        return {"mean": out[:, 0], "scale": jnp.exp(out[:, 1]), "value": out[:, 2]}

    # Outputs taken one by one have no units behind them: nothing is taken apart.
    return Example(apply, dict(w=of(4, 6), out=of(6, 3)), of(5, 4), [6], [])


NETWORKS = {
    make.__name__: make
    for make in (
        gpt_by_scan,
        layers_by_index,
        backwards_with_all_layers_read,
        backwards_with_the_stream_read,
        heads_with_three_each,
        two_of_three_layers_tied,
        heads_of_an_actor_and_a_critic,
    )
}


def states(traced, state):
    return sorted(space.size for space in traced.spaces if space.state == state)


@pytest.mark.parametrize("name", NETWORKS)
def test_spaces_are_those_written_by_hand(name):
    network = NETWORKS[name]()
    traced = trace_model(network.apply, network.params, network.inputs, check=False)
    assert states(traced, "cloneable") == sorted(network.cloneable), traced.report()
    assert states(traced, "permutable") == sorted(network.permutable), traced.report()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_program_taken_apart_computes_what_the_function_does(name):
    network = NETWORKS[name]()
    own = Network(network.apply, network.params, {}, ()).taken_apart(network.inputs)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: (rng.normal(size=leaf.shape) / 2).astype(np.float32), network.params)
    is_tokens = jnp.issubdtype(network.inputs.dtype, jnp.integer)
    x = rng.integers(0, 7, network.inputs.shape) if is_tokens else rng.normal(size=network.inputs.shape)
    x = x.astype(network.inputs.dtype)
    parts = jax.tree.leaves(own.parts(params))
    found = evaluate(own.plan(network.inputs).sizes({}), [*parts, x])
    expected = jax.tree.leaves(jax.jit(network.apply)(params, x))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["gpt_by_scan", pytest.param("heads_with_three_each", marks=pytest.mark.slow)])
def test_the_network_itself_confirms_them_and_wide_arrays_are_the_users_own(name, x64):
    network = NETWORKS[name]()
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / 2, network.params)
    is_tokens = jnp.issubdtype(network.inputs.dtype, jnp.integer)
    x = rng.integers(0, 7, network.inputs.shape) if is_tokens else rng.normal(size=network.inputs.shape)
    traced = trace_model(network.apply, params, x)
    assert max(traced.verification[:3]) < 1e-13
    back = traced.merge(traced.split(params))
    jax.tree.map(np.testing.assert_array_equal, back, params)
    if name == "gpt_by_scan":  # one layer of a stack cannot be wider than the others in the user's own arrays
        chosen = {space.name: 2 for space in traced.spaces if space.size == 8 and space.state == "cloneable"}
    else:
        chosen = 2
    wide, variables = traced.clone(params, chosen)
    expected = network.apply(params, x)
    np.testing.assert_allclose(wide.apply(variables, x).logits, expected, rtol=1e-10, atol=1e-12)
    own = wide.view.merge(variables)
    again = wide.view.split(own)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    if name == "gpt_by_scan":
        assert own["blocks"]["qkv"].shape == (LAYERS, 16, 3, 3, 4)
        np.testing.assert_allclose(jax.jit(network.apply)(own, x), expected, rtol=1e-10, atol=1e-12)


def test_units_of_one_layer_may_be_exchanged_alone_and_a_kernel_alone_may_not():
    network = EXAMPLES["blocks_by_scan"]()
    traced = trace_model(network.apply, network.params, network.inputs, check=False)
    assert states(traced, "cloneable") == [6, 6, 6, 8]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), network.params)
    x = rng.normal(size=(7, 4)).astype(np.float32)
    apply, order = jax.jit(network.apply), [1, 2, 3, 4, 5, 0]
    a, b = (np.array(params["blocks"][name]) for name in "ab")
    a[1], base = a[1][:, order], apply(params, x)
    assert np.abs(apply(params | {"blocks": dict(a=a, b=b)}, x) - base).max() > 1e-2
    b[1] = b[1][order]
    np.testing.assert_allclose(apply(params | {"blocks": dict(a=a, b=b)}, x), base, rtol=2e-4, atol=2e-4)


def test_a_recurrence_is_not_unrolled_and_long_stacks_are_left_alone(monkeypatch):
    network = EXAMPLES["lstm"]()
    assert not Network(network.apply, network.params, {}, ()).taken_apart(network.inputs).levels
    network = EXAMPLES["blocks_by_scan"]()
    assert Network(network.apply, network.params, {}, ()).taken_apart(network.inputs).levels
    monkeypatch.setattr("lopjax.tracing.stacks.MOST_ENTRIES", 2)
    assert not Network(network.apply, network.params, {}, ()).taken_apart(network.inputs).levels
    assert states(trace_model(network.apply, network.params, network.inputs, check=False), "cloneable") == [6, 8]


def test_reasons_in_an_unrolled_layer_name_the_users_line():
    network = gpt_by_scan()
    traced = trace_model(network.apply, network.params, network.inputs, check=False)
    line = gpt_by_scan.__code__.co_firstlineno + 5
    reasons = [space.reason for space in traced.spaces if space.state == "permutable"]
    assert reasons
    assert all(f"test_stacks.py:{line}" in reason for reason in reasons)
