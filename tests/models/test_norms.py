"""The one formula for the derivative of a normalisation, against derivatives of its value as it is written."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.models.norms import BatchNorm, LayerNorm, standardise

EPSILON = 1e-3


def as_written(x, axes, epsilon):
    mean = jnp.mean(x, axes, keepdims=True)
    var = jnp.var(x, axes, keepdims=True)
    return (x - mean) / jnp.sqrt(var + epsilon), mean, var


def everything(function, x, direction, weights):
    """Values, gradient, tangents, and a dense Hessian of a scalar curved in each of the three outputs."""

    def scalar(x):
        return sum(jnp.sum(weight * jnp.sin(out)) for weight, out in zip(weights, function(x), strict=True))

    values, tangents = jax.jvp(function, (x,), (direction,))
    return values, tangents, jax.grad(scalar)(x), jax.hessian(scalar)(x)


# Batch norm of vectors and maps, layer norm of tokens and maps, and a batch of one.
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((5, 3), (0,)), ((2, 3, 2, 2), (0, 1, 2)), ((2, 3, 4), (2,)), ((2, 2, 3, 2), (1, 2, 3)), ((1, 3), (0,))],
)
def test_values_and_derivatives(x64, shape, axes):
    random = np.random.default_rng(0)
    x, direction = random.normal(size=(2, *shape))
    weights = [random.normal(size=out.shape) for out in as_written(x, axes, EPSILON)]
    found, expected = (
        jax.jit(everything, static_argnums=0)(partial(function, axes=axes, epsilon=EPSILON), x, direction, weights)
        for function in (standardise, as_written)
    )
    # In a batch of one, derivatives are of the size of 1 / epsilon.
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=0, atol=1e-10), found, expected)


@pytest.mark.parametrize("axes", [(0,), (1,)])
def test_a_formula_without_the_slope_is_told_apart(x64, axes):
    """Control: statistics held constant, as in evaluation mode, give another gradient."""
    x, direction = jax.random.normal(jax.random.key(0), (2, 5, 3))
    _, (tangent, *_) = jax.jvp(partial(standardise, axes=axes, epsilon=EPSILON), (x,), (direction,))
    frozen = direction * jax.lax.rsqrt(jnp.var(x, axes, keepdims=True) + EPSILON)
    assert float(jnp.abs(tangent - frozen).max()) > 0.1


def test_under_vmap_and_in_float32():
    x = jax.random.normal(jax.random.key(0), (3, 8, 4)) + 100.0
    together = jax.vmap(lambda x: jax.grad(lambda x: jnp.sum(standardise(x, (0,), 1e-5)[0] ** 3))(x))(x)
    assert together.dtype == jnp.float32
    for one, x_one in zip(together, np.asarray(x, np.float64), strict=True):
        y = (x_one - x_one.mean(0)) / np.sqrt(x_one.var(0) + 1e-5)
        g = 3 * y**2
        expected = (g - g.mean(0) - y * (y * g).mean(0)) / np.sqrt(x_one.var(0) + 1e-5)
        np.testing.assert_allclose(one, expected, atol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_constant_becomes_zero_at_every_size(dtype):
    """The variance of a constant is 0; a rounded mean would be magnified by 1 / sqrt(epsilon) = 316."""
    largest = float(jnp.finfo(dtype).max)

    @partial(jax.jit, static_argnums=1)
    def normalised(x, module):
        variables = module.init(jax.random.key(0), x, *module_arguments(module))
        return module.apply(variables, x, *module_arguments(module), mutable=["batch_stats", "couplings"])[0]

    def module_arguments(module):
        return (True,) if isinstance(module, BatchNorm) else ()

    for module in (BatchNorm("units"), LayerNorm("units")):
        for size in (1e-3, 1.0, 1e3 / 3, 1e4, 0.3 * largest, largest):
            np.testing.assert_array_equal(normalised(jnp.full((128, 8), size, dtype), module), 0)


def test_a_constant_channel_does_not_disturb_the_others_and_an_outlier_comes_first():
    x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    x[:, 1] = 1e6 / 3
    x[0, 2] = 1e4  # what is subtracted from all others
    y, mean, var = jax.jit(standardise, static_argnums=(1, 2))(x, (0,), 1e-5)
    wide = x.astype(np.float64)
    np.testing.assert_array_equal(y[:, 1], 0)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    np.testing.assert_allclose(y[:, ::2], expected[:, ::2], atol=2e-5)
    assert np.all(np.abs(mean[0] - wide.mean(0)) <= 1e-5 * wide.std(0) + 1e-7 * np.abs(wide.mean(0)))
    np.testing.assert_allclose(var[0, ::2], wide.var(0)[::2], rtol=1e-5)
    # Control: with the mean of the channel as such the constant does not vanish.
    assert np.abs(jax.jit(as_written, static_argnums=(1, 2))(x, (0,), 1e-5)[0][:, 1]).max() > 0.1
