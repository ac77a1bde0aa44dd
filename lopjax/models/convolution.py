"""Two-dimensional convolution and pooling that are fast inside `scan` on a CPU, and plain XLA elsewhere."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopjax.arguments.numbers import takes_numbers
from lopjax.wiring import Window

# The number of images whose patches are in memory at a time is such that the matrix product has about this many rows.
# Measured with 3x3 kernels of 64 to 512 channels on a 2-core CPU: fewer rows read the kernel too often, more patches
# leave the cache.
ROWS_PER_CHUNK, MIN_IMAGES_PER_CHUNK = 512, 2


@takes_numbers(x=4, kernel=4)
def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "kernel_height kernel_width channels units"],
    window: Window,
) -> Float[Array, "batch out_height out_width units"]:
    """Cross-correlation, what deep learning calls convolution.

    `y[n, i, j, o] = sum over (a, b, c) of x[n, i * s + a - top, j * t + b - left, c] kernel[a, b, c, o]`, zero outside
    the map, for strides `(s, t)` and padding `((top, bottom), (left, right))`.

    On a CPU it gathers patches and multiplies matrices, a few images at a time, and gathers again in the backward pass:
    XLA's own weight gradient is 20 to 100 times slower inside `scan` (docs/benchmarks.md). On any other
    platform it is `jax.lax.conv_general_dilated`. Both are built from differentiable primitives, so every transform
    works: grad, jvp, products with the Hessian, vmap over kernels, scan.

    Args:
        x: feature maps, channels last.
        kernel: same floating point type as `x`.
        window: strides and padding.

    Raises:
        TypeError: the types differ.
        ValueError: shapes that do not fit.
    """
    if x.dtype != kernel.dtype:
        raise TypeError(f"x is {x.dtype} and kernel {kernel.dtype}: must be of the same type, cast one of them")
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2] or 0 in kernel.shape:
        raise ValueError(
            f"x has shape {x.shape} and kernel {kernel.shape}: must be (batch, height, width, channels) and (height, "
            "width, channels, units), with the same channels and at least one unit"
        )
    return jax.lax.platform_dependent(
        x, kernel, cpu=partial(_by_patches, window=window), default=partial(_by_xla, window=window)
    )


def _by_xla(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, window.strides, window.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _by_patches(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    kernel_height, kernel_width, _, units = kernel.shape
    # Transposed, with units first, the kernel's gradient is a product of the gradient's rows with the patches; in the
    # other order it is one with the patches' columns, at two thirds of the speed.
    matrix = kernel.reshape(-1, units).T

    # The patches are kernel_height * kernel_width times as large as the map: gather them again in the backward pass
    # instead of keeping them. Inside `map` there is no common subexpression to protect against.
    @partial(jax.checkpoint, prevent_cse=False)
    def chunk(images: jax.Array) -> jax.Array:
        return jnp.einsum("nijp,up->niju", _patches(images, (kernel_height, kernel_width), window), matrix)

    batch, height, width, _ = x.shape
    positions = -(-height // window.strides[0]) * -(-width // window.strides[1])
    images = max(MIN_IMAGES_PER_CHUNK, ROWS_PER_CHUNK // positions)
    if batch <= images:
        return chunk(x)
    whole = batch - batch % images
    chunks = x[:whole].reshape(-1, images, *x.shape[1:])
    y = jax.lax.map(chunk, chunks)
    y = y.reshape(whole, *y.shape[2:])
    return y if whole == batch else jnp.concatenate([y, chunk(x[whole:])])


def _patches(x: jax.Array, kernel_size: tuple[int, int], window: Window) -> jax.Array:
    """`(batch, out_height, out_width, kernel_height * kernel_width * channels)`, in the order of a kernel's axes."""
    x = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    stops = [(size - k) // s * s + 1 for size, k, s in zip(x.shape[1:3], kernel_size, window.strides)]
    rows, columns = window.strides
    shifted = [
        x[:, a : a + stops[0] : rows, b : b + stops[1] : columns]
        for a in range(kernel_size[0])
        for b in range(kernel_size[1])
    ]
    return jnp.concatenate(shifted, axis=-1)


def max_pool(x: Float[Array, "batch height width units"], size: int = 2) -> Float[Array, "batch _ _ units"]:
    """Largest entry of each `size` x `size` square, stride `size`; rows and columns that fill no square are dropped.

    If entries tie, the gradient goes to the first of them in reading order, as in PyTorch. NaN counts as the largest.

    It uses an index, not a comparison with the maximum: XLA computes the pooled array once for the value and again for
    the gradient, and if the two differ in the last bit no entry equals the maximum; `jnp.max` then divides 0 by 0.
    Observed with jaxlib 0.10.2 for GELU and SiLU after a norm, without optimisation. It is as fast, with two thirds
    of the memory.
    """
    squares = jnp.moveaxis(_squares(x, size), 2, 3)
    squares = squares.reshape(*squares.shape[:3], size * size, squares.shape[-1])
    first = jnp.argmax(squares, axis=3, keepdims=True)
    places = jnp.arange(size * size)[None, None, None, :, None]
    return jnp.sum(jnp.where(places == first, squares, 0), axis=3)


def average_pool(x: Float[Array, "batch height width units"], size: int = 2) -> Float[Array, "batch _ _ units"]:
    """Mean of each `size` x `size` square, stride `size`; rows and columns that fill no square are dropped."""
    return jnp.mean(_squares(x, size), axis=(2, 4))


def _squares(x: jax.Array, size: int) -> jax.Array:
    """`(batch, rows of squares, size, columns of squares, size, units)`."""
    batch, height, width, units = x.shape
    rows, columns = height // size, width // size
    return x[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size, units)
