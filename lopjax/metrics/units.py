"""Units that no longer contribute: dead, dormant, duplicate and saturated units, each by a published definition."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lopjax.metrics.scaling import (
    Samples,
    Scalar,
    as_samples,
    magnitude_bits,
    scaled,
    share_of_units,
    times_power_of_two,
)


def dead_units(h: Samples, zero_tolerance: float = 1e-7, threshold: float = 0.95) -> Bool[Array, " units"]:
    """The units that `dead_fraction` counts; same arguments."""
    h = as_samples(h)
    tolerance = jnp.asarray(zero_tolerance, h.dtype)
    is_zero = (magnitude_bits(h) <= magnitude_bits(tolerance)) & (tolerance >= 0)
    return is_zero.mean(axis=0, dtype=h.dtype) > threshold


def dead_fraction(h: Samples, zero_tolerance: float = 1e-7, threshold: float = 0.95) -> Scalar:
    """Fraction of units with `|h| <= zero_tolerance` on more than a fraction `threshold` of the samples.

    The convention of arXiv 2510.00304 (its code has `<`; with `<=` a tolerance of 0 counts exact zeros).

    Args:
        h: activations, `(samples, units)`.
        zero_tolerance: largest magnitude that counts as zero, in the units of `h`.
        threshold: a unit is dead if it is zero on strictly more than this fraction of the samples.

    Returns:
        A fraction in [0, 1]; 1 for an all-zero `h`, 0 for a constant of larger magnitude.
    """
    h = as_samples(h)
    return share_of_units(dead_units(h, zero_tolerance, threshold), h)


def dormant_scores(h: Samples) -> Float[Array, " units"]:
    r"""ReDo's score of every unit: its mean magnitude over the mean of the same over the layer.

    .. math:: s_j = \frac{\frac1N \sum_i |h_{ij}|}{\frac1n \sum_k \frac1N \sum_i |h_{ik}|}

    The mean score of a layer is therefore 1. (The paper's text says that they sum to 1; its formula and its code divide
    by the mean, as here, and its thresholds refer to that.) Unlike code that adds 1e-9 to the denominator, this is
    scale-free.

    Args:
        h: activations, `(samples, units)`; for a convolution, positions count as samples.

    Returns:
        The scores, at least 0; all 0 for an all-zero `h`.

    Example:
        >>> import jax.numpy as jnp
        >>> print(dormant_scores(jnp.array([[0.0, 1.0, -3.0]])))
        [0.   0.75 2.25]

    References:
        Sokar, Agarwal, Castro & Evci, *The Dormant Neuron Phenomenon in Deep Reinforcement Learning*, arXiv
        2302.12902, equation 1.
    """
    magnitudes = jnp.abs(scaled(as_samples(h))[0]).mean(axis=0)
    mean = magnitudes.mean()
    return jnp.where(jnp.isfinite(mean), magnitudes / jnp.where(mean == 0, 1, mean), jnp.nan)


def dormant_fraction(h: Samples, threshold: float = 0.025) -> Scalar:
    r"""The dormant ratio of ReDo: fraction of units whose `dormant_scores` are at most `threshold`.

    This differs from `dead_fraction`: a dormant unit is weak compared with its layer, a dead one is zero.

    Args:
        h: activations, `(samples, units)`.
        threshold: :math:`\tau`, inclusive; 0.025 is the default of the authors' code; their runs also use 0.1. 0 counts
            units that are exactly zero on every sample.

    Returns:
        A fraction in [0, 1]; 1 for an all-zero `h`.

    References:
        arXiv 2302.12902, section 3.
    """
    h = as_samples(h)
    return share_of_units(dormant_scores(h) <= threshold, h)


def duplicate_fraction(h: Samples, threshold: float = 0.95, signed: bool = True) -> Scalar:
    """Fraction of units duplicated by a later unit: the cosine of the two activation vectors is above `threshold`.

    The convention of arXiv 2510.00304: cosines are uncentred, and `c - 1` of `c` equal units count.

    Args:
        h: activations, `(samples, units)`.
        threshold: smallest cosine (exclusive) of a duplicate.
        signed: whether a unit and its negative count as different, as in arXiv 2510.00304. If False, the magnitude of
            the cosine is used: for an odd activation function a unit of opposite sign is as redundant as a copy.

    Returns:
        A fraction in [0, 1 - 1 / units]. All-zero units have no direction and are not duplicates; constant units of the
        same sign are duplicates of one another; a single unit gives 0.
    """
    h = as_samples(h)
    columns, _ = scaled(h, axis=0)
    norms = jnp.linalg.norm(columns, axis=0, keepdims=True)
    directions = columns / jnp.where(norms == 0, 1, norms)
    cosines = jnp.matmul(directions.T, directions, precision="highest")
    cosines = cosines if signed else jnp.abs(cosines)
    return share_of_units((jnp.triu(cosines, k=1) > threshold).any(axis=1), h)


def saturated_fraction(h: Samples, grad: Samples, threshold: float = 1e-4, fraction: float = 0.99) -> Scalar:
    r"""Fraction of units whose backward signal is negligible compared with their activation.

    Unit j is saturated if :math:`|g_{ij}| < \text{threshold} \cdot \frac1N \sum_k |h_{kj}|` on more than
    `fraction` of the samples i. This is the convention of arXiv 2510.00304. It is not scale-free: `grad` contains the
    factor 1/N of a mean loss, so values are comparable only at equal batch sizes.

    Args:
        h: activations, `(samples, units)`.
        grad: gradient of the mean loss with respect to `h`, same shape.
        threshold: largest ratio (exclusive) of the two magnitudes.
        fraction: a unit is saturated if the ratio is small on strictly more than this fraction of the samples.

    Returns:
        A fraction in [0, 1]. Mean activations below 1e-12 are raised to it, so a dead unit counts as saturated
        when its gradient is zero too.

    Raises:
        ValueError: the shapes differ or are not `(samples, units)`.
    """
    h, grad = as_samples(h), as_samples(grad, "grad")
    if h.shape != grad.shape:
        raise ValueError(f"grad has shape {grad.shape}: must be that of h, {h.shape}")
    columns, exponent = scaled(h, axis=0)
    magnitude = jnp.maximum(times_power_of_two(jnp.abs(columns).mean(axis=0, keepdims=True), exponent), 1e-12)
    # A product, because the quotient of two large numbers uses a reciprocal that is flushed to zero.
    is_small = jnp.abs(grad) < (threshold * magnitude).astype(grad.dtype)
    return share_of_units(is_small.mean(axis=0, dtype=h.dtype) > fraction, h, grad)
