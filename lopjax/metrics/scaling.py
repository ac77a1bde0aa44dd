"""Scale-free metrics by exact multiplication with powers of two, taken from the bits of the numbers.

Squares and sums of finite numbers overflow from 1e19 on in float32 and vanish below 1e-19; dividing by the largest
entry fails at both ends, where its reciprocal is subnormal (XLA flushes it to zero on a CPU) or infinite. Scaling by a
power of two is exact: constant units stay constant and clones stay equal. The factor is also constant under small
changes, so it counts as a constant for derivatives.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lopjax.arguments.numbers import check_numbers

Samples = Float[Array | np.ndarray, "samples units"]
Scalar = Float[Array, ""]


def as_samples(h: Samples, name: str = "h") -> Float[Array, "samples units"]:
    """Check shape and type, and leave half precision: neither an SVD nor a fourth moment survives it."""
    check_numbers(name, h)
    h = jnp.asarray(h)
    if h.ndim != 2 or 0 in h.shape:
        raise ValueError(
            f"{name} has shape {h.shape}: must be (samples, units), both at least 1; "
            f"use {name}.reshape(-1, {name}.shape[-1]) with the units last"
        )
    if jnp.issubdtype(h.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name} has dtype {h.dtype}: must be real; pass jnp.abs({name}), or its real and imaginary parts"
        )
    return h.astype(jnp.promote_types(h.dtype, jnp.float32))


def magnitude_bits(h: Float[Array, "..."]) -> Int[Array, "..."]:
    """The bits of `|h|` as an integer: ordered like `|h|`, without flushing subnormal numbers to zero."""
    integer = {4: jnp.int32, 8: jnp.int64}[h.dtype.itemsize]
    return jax.lax.bitcast_convert_type(h, integer) & jnp.iinfo(integer).max


def scaled(h: Float[Array, "..."], axis: int | None = None) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    """`h * 2**-exponent`, exact, with the largest magnitude in [1/2, 1); zeros and non-finite values are kept.

    Args:
        h: float32 or float64, of any finite size, subnormal numbers included.
        axis: scale each slice along this axis separately; None to scale the whole array at once.

    Returns:
        The scaled array, and the exponents with `axis` of size 1 (None: a scalar).
    """
    bits, info = magnitude_bits(h), jnp.finfo(h.dtype)
    largest = bits.max(axis=axis, keepdims=axis is not None)
    bias, significand = info.maxexp - 1, info.nmant
    # A subnormal number is its bits, read as an integer, times 2**lowest.
    lowest = 1 - bias - significand
    of_subnormal = 8 * h.dtype.itemsize - jax.lax.clz(largest) + lowest
    exponent = jnp.where(largest >> significand > 0, (largest >> significand) - (bias - 1), of_subnormal)
    exponent = jax.lax.stop_gradient(jnp.where(largest == 0, 0, exponent))
    first = times_power_of_two(h, -exponent)
    is_subnormal = (bits > 0) & (bits >> significand == 0)
    whole = jnp.where(jax.lax.bitcast_convert_type(h, bits.dtype) < 0, -bits, bits).astype(h.dtype)
    # In the product a subnormal number may be flushed to zero, in its integer it is not. Derivatives come from the
    # product.
    missing = jnp.where(is_subnormal, times_power_of_two(whole, lowest - exponent) - first, 0)
    return first + jax.lax.stop_gradient(missing), exponent


def times_power_of_two(h: Float[Array, "..."], exponent: Int[Array, "..."]) -> Float[Array, "..."]:
    """`h * 2**exponent`, rounded only if the result is subnormal; 0 or infinite beyond the range of the type.

    Two factors, because a single one could overflow where the product does not.
    """
    half = exponent // 2
    return h * _power_of_two(half, h.dtype) * _power_of_two(exponent - half, h.dtype)


def _power_of_two(exponent: Int[Array, "..."], dtype: jnp.dtype) -> Float[Array, "..."]:
    """A normal power of two from its bits; exponents out of range are clipped."""
    info = jnp.finfo(dtype)
    bias, bits = info.maxexp - 1, {4: jnp.int32, 8: jnp.int64}[dtype.itemsize]
    field = (jnp.clip(exponent, 1 - bias, bias) + bias).astype(bits) << info.nmant
    return jax.lax.bitcast_convert_type(field, dtype)


def on_one_scale(
    parts: Float[Array, "..."], exponents: Int[Array, "..."], axis: int
) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    """Bring separately scaled slices to one scale, with the largest entry of all in [1/2, 1).

    Args:
        parts: slices along `axis`, each divided by its own `2**exponents`.
        exponents: with `axis` of size 1.
        axis: as in `scaled`.

    Returns:
        The array on one scale, and the exponents by which the slices were shifted.
    """
    parts, more = scaled(parts, axis)
    total = exponents + more
    is_zero = (parts == 0).all(axis=axis, keepdims=True)
    shift = total - jnp.where(is_zero, jnp.iinfo(total.dtype).min, total).max()
    shift = jnp.where(is_zero, 0, shift)
    return times_power_of_two(parts, shift), shift - more


def centred(h: Float[Array, "samples units"]) -> tuple[Float[Array, "samples units"], Int[Array, "1 units"]]:
    """Subtract each unit's mean: `(h - mean) / 2**exponent`, unit by unit, with the exponents.

    Subtracting one sample first makes constant units exactly zero; scaling before that keeps the difference of two
    large numbers finite, and rounds nothing.
    """
    h, exponent = scaled(h, axis=0)
    h = h - h[:1]
    return h - h.mean(axis=0, keepdims=True), exponent


def share_of_units(is_affected: Array, *inputs: Array) -> Scalar:
    """Fraction of units; NaN if an input is not finite, since comparisons with NaN are false."""
    is_finite = jnp.stack([jnp.isfinite(x).all() for x in inputs]).all()
    return jnp.where(is_finite, is_affected.mean(dtype=inputs[0].dtype), jnp.nan)
