"""Ranks of a representation: how many directions the activations use, in five senses from the literature."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopjax import linalg
from lopjax.metrics.scaling import Samples, Scalar, as_samples, centred, on_one_scale, scaled

Spectrum = Literal["singular", "covariance", "second_moment"]


def _singular_values(h: Float[Array, "samples units"], is_centred: bool = False) -> Float[Array, " rank"]:
    """Singular values of `h` times a power of two, largest first; all metrics that use them are scale-free.

    Computed from `h` itself: eigenvalues of the Gram matrix would lose half of the digits.
    """
    matrix = _deviations(h) if is_centred else scaled(h)[0]
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T  # tall: the cheaper orientation
    return linalg.singular_values(matrix)


def _deviations(h: Float[Array, "samples units"]) -> Float[Array, "samples units"]:
    """`h` minus the mean of each unit, times a power of two that scales the largest deviation into [1/2, 1)."""
    return on_one_scale(*centred(h), axis=0)[0]


def effective_rank(h: Samples, spectrum: Spectrum = "singular") -> Scalar:
    r"""Exponential of the Shannon entropy of a normalised spectrum: between 1 and `min(samples, units)`.

    .. math:: \exp\Big(-\sum_i p_i \ln p_i\Big), \qquad p_i = w_i / \sum_j w_j

    The gradient is that of the formula where it exists. For `"singular"` it does not exist at a singular value of 0 (a
    dead unit): the slope diverges like :math:`-\ln p`, in an arbitrary direction. By convention such values, up to
    `max(samples, units)` times the machine epsilon of the largest, contribute nothing to the gradient. For the other
    spectra their contribution *is* 0, since :math:`w` is a square.

    Args:
        h: activations, `(samples, units)`.
        spectrum: the weights `w`. `"singular"`: singular values of `h`, uncentred (as in the experiments of arXiv
            2510.00304). `"covariance"`: eigenvalues of the centred covariance. `"second_moment"`: eigenvalues of `h.T @
            h / samples` (as in the theory of arXiv 2510.00304).

    Returns:
        The effective rank; 0 if the spectrum vanishes (all-zero `h`; constant units for `"covariance"`).

    Raises:
        ValueError: `spectrum` is unknown or `h` is not a non-empty real matrix.

    Example:
        >>> import jax.numpy as jnp
        >>> print(effective_rank(jnp.eye(4)).round(3), effective_rank(jnp.ones((4, 3))).round(3))
        4.0 1.0

    References:
        Roy & Vetterli, *The effective rank: a measure of effective dimensionality*, EUSIPCO 2007.
    """
    if spectrum not in get_args(Spectrum):
        raise ValueError(f"spectrum={spectrum!r}: must be one of {', '.join(map(repr, get_args(Spectrum)))}")
    h = as_samples(h)
    weights = _singular_values(h, is_centred=spectrum == "covariance")
    if spectrum == "singular":
        is_null = weights <= _rounding(h) * weights[0]
        weights = jnp.where(is_null, jax.lax.stop_gradient(weights), weights)
    else:
        weights = weights**2
    total = weights.sum()
    shares = weights / jnp.where(total == 0, 1, total)
    # p ln p is 0 at 0 and at 1, but has a finite slope only at 1; NaN stays NaN.
    entropy = jax.scipy.special.entr(jnp.where(shares == 0, 1, shares)).sum()
    return jnp.where(total == 0, 0, jnp.exp(entropy))


def _rounding(h: Float[Array, "samples units"]) -> float:
    """Singular values below this fraction of the largest are rounding errors, as in `numpy.linalg.matrix_rank`."""
    return max(h.shape) * float(jnp.finfo(h.dtype).eps)


def renyi2_rank(h: Samples) -> Scalar:
    r"""Participation ratio `tr(C)**2 / tr(C @ C)` of the centred covariance `C`.

    It is 1 if one direction carries all the variance, and `units` if the activations are isotropic. It is the
    exponential of the Renyi entropy of order 2 of the covariance spectrum; the code of arXiv 2510.00304 calls it
    "stable rank". Both traces are sums of squares, so no digits are lost and no SVD is needed.

    Args:
        h: activations, `(samples, units)`.

    Returns:
        The participation ratio; 0 if every unit is constant.
    """
    deviation = _deviations(as_samples(h))
    tall = deviation if deviation.shape[0] >= deviation.shape[1] else deviation.T
    gram = jnp.matmul(tall.T, tall, precision="highest")
    squares = (gram**2).sum()
    return jnp.trace(gram) ** 2 / jnp.where(squares == 0, 1, squares)


def stable_rank(h: Samples) -> Scalar:
    """Stable rank `||h||_F**2 / ||h||_2**2` in the textbook sense, uncentred: between 1 and the rank.

    Args:
        h: activations, `(samples, units)`.

    Returns:
        The stable rank; 0 for an all-zero `h`.
    """
    squares = _singular_values(as_samples(h)) ** 2
    return squares.sum() / jnp.where(squares[0] == 0, 1, squares[0])


def numerical_rank(h: Samples, tol: float | None = None) -> Scalar:
    """Number of singular values of `h` above `tol` times the largest.

    Args:
        h: activations, `(samples, units)`.
        tol: relative tolerance; by default `max(samples, units)` times the machine epsilon, as in
            `numpy.linalg.matrix_rank`.

    Returns:
        The rank as a floating-point number; 0 for an all-zero `h`.
    """
    h = as_samples(h)
    values = _singular_values(h)
    relative = _rounding(h) if tol is None else tol
    return jnp.where(jnp.isnan(values[0]), jnp.nan, (values > relative * values[0]).sum(dtype=h.dtype))


def srank(h: Samples, delta: float = 0.01) -> Scalar:
    r"""Effective dimension of Kumar et al.: number of singular values that make up `1 - delta` of their sum.

    .. math:: \min\Big\{k : \sum_{i \le k} \sigma_i \ge (1 - \delta) \sum_i \sigma_i\Big\}

    It uses singular values, not their squares, without centring. A sum that misses the bound only by rounding (4
    machine epsilons of the total) counts as reaching it: 100 equal singular values give 99 at `delta=0.01`.

    Args:
        h: activations, `(samples, units)`.
        delta: :math:`\delta` in [0, 1).

    Returns:
        The number k as a floating-point number; 0 for an all-zero `h`.

    Raises:
        ValueError: `delta` is outside [0, 1) or `h` is not a non-empty real matrix.

    References:
        Kumar, Agarwal, Ghosh & Levine, *Implicit Under-Parameterization Inhibits Data-Efficient Deep Reinforcement
        Learning*, arXiv 2010.14498, section 3.
    """
    if not 0 <= delta < 1:
        raise ValueError(f"delta={delta!r}: must be in [0, 1)")
    h = as_samples(h)
    values = _singular_values(h)
    tails = jnp.flip(jnp.cumsum(jnp.flip(values)))  # sum of the values from k on
    needed = tails > (delta + 4 * float(jnp.finfo(h.dtype).eps)) * tails[0]
    return jnp.where(jnp.isnan(tails[0]), jnp.nan, needed.sum(dtype=h.dtype))
