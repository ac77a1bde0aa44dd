"""The CPU's chunked convolution against XLA's, and pooling against NumPy: values, gradients, Hessians, transforms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.models import convolution
from lopjax.models.convolution import average_pool, convolve, max_pool
from lopjax.wiring import Window

SAME = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))
# name -> batch, (height, width, channels), (kernel height, kernel width, units), window
CASES = {
    "3x3": (4, (6, 5, 2), (3, 3, 3), Window((1, 1), SAME)),
    "strided": (3, (7, 6, 2), (3, 3, 3), Window((2, 2), SAME)),
    "unequal strides and padding": (2, (7, 9, 2), (3, 2, 2), Window((2, 3), ((1, 0), (2, 1)))),
    "no padding": (2, (5, 5, 3), (3, 3, 2), Window((1, 1), NONE)),
    "1x1": (3, (4, 5, 3), (1, 1, 2), Window((1, 1), NONE)),
    "1x1 strided": (3, (5, 4, 3), (1, 1, 2), Window((2, 2), NONE)),
    "1x1 padded": (2, (3, 3, 2), (1, 1, 2), Window((1, 1), SAME)),
    "one chunk": (32, (4, 4, 1), (3, 3, 2), Window((1, 1), SAME)),
    "ragged chunk": (35, (4, 4, 1), (3, 3, 2), Window((1, 1), SAME)),
    "two chunks": (16, (16, 16, 1), (3, 3, 2), Window((2, 2), SAME)),
    "1x1 in chunks": (35, (4, 4, 2), (1, 1, 3), Window((1, 1), NONE)),
    "stride on one pixel": (2, (1, 1, 2), (3, 3, 2), Window((2, 2), SAME)),
}


def by_xla(x, kernel, window):
    return jax.lax.conv_general_dilated(
        x, kernel, window.strides, window.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def arrays(batch, image, kernel, dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = 2 * ((batch, *image), (*kernel[:2], image[-1], kernel[-1]))
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


@partial(jax.jit, static_argnums=(0, 3))
def everything(conv, point, direction, window):
    """Value, gradient and product with the Hessian of a scalar that is curved in the output of the convolution."""

    def scalar(x, kernel):
        return jnp.sum(jnp.sin(conv(x, kernel, window)))

    gradient = jax.grad(scalar, argnums=(0, 1))
    return conv(*point, window), *jax.jvp(gradient, point, direction)


def assert_close(found, expected, tolerance):
    def check(one, other):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, float(jnp.abs(other).max())))

    jax.tree.map(check, found, expected)


@pytest.mark.parametrize("case", CASES)
def test_values_gradients_and_hessian_products_equal_xla(x64, case):
    batch, image, kernel, window = CASES[case]
    x, k, dx, dk = arrays(batch, image, kernel)
    found = everything(convolve, (x, k), (dx, dk), window)
    assert_close(found, everything(by_xla, (x, k), (dx, dk), window), 1e-13)
    # Control: a kernel read upside down, a correlation for a convolution, is told apart.
    if kernel[0] > 1 and image[0] > 1:
        assert float(jnp.abs(by_xla(x, k[::-1], window) - found[0]).max()) > 0.1


def test_float32_stays_float32():
    batch, image, kernel, window = CASES["ragged chunk"]
    x, k, dx, dk = arrays(batch, image, kernel, jnp.float32)
    found = everything(convolve, (x, k), (dx, dk), window)
    assert found[0].dtype == jnp.float32
    assert_close(found, everything(by_xla, (x, k), (dx, dk), window), 1e-5)


def test_two_types_are_refused():
    batch, image, kernel, window = CASES["3x3"]
    x, k, *_ = arrays(batch, image, kernel, jnp.float32)
    with pytest.raises(TypeError, match="x is bfloat16 and kernel float32: must be of the same type"):
        convolve(x.astype(jnp.bfloat16), k, window)


def test_chunks_take_the_cpu_road():
    """The case above does go through `map` on this machine, and through XLA's convolution on others."""
    batch, image, kernel, window = CASES["ragged chunk"]
    x, k, *_ = arrays(batch, image, kernel, jnp.float32)
    lowered = jax.jit(convolve, static_argnums=2).trace(x, k, window)
    on_cpu = lowered.lower(lowering_platforms=("cpu",)).as_text()
    on_gpu = lowered.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.while" in on_cpu
    assert "stablehlo.convolution" not in on_cpu
    assert "stablehlo.convolution" in on_gpu
    assert "stablehlo.while" not in on_gpu


def test_under_vmap_over_seeds_inside_scan(x64):
    """Gradient descent on the kernels of two seeds, in one program and one by one."""
    batch, image, kernel, window = CASES["ragged chunk"]
    x, k, _, other = arrays(batch, image, kernel)

    def descend(conv, kernel):
        def step(kernel, _):
            value, gradient = jax.value_and_grad(lambda k: jnp.mean(jnp.sin(conv(x, k, window))))(kernel)
            return kernel - 0.1 * gradient, value

        return jax.lax.scan(step, kernel, None, length=3)

    kernels = jnp.stack([k, other])
    together = jax.jit(jax.vmap(partial(descend, convolve)))(kernels)
    one_by_one = [jax.jit(partial(descend, by_xla))(kernel) for kernel in kernels]
    assert_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one), 1e-13)


def test_backward_pass_keeps_no_patches():
    """Peak memory of the gradient stays below the patches of the whole batch, which the plain road holds."""
    x, k, *_ = arrays(64, (16, 16, 8), (3, 3, 8), jnp.float32)
    window = Window((1, 1), SAME)

    def temporary_bytes(conv):
        gradient = jax.jit(jax.grad(lambda x, k: jnp.sum(jnp.sin(conv(x, k, window))), argnums=(0, 1)))
        return gradient.lower(x, k).compile().memory_analysis().temp_size_in_bytes

    def whole_batch(x, k, window):
        return convolution._patches(x, k.shape[:2], window) @ k.reshape(-1, k.shape[-1])

    patches = 9 * x.nbytes
    assert temporary_bytes(convolve) < patches < temporary_bytes(whole_batch)


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (2, 5, 7, 1)], ids=["even", "odd"])
def test_pooling(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    squares = np.asarray(x)[:, : shape[1] // 2 * 2, : shape[2] // 2 * 2]
    corners = np.stack([squares[:, a::2, b::2] for a in (0, 1) for b in (0, 1)])
    np.testing.assert_array_equal(max_pool(x), corners.max(axis=0))
    np.testing.assert_allclose(average_pool(x), corners.mean(axis=0), atol=1e-6)
    # The gradient of the maximum goes to the largest entry alone.
    gradient = np.asarray(jax.grad(lambda x: max_pool(x).sum())(x))
    assert set(np.unique(gradient)) == {0.0, 1.0}
    assert gradient.sum() == corners[0].size
    np.testing.assert_array_equal(np.sort(np.asarray(x)[gradient == 1]), np.sort(corners.max(axis=0).ravel()))


def test_ties_infinities_and_nan_in_a_square():
    square = jnp.array([[2.0, 5.0], [5.0, -jnp.inf]])[None, :, :, None]
    assert max_pool(square).item() == 5
    assert jax.grad(lambda x: max_pool(x).sum())(square)[0, :, :, 0].tolist() == [[0, 1], [0, 0]]
    assert np.isnan(max_pool(square.at[0, 1, 1].set(jnp.nan))).all()
