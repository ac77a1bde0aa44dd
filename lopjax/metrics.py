"""Symptoms of lost plasticity: functions from an array of activations (or backward signals) to one number.

Every function takes ``h`` of shape ``(samples, units)``. Bring convolutional maps and token sequences to that
shape first, units last: ``h.reshape(-1, h.shape[-1])`` for channels-last arrays. All functions are pure, keep
fixed shapes (so they work under ``jit`` and ``vmap``), compute in the dtype of ``h`` but at least in float32, and
are finite for finite input. A NaN or an infinity in ``h`` gives NaN: a diverged network must not look healthy.

Some names mean several things in the literature; here each meaning has its own (see the rank functions). Under
one ``jit`` XLA computes a decomposition once, however many of these functions use it.
"""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lopjax import linalg

Samples = Float[Array | np.ndarray, "samples units"]
Scalar = Float[Array, ""]
Spectrum = Literal["singular", "covariance", "second_moment"]


def _as_samples(h: Samples, name: str = "h") -> Float[Array, "samples units"]:
    """Check the shape, and leave half precision: neither an SVD nor a fourth moment survives it."""
    h = jnp.asarray(h)
    if h.ndim != 2 or 0 in h.shape:
        raise ValueError(
            f"{name} has shape {h.shape}: must be (samples, units), both at least 1; "
            f"use {name}.reshape(-1, {name}.shape[-1]) with the units last"
        )
    return h.astype(jnp.promote_types(h.dtype, jnp.float32))


def _scaled(h: Array, axis: int | None = None) -> tuple[Array, Array]:
    """Divide by the largest magnitude (by 1 where that is 0), so that squares neither overflow nor vanish."""
    largest = jnp.abs(h).max(axis=axis, keepdims=axis is not None)
    scale = jnp.where(largest == 0, 1, largest)
    return h / scale, scale


def _centred(h: Float[Array, "samples units"]) -> Float[Array, "samples units"]:
    """Subtract each unit's mean; subtracting one sample first makes constant units exactly zero.

    To be called before any scaling: compiled, ``a * h - b`` is one rounding, and equal entries no longer cancel.
    """
    h = h - h[:1]
    return h - h.mean(axis=0)


def _fraction(is_affected: Array, *inputs: Array) -> Scalar:
    """Share of units, NaN if an input is not finite (comparisons with NaN are silently false)."""
    is_finite = jnp.stack([jnp.isfinite(x).all() for x in inputs]).all()
    return jnp.where(is_finite, is_affected.mean(dtype=inputs[0].dtype), jnp.nan)


# --- Rank of the representation --------------------
def _singular_values(h: Float[Array, "samples units"], centred: bool = False) -> Float[Array, " rank"]:
    """Singular values of ``h / max|h|``, largest first; all metrics that use them are scale-free.

    From ``h`` itself: eigenvalues of the Gram matrix would lose half of the digits.
    """
    matrix, _ = _scaled(_centred(h) if centred else h)
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T  # tall: the cheaper orientation
    return linalg.singular_values(matrix)


def effective_rank(h: Samples, spectrum: Spectrum = "singular") -> Scalar:
    r"""Exponential of the Shannon entropy of a normalised spectrum: between 1 and ``min(samples, units)``.

    .. math:: \exp\Big(-\sum_i p_i \ln p_i\Big), \qquad p_i = w_i / \sum_j w_j

    Args:
        h: Activations, ``(samples, units)``.
        spectrum: What the weights ``w`` are. ``"singular"``: singular values of ``h``, uncentred (as in the
            experiments of arXiv 2510.00304). ``"covariance"``: eigenvalues of the centred covariance.
            ``"second_moment"``: eigenvalues of ``h.T @ h / samples`` (as in the theory of arXiv 2510.00304).

    Returns:
        The effective rank; 0 if the spectrum vanishes (all-zero ``h``; constant units for ``"covariance"``).

    Raises:
        ValueError: If ``spectrum`` is unknown or ``h`` is not a non-empty matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> print(effective_rank(jnp.eye(4)).round(3), effective_rank(jnp.ones((4, 3))).round(3))
        4.0 1.0

    References:
        Roy & Vetterli, *The effective rank: a measure of effective dimensionality*, EUSIPCO 2007.
    """
    if spectrum not in get_args(Spectrum):
        raise ValueError(f"spectrum={spectrum!r}: must be one of {', '.join(map(repr, get_args(Spectrum)))}")
    weights = _singular_values(_as_samples(h), centred=spectrum == "covariance")
    if spectrum != "singular":
        weights = weights**2
    total = weights.sum()
    entropy = jax.scipy.special.entr(weights / jnp.where(total == 0, 1, total)).sum()
    return jnp.where(total == 0, 0, jnp.exp(entropy))


def renyi2_rank(h: Samples) -> Scalar:
    r"""Participation ratio ``tr(C)**2 / tr(C @ C)`` of the centred covariance ``C``.

    1: one direction carries all variance; ``units``: the activations are isotropic. It is the exponential of the
    Renyi entropy of order 2 of the covariance spectrum; the code of arXiv 2510.00304 calls it "stable rank". Both
    traces are sums of squares, so no digits are lost and no SVD is needed.

    Args:
        h: Activations, ``(samples, units)``.

    Returns:
        The participation ratio; 0 if every unit is constant.
    """
    centred, _ = _scaled(_centred(_as_samples(h)))
    tall = centred if centred.shape[0] >= centred.shape[1] else centred.T
    gram = jnp.matmul(tall.T, tall, precision="highest")
    squares = (gram**2).sum()
    return jnp.trace(gram) ** 2 / jnp.where(squares == 0, 1, squares)


def stable_rank(h: Samples) -> Scalar:
    """Stable rank ``||h||_F**2 / ||h||_2**2`` in the textbook sense, uncentred: between 1 and the rank.

    Args:
        h: Activations, ``(samples, units)``.

    Returns:
        The stable rank; 0 for an all-zero ``h``.
    """
    squares = _singular_values(_as_samples(h)) ** 2
    return squares.sum() / jnp.where(squares[0] == 0, 1, squares[0])


def numerical_rank(h: Samples, tol: float | None = None) -> Scalar:
    """Number of singular values of ``h`` above ``tol`` times the largest.

    Args:
        h: Activations, ``(samples, units)``.
        tol: Relative tolerance; by default ``max(samples, units)`` times the machine epsilon, as in
            ``numpy.linalg.matrix_rank``.

    Returns:
        The rank as a floating-point number; 0 for an all-zero ``h``.
    """
    h = _as_samples(h)
    values = _singular_values(h)
    relative = max(h.shape) * float(jnp.finfo(h.dtype).eps) if tol is None else tol
    return jnp.where(jnp.isnan(values[0]), jnp.nan, (values > relative * values[0]).sum(dtype=h.dtype))


# --- Units that no longer contribute --------------------
def dead_fraction(h: Samples, zero_tolerance: float = 1e-7, threshold: float = 0.95) -> Scalar:
    """Fraction of units with ``|h| <= zero_tolerance`` on more than a fraction ``threshold`` of the samples.

    The convention of arXiv 2510.00304 (its code has ``<``; with ``<=`` a tolerance of 0 counts exact zeros).

    Args:
        h: Activations, ``(samples, units)``.
        zero_tolerance: Largest magnitude that counts as zero, in the units of ``h``.
        threshold: A unit is dead if it is zero on strictly more than this fraction of the samples.

    Returns:
        A fraction in [0, 1]; 1 for an all-zero ``h``, 0 for a constant of larger magnitude.
    """
    h = _as_samples(h)
    zero_share = (jnp.abs(h) <= zero_tolerance).mean(axis=0, dtype=h.dtype)
    return _fraction(zero_share > threshold, h)


def duplicate_fraction(h: Samples, threshold: float = 0.95) -> Scalar:
    """Fraction of units that a later unit repeats: cosine of the two activation vectors above ``threshold``.

    The convention of arXiv 2510.00304: cosines are not centred, and of ``c`` equal units ``c - 1`` count.

    Args:
        h: Activations, ``(samples, units)``.
        threshold: Smallest cosine (exclusive) of a duplicate.

    Returns:
        A fraction in [0, 1 - 1 / units]. All-zero units have no direction and are no duplicates; constant units
        of one sign duplicate one another; a single unit gives 0.
    """
    h = _as_samples(h)
    columns, _ = _scaled(h, axis=0)
    norms = jnp.linalg.norm(columns, axis=0)
    directions = columns / jnp.where(norms == 0, 1, norms)
    cosines = jnp.matmul(directions.T, directions, precision="highest")
    return _fraction((jnp.triu(cosines, k=1) > threshold).any(axis=1), h)


def saturated_fraction(h: Samples, grad: Samples, threshold: float = 1e-4, fraction: float = 0.99) -> Scalar:
    r"""Fraction of units whose backward signal is negligible beside their activation.

    Unit j is saturated if :math:`|g_{ij}| < \text{threshold} \cdot \frac1N \sum_k |h_{kj}|` on more than
    ``fraction`` of the samples i. The convention of arXiv 2510.00304; it is not scale-free: ``grad`` carries the
    1/N of a mean loss, so values compare only at equal batch size.

    Args:
        h: Activations, ``(samples, units)``.
        grad: Gradient of the mean loss with respect to ``h``, same shape.
        threshold: Largest ratio (exclusive) of the two magnitudes.
        fraction: A unit is saturated if the ratio is small on strictly more than this share of the samples.

    Returns:
        A fraction in [0, 1]. Mean activations below 1e-12 are raised to it, so a dead unit counts as saturated
        when its gradient is zero too.

    Raises:
        ValueError: If the shapes differ or are not ``(samples, units)``.
    """
    h, grad = _as_samples(h), _as_samples(grad, "grad")
    if h.shape != grad.shape:
        raise ValueError(f"grad has shape {grad.shape}: must be that of h, {h.shape}")
    magnitude = jnp.maximum(jnp.abs(h).mean(axis=0), 1e-12)
    small_share = (jnp.abs(grad) / magnitude < threshold).mean(axis=0, dtype=h.dtype)
    return _fraction(small_share > fraction, h, grad)


# --- Clones --------------------
def cloning_r2(h: Samples, factor: int) -> Scalar:
    """Share of the variance between units that their clusters of ``factor`` adjacent clones explain.

    :func:`partition_r2` with clusters ``0, ..., 0, 1, ..., 1, ...``: 1 for perfect clones, about ``1 / factor``
    for independent units. Call it with the backward signal of a layer for the backward R².

    Args:
        h: Activations or backward signals, ``(samples, units)``; the clones of a unit stand side by side.
        factor: Number of clones of each unit.

    Returns:
        R² in [0, 1]; 1 if all units are equal on each sample (an all-zero ``h`` included).

    Raises:
        ValueError: If ``factor`` is not a positive integer that divides the number of units.

    Example:
        >>> import jax.numpy as jnp
        >>> base = jnp.array([[1.0, 2.0], [3.0, -1.0]])
        >>> print(cloning_r2(jnp.repeat(base, 2, axis=1), factor=2), cloning_r2(jnp.tile(base, 2), factor=2))
        1.0 0.0
    """
    h = _as_samples(h)
    units = h.shape[1]
    if isinstance(factor, bool | np.bool_) or not isinstance(factor, Integral) or factor < 1 or units % factor:
        raise ValueError(f"factor={factor!r}: must be a positive integer that divides the number of units, {units}")
    return partition_r2(h, np.arange(units) // factor)


def partition_r2(h: Samples, clusters: Sequence[int] | np.ndarray) -> Scalar:
    r"""R² of a partition of the units into clusters of clones, of any sizes.

    .. math:: R^2 = 1 - \frac{\sum_x \sum_u (h_{xu} - \bar h_{x,c(u)})^2}{\sum_x \sum_u (h_{xu} - \bar h_x)^2}

    with the mean over the cluster of unit u above and the mean over all units of the same sample below: the
    within-cluster and the total variance across units, both with 1/units, pooled over the samples. (The code of
    arXiv 2510.00304 divides standard deviations instead; variances with 1/(n - 1) would double 1 - R² of pairs.)
    Independent units of equal mean and variance give ``(clusters - 1) / (units - 1)`` on average, not 0.

    Args:
        h: Activations or backward signals, ``(samples, units)``.
        clusters: The cluster id of each unit; static, so a tuple or a numpy array.

    Returns:
        R² in [0, 1]; 1 if all units are equal on each sample (an all-zero ``h`` included) or all are singletons.

    Raises:
        ValueError: If ``clusters`` does not name one cluster for each unit.
    """
    h = _as_samples(h)
    if len(clusters) != h.shape[1]:
        raise ValueError(f"clusters has {len(clusters)} entries: must name one cluster for each of {h.shape[1]} units")
    _, first, cluster, sizes = np.unique(
        np.asarray(clusters), return_index=True, return_inverse=True, return_counts=True
    )
    # Relative to one unit of their cluster, exact clones are exact zeros: R² is then exactly 1 at any size.
    shifted, scale = _scaled(h - h[:, :1])
    relative = (h - h[:, first[cluster]]) / scale
    means = jax.ops.segment_sum(relative.T, cluster, len(sizes)).T / sizes.astype(h.dtype)
    within = ((relative - means[:, cluster]) ** 2).sum()
    total = ((shifted - shifted.mean(axis=1, keepdims=True)) ** 2).sum()
    return 1 - within / jnp.where(total == 0, 1, total)


# --- Distance from a Gaussian --------------------
def _standardised(h: Float[Array, "samples units"]) -> tuple[Array, Array]:
    """Zero mean and unit variance (1/N) for each unit, and the standard deviations of ``h``."""
    deviation, scale = _scaled(_centred(h), axis=0)
    std = jnp.sqrt((deviation**2).mean(axis=0))
    return deviation / jnp.where(std == 0, 1, std), std * scale[0]


def _sorted_columns(z: Float[Array, "samples units"]) -> Float[Array, "samples units"]:
    """Sort each column through integers of the same order: XLA's CPU sort of floats is 4 times slower."""
    bits = {4: jnp.int32, 8: jnp.int64}[z.dtype.itemsize]

    def flip(i: Array) -> Array:  # an involution between the bits of a float and an integer of the same order
        return jnp.where(i < 0, i ^ jnp.iinfo(bits).max, i)

    ordered = jnp.sort(flip(jax.lax.bitcast_convert_type(z, bits)), axis=0, stable=False)
    return jax.lax.bitcast_convert_type(flip(ordered), z.dtype)


def ks_non_gaussianity(h: Samples, constant_tolerance: float = 1e-6) -> Scalar:
    r"""Kolmogorov-Smirnov distance of each standardised unit from a Gaussian, averaged over the units.

    For one unit, with z the sorted activations after division by their standard deviation (1/N):
    :math:`\max_i \max(i/N - \Phi(z_i),\ \Phi(z_i) - (i-1)/N)`, the two-sided statistic (as in the code of arXiv
    2510.00304).

    Args:
        h: Activations, ``(samples, units)``.
        constant_tolerance: Units with a standard deviation below this (on the scale of ``h``) count as constant.

    Returns:
        A number in [0, 1]; constant units contribute 1.
    """
    z, std = _standardised(_as_samples(h))
    cdf = jax.scipy.stats.norm.cdf(_sorted_columns(z))
    upper = jnp.arange(1, z.shape[0] + 1, dtype=z.dtype)[:, None] / z.shape[0]
    distance = jnp.maximum(upper - cdf, cdf - (upper - 1 / z.shape[0])).max(axis=0)
    return jnp.where(std < constant_tolerance, 1, distance).mean()


def excess_kurtosis(h: Samples, constant_tolerance: float = 1e-6, cap: float = 10.0) -> Scalar:
    """Magnitude of the excess kurtosis of each unit, capped, averaged over the units: 0 for Gaussian units.

    For one unit ``min(|m4 / m2**2 - 3|, cap)`` with central moments (1/N). The convention of arXiv 2510.00304:
    light and heavy tails do not cancel.

    Args:
        h: Activations, ``(samples, units)``.
        constant_tolerance: Units with a standard deviation below this (on the scale of ``h``) count as constant.
        cap: Largest contribution of a unit.

    Returns:
        A number in [0, cap]; constant units contribute ``cap``.
    """
    z, std = _standardised(_as_samples(h))
    kurtosis = jnp.abs((z**4).mean(axis=0) - 3)
    return jnp.where(std < constant_tolerance, cap, jnp.minimum(kurtosis, cap)).mean()
