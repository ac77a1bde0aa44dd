"""What a plain kernel reads and writes, as rows: one row per sample and position of the unit space between the kernels.

The blocks of a unit are sums over these rows, `A = sum phi phi'` and `B = sum phi delta'` with weights. Feature maps
have their channels last; columns are in the order of the kernel's axes.
"""

from itertools import product
from math import prod

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopjax.wiring import Window


def incoming_features(
    source: Float[Array, "samples ..."],
    kernel_shape: tuple[int, ...],
    window: Window | None,
    source_counts: Float[Array, "sources"],
    has_bias: bool,
) -> Float[Array, "rows features"]:
    """`phi = (sqrt(n_i) h_i for every kernel entry, 1)`: the gradient of the pre-activation by incoming parameters.

    Args:
        source: activations that the kernel reads, `(samples, ..., sources)`; inputs may have any shape.
        kernel_shape: `(..., sources, units)`.
        window: how a convolution kernel slides; without one, all axes of the kernel but the last are contracted.
        source_counts: the number of clones n_i of each source unit.
        has_bias: whether to append the column of ones.
    """
    size = prod(kernel_shape[:-1])
    if window is not None:
        offsets = product(*map(range, kernel_shape[:-2]))
        source = jnp.stack([_shift(source, offset, kernel_shape[:-2], window) for offset in offsets], axis=-2)
    rows = source.reshape(-1, size) * jnp.broadcast_to(jnp.sqrt(source_counts), kernel_shape[:-1]).reshape(-1)
    return jnp.concatenate([rows, jnp.ones((len(rows), 1), rows.dtype)], axis=1) if has_bias else rows


def outgoing_signals(
    delta: Float[Array, "samples ... targets"],
    kernel_shape: tuple[int, ...],
    window: Window | None,
    map_shape: tuple[int, ...],
    target_counts: Float[Array, "targets"],
) -> Float[Array, "rows columns"]:
    """`delta_next`, column k divided by `sqrt(n_k)`: the loss's derivative with respect to the outgoing terms.

    One column per kernel entry `(..., target)`. For a convolution the entry at an offset is the signal at the position
    that reads this one through that offset, zero where there is none. For a kernel over whole feature maps (flatten,
    then dense) every position is a separate offset: the row of a position has its signal in that position's columns.

    Args:
        delta: backward signal dL/dz where the kernel writes.
        kernel_shape: `(..., units, targets)`.
        window: how a convolution kernel slides.
        map_shape: shape of the grid of positions of the units between the kernels: `()` for a dense layer.
        target_counts: the number of clones n_k of each target unit.
    """
    delta = delta / jnp.sqrt(target_counts)
    targets, kernel_size = kernel_shape[-1], kernel_shape[:-2]
    if window is not None:
        offsets = product(*map(range, kernel_size))
        spread = [_unshift(delta, offset, kernel_size, window, map_shape) for offset in offsets]
        return jnp.stack(spread, axis=-2).reshape(-1, prod(kernel_size) * targets)
    if not kernel_size:
        return delta.reshape(-1, targets)
    positions = prod(kernel_size)
    by_position = jnp.einsum("st,nk->nstk", jnp.eye(positions, dtype=delta.dtype), delta.reshape(-1, targets))
    return by_position.reshape(-1, positions * targets)


def _shift(maps: Array, offset: tuple[int, ...], kernel_size: tuple[int, ...], window: Window) -> Array:
    """What the outputs of a convolution read through one offset of its kernel: `(samples, out positions, units)`."""
    padded = jnp.pad(maps, ((0, 0), *window.padding, (0, 0)))
    slices = [
        slice(start, start + (size - k) // stride * stride + 1, stride)
        for start, size, k, stride in zip(offset, padded.shape[1:-1], kernel_size, window.strides, strict=True)
    ]
    return padded[(slice(None), *slices)]


def _unshift(
    delta: Array, offset: tuple[int, ...], kernel_size: tuple[int, ...], window: Window, map_shape: tuple[int, ...]
) -> Array:
    """The transpose of `_shift`: at each position the signal of the output that reads it through the offset."""
    maps = jax.ShapeDtypeStruct((delta.shape[0], *map_shape, delta.shape[-1]), delta.dtype)
    return jax.linear_transpose(lambda x: _shift(x, offset, kernel_size, window), maps)(delta)[0]
