"""How far units are from Gaussian: distance between distribution functions, and kurtosis."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopjax.metrics.scaling import Samples, Scalar, as_samples, centred, scaled, times_power_of_two


def _standardised(h: Float[Array, "samples units"]) -> tuple[Array, Array]:
    """Zero mean and unit variance (1/N) for each unit, and the standard deviations of `h`, `(1, units)`."""
    parts, exponent = centred(h)
    deviation, more = scaled(parts, axis=0)
    variance = (deviation**2).mean(axis=0, keepdims=True)
    # A constant unit is divided by 1, since the square root has no derivative at 0.
    std = jnp.sqrt(jnp.where(variance == 0, 1, variance))
    return deviation / std, jnp.where(variance == 0, 0, times_power_of_two(std, exponent + more))


@jax.custom_jvp
def sorted_columns(z: Float[Array, "samples units"]) -> Float[Array, "samples units"]:
    """Sort each column as integers in the same order: XLA's CPU sort of floats is 4 times slower."""
    bits = {4: jnp.int32, 8: jnp.int64}[z.dtype.itemsize]

    def flip(i: Array) -> Array:  # an involution between the bits of a float and an integer with the same ordering
        return jnp.where(i < 0, i ^ jnp.iinfo(bits).max, i)

    ordered = jnp.sort(flip(jax.lax.bitcast_convert_type(z, bits)), axis=0, stable=False)
    return jax.lax.bitcast_convert_type(flip(ordered), z.dtype)


@sorted_columns.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Bits have no derivative; the tangents are permuted with the entries."""
    order = jnp.argsort(primals[0], axis=0)
    return sorted_columns(primals[0]), jnp.take_along_axis(tangents[0], order, axis=0)


def ks_non_gaussianity(h: Samples, constant_tolerance: float = 1e-6) -> Scalar:
    r"""Kolmogorov-Smirnov distance of each standardised unit from a Gaussian, averaged over the units.

    For one unit, with z the sorted activations after division by their standard deviation (1/N):
    :math:`\max_i \max(i/N - \Phi(z_i),\ \Phi(z_i) - (i-1)/N)`, the two-sided statistic (as in the code of arXiv
    2510.00304).

    Args:
        h: activations, `(samples, units)`.
        constant_tolerance: units with a standard deviation below this (on the scale of `h`) count as constant.

    Returns:
        A number in [0, 1]; constant units contribute 1.
    """
    z, std = _standardised(as_samples(h))
    cdf = jax.scipy.stats.norm.cdf(sorted_columns(z))
    upper = jnp.arange(1, z.shape[0] + 1, dtype=z.dtype)[:, None] / z.shape[0]
    distance = jnp.maximum(upper - cdf, cdf - (upper - 1 / z.shape[0])).max(axis=0, keepdims=True)
    return jnp.where(std < constant_tolerance, 1, distance).mean()


def excess_kurtosis(h: Samples, constant_tolerance: float = 1e-6, cap: float = 10.0) -> Scalar:
    """Magnitude of the excess kurtosis of each unit, capped, averaged over the units: 0 for Gaussian units.

    For one unit `min(|m4 / m2**2 - 3|, cap)` with central moments (1/N). This is the convention of arXiv 2510.00304:
    light and heavy tails do not cancel.

    Args:
        h: activations, `(samples, units)`.
        constant_tolerance: units with a standard deviation below this (on the scale of `h`) count as constant.
        cap: largest contribution of a unit.

    Returns:
        A number in [0, cap]; constant units contribute `cap`.
    """
    z, std = _standardised(as_samples(h))
    kurtosis = jnp.abs((z**4).mean(axis=0, keepdims=True) - 3)
    return jnp.where(std < constant_tolerance, cap, jnp.minimum(kurtosis, cap)).mean()
