"""Means over batches against one pass over the whole data set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from oracles import dense

from lopjax.curvature import extreme_eigenvalues, ggn_vp, hvp_over_batches, mean_over_batches


@settings(max_examples=10, deadline=None)
@given(num_samples=st.integers(1, 9), batch_size=st.integers(1, 11))
def test_mean_is_the_mean_for_every_remainder(num_samples, batch_size):
    data = {"x": np.random.default_rng(num_samples).normal(size=(num_samples, 2)).astype(np.float32)}
    mean = mean_over_batches(lambda batch: {"mean": jnp.mean(batch["x"], axis=0)}, data, batch_size)
    assert np.allclose(mean["mean"], data["x"].astype(np.float64).mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_hvp_over_batches_is_that_of_the_whole_set(x64, batch_size):
    net = dense.problem("gelu", num_samples=7)
    flat, unravel = ravel_pytree(net.params)
    vector = np.random.default_rng(0).normal(size=flat.size)
    expected = dense.hessian(net.loss, net.params) @ vector
    data = (net.inputs, net.targets)
    product = jax.jit(
        lambda data: hvp_over_batches(net.batch_loss, net.params, unravel(jnp.asarray(vector)), data, batch_size)
    )(data)
    assert np.allclose(ravel_pytree(product)[0], expected, rtol=0, atol=1e-14)
    # Control: the plain average over batches is wrong when the last one is smaller.
    if batch_size == 3:
        batches = [jax.tree.map(lambda x, i=i: x[i : i + 3], data) for i in (0, 3, 6)]
        losses = [dense.hessian(lambda p, b=b: net.batch_loss(p, b), net.params) for b in batches]
        assert not np.allclose(np.mean(losses, axis=0) @ vector, expected, atol=1e-3)


def test_a_streamed_operator_feeds_lanczos(x64):
    net = dense.problem("tanh", sizes=(3, 2, 2), num_samples=5)
    exact = np.linalg.eigvalsh(dense.hessian(net.loss, net.params))

    @jax.jit
    def find(data):
        return extreme_eigenvalues(
            lambda v: hvp_over_batches(net.batch_loss, net.params, v, data, batch_size=2),
            net.params,
            14,
            jax.random.key(0),
        )

    assert np.allclose(find((net.inputs, net.targets)).eigenvalues, exact[[0, -1]], atol=1e-12)


def test_integer_data_reach_the_function_uncast():
    images = np.arange(10, dtype=np.uint8).reshape(5, 2)
    seen = []

    def mean_pixel(batch):
        seen.append(batch.dtype)
        return jnp.mean(batch.astype(jnp.float32)) / 255

    assert np.isclose(mean_over_batches(mean_pixel, images, 2), 4.5 / 255)
    assert set(seen) == {jnp.dtype("uint8")}


@pytest.mark.slow
def test_gauss_newton_products_stream_too(x64):
    net = dense.problem("tanh", num_samples=7)
    flat, unravel = ravel_pytree(net.params)
    vector = np.random.default_rng(0).normal(size=flat.size)
    expected = dense.gauss_newton(net.model, net.output_loss, net.params) @ vector

    def product(batch):
        return ggn_vp(
            lambda params: dense.forward(params, batch[0], "tanh"),
            lambda outputs: dense.cross_entropy(outputs, batch[1]),
            net.params,
            unravel(jnp.asarray(vector)),
        )

    streamed = jax.jit(lambda data: mean_over_batches(product, data, 3))((net.inputs, net.targets))
    assert np.allclose(ravel_pytree(streamed)[0], expected, rtol=0, atol=1e-14)


def test_sixteen_bits_are_summed_in_float32():
    ones = jnp.ones(2000, jnp.bfloat16)
    mean = mean_over_batches(jnp.mean, ones, 1)
    assert mean.dtype == jnp.bfloat16
    assert mean == 1.0
    stuck = jax.lax.scan(lambda total, x: (total + x, None), jnp.zeros((), jnp.bfloat16), ones)[0]
    assert stuck == 256  # control: what a running sum in 16 bits gives


def test_memory_is_that_of_one_batch():
    net = dense.problem("tanh", sizes=(8, 64, 3), dtype=np.float32)
    data = (jnp.ones((4096, 8)), jnp.ones((4096, 3)))

    def temporary_bytes(batch_size):
        product = jax.jit(lambda data: hvp_over_batches(net.batch_loss, net.params, net.params, data, batch_size))
        return product.lower(data).compile().memory_analysis().temp_size_in_bytes

    hidden = 4 * 4096 * 64
    assert temporary_bytes(64) < hidden / 4 < hidden < temporary_bytes(4096)


@pytest.mark.parametrize(
    ("data", "batch_size", "message"),
    [
        (np.zeros(3), 0, "batch_size=0: must be a positive integer"),
        ((np.zeros(3), np.zeros(4)), 2, r"shapes \[\(3,\), \(4,\)\].*common"),
        (np.zeros((0, 2)), 2, "positive length"),
        (np.float64(1.0), 2, "put the samples first"),
        ((), 2, r"shapes \[\]"),
    ],
)
def test_bad_data_are_refused(unchecked, data, batch_size, message):
    with pytest.raises(ValueError, match=message):
        mean_over_batches(jnp.mean, data, batch_size)
