"""Sites of traced networks: beside others on one axis, behind checkpoints, inside branches; at one sample."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_use import drawn, recurrent_blocks
from traced_networks import EXAMPLES, layer_norm, of

from lopjax.cloning import clone_variables
from lopjax.cloning.clone import widen
from lopjax.model import Tap
from lopjax.tracing import trace_model


def test_a_shift_behind_a_checkpoint_is_added_once(x64):
    params = drawn(dict(a=of(8, 6), w=of(4, 6), b=of(6, 8), head=of(8, 2)))
    x = jax.random.normal(jax.random.key(1), (7, 3, 4))
    model = trace_model(recurrent_blocks, params, x, check=False).model
    variables = model.view.split(params)
    before = model.apply(variables, x)
    (name,) = [name for name, tap in before.taps.items() if tap.pre.shape == (7, 3, 8)]
    # The stream behind the last step, which the head reads.
    last = jnp.zeros((7, 3, 8)).at[:, -1].set(0.3)
    after = model.apply(variables, x, perturbations={name: Tap(before.taps[name].space, 0 * last, last)})
    np.testing.assert_allclose(after.logits, before.logits + 0.3 * params["head"].sum(0), rtol=1e-12)


def test_sites_beside_others_on_one_axis_are_found_and_shifted_apart(x64):
    def apply(p, x):
        both = jnp.concatenate([x @ p["a"], x[:, :1], x @ p["b"]], -1)
        return jax.nn.relu(both) @ p["head"]

    params = drawn(dict(a=of(4, 5), b=of(4, 6), head=of(12, 2)))
    x = jax.random.normal(jax.random.key(1), (7, 4))
    model = trace_model(apply, params, x, check=False).model
    variables = model.view.split(params)
    wide, cloned = widen(model, {"a": 2, "b": 3}), clone_variables(variables, model.wiring, {"a": 2, "b": 3})
    for net, pieces in ((model, variables), (wide, cloned)):
        own, taps = net.view.merge(pieces), net.apply(pieces, x).taps
        z = dict(a=x @ own["a"], b=x @ own["b"])
        for site in "ab":
            np.testing.assert_allclose(taps[site].pre, z[site], rtol=1e-12)
        shift = jnp.full(z["b"].shape, 0.4)
        seen = net.apply(pieces, x, perturbations={"b": Tap("b", shift, 2 * shift, "relu")})
        h = jnp.concatenate([*map(jax.nn.relu, (z["a"], x[:, :1], z["b"] + shift))], -1)
        h = h.at[:, -shift.shape[1] :].add(2 * shift)
        np.testing.assert_allclose(seen.logits, h @ own["head"], rtol=1e-12)


def test_no_site_is_claimed_inside_a_branch_or_a_loop_of_unknown_length_and_a_note_says_so():
    for name, primitive in (("branches", "cond"), ("recurrent_while", "while")):
        network = EXAMPLES[name]()
        traced = trace_model(network.apply, network.params, network.inputs, check=False)
        taps = jax.eval_shape(traced.model.apply, jax.eval_shape(traced.split, network.params), network.inputs).taps
        assert set(taps) == set(dict(traced.model.wiring.sites))
        assert any(re.match(rf"{primitive} at .*traced_networks.py.*not observed", note) for note in traced.notes)


def test_constants_of_the_default_type_leave_the_sites_of_a_stream_as_they_are():
    def apply(p, x):
        h = x @ p["into"]
        scale = jnp.linspace(1.0, 2.0, x.shape[1])[:, None]  # single where traced, double where verified
        h = h + (scale * jnp.tanh(h @ p["up"])) @ p["down"]
        return h @ p["head"]

    params = drawn(dict(into=of(4, 6), up=of(6, 5), down=of(5, 6), head=of(6, 2)))
    traced = trace_model(apply, jax.tree.map(jnp.float32, params), jnp.ones((3, 7, 4), jnp.float32))
    assert traced.verification.permutation < 1e-6
    assert [name for name, _ in traced.model.wiring.sites] == ["into", "up", "into:1"]


def test_what_is_found_grows_linearly_with_depth():
    """Memory: values, types and equations, of tracing and of running what was traced, with nothing quadratic."""

    def counts(depth):
        def apply(p, x):
            for index in range(depth):
                x = x + jax.nn.gelu(x @ p[f"a{index}"]) @ p[f"b{index}"]
            return x @ p["head"]

        params = {f"a{index}": of(4, 6) for index in range(depth)} | {f"b{index}": of(6, 4) for index in range(depth)}
        traced = trace_model(apply, params | dict(head=of(4, 2)), of(3, 4), check=False)
        variables = jax.eval_shape(traced.split, params | dict(head=of(4, 2)))
        run = jax.make_jaxpr(lambda v, x: traced.model.apply(v, x).logits)(variables, of(3, 4))
        inner = next(eqn.params["jaxpr"] for eqn in run.eqns if "jaxpr" in eqn.params)
        own = jax.make_jaxpr(apply)(params | dict(head=of(4, 2)), of(3, 4))
        taps = len(traced.model.wiring.sites)
        return np.array([len(traced.model.wiring.labels), taps, len(inner.eqns), len(own.eqns)])

    four, eight, twelve = map(counts, (4, 8, 12))
    assert (twelve - eight == eight - four).all()
    # Running it takes no more than the network's own equations, with calls opened that hold sites.
    assert (eight - four)[2] <= 10 * (eight - four)[3]


@pytest.mark.parametrize("name", ["plain", "convolution_and_flatten", "wide_and_deep"])
def test_one_sample_is_observed_like_several(name, x64):
    network = EXAMPLES[name]()
    params, x = drawn(network.params), jnp.asarray(np.random.default_rng(0).normal(size=network.inputs.shape))
    model = trace_model(network.apply, params, x, check=False).model
    variables = model.view.split(params)
    every, one = model.apply(variables, x).taps, model.apply(variables, x[:1]).taps
    assert set(every) == set(one) == set(dict(model.wiring.sites))
    for site, tap in one.items():
        np.testing.assert_allclose(tap.pre, every[site].pre[:1], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(tap.post, every[site].post[:1], rtol=1e-9, atol=1e-12)


def test_a_shift_of_a_stream_reaches_checkpointed_blocks_once(x64):
    """A stream is added to in blocks that are computed anew; what comes in is shifted outside of them, only there."""
    network, rng = EXAMPLES["blocks_by_scan"](), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 2), network.params)
    x, change = jnp.asarray(rng.normal(size=(7, 4))), jnp.asarray(rng.normal(size=(7, 8)))
    model = trace_model(network.apply, params, x, check=False).model
    variables = model.view.split(params)
    taps, blocks = model.apply(variables, x).taps, params["blocks"]
    for place, site in enumerate(("blocks/b/0", "blocks/b/0:1", "blocks/b/0:2", "blocks/b/0:3")):
        stream = x @ params["in"] + (change if place == 0 else 0)
        for layer in range(3):
            stream = stream + jax.nn.relu(layer_norm(stream) @ blocks["a"][layer]) @ blocks["b"][layer]
            stream = stream + (change if place == layer + 1 else 0)
        shift = Tap(taps[site].space, change, jnp.zeros_like(change), taps[site].activation)
        found = model.apply(variables, x, perturbations={site: shift}).logits
        np.testing.assert_allclose(found, stream @ params["head"], atol=1e-12)
        assert np.abs(found - network.apply(params, x)).max() > 0.1  # the control
