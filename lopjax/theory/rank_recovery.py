"""Rank of Gaussian representations before and after an activation: exact, and by the paper's formulas."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from lopjax.arguments.numbers import takes_numbers
from lopjax.theory.hermite import Function, require_float64
from lopjax.theory.kernels import kernel_map
from lopjax.theory.moments import is_traced, rounding_of


@takes_numbers(eps=None)
def equicorrelated_effective_rank(num_units: int, eps: Float[Array, "..."] | float) -> Float[Array, "..."]:
    """Compute the effective rank of n units that are all correlated by 1 - eps, exactly.

    The correlation matrix has the eigenvalue `1 + (n-1)(1-eps)` once and `eps` n - 1 times. With
    `delta = eps (n-1)/n` and `L = ln(n / eps)` the entropy of the normalised eigenvalues is
    `-(1-delta) ln(1-delta) + delta L`, and the effective rank is its exponential.

    Args:
        num_units: n, at least 2.
        eps: distance of the correlations from 1, in [0, n/(n-1)] (beyond, no such matrix exists).

    Returns:
        The effective rank between 1 and n, of the shape of `eps`; NaN for an eps that is out of range under `jit`.

    Raises:
        ValueError: `num_units` or eps is out of range.
        RuntimeError: double precision is off.

    Example:
        >>> with jax.enable_x64(True):
        ...     [round(float(equicorrelated_effective_rank(10, eps)), 6) for eps in (0.0, 1.0)]
        [1.0, 10.0]

    References:
        Roy & Vetterli, The effective rank (2007); arXiv 2510.00304, section 4.
    """
    require_float64()
    if num_units < 2:
        raise ValueError(f"num_units={num_units}: must be at least 2")
    distances, largest = jnp.asarray(eps), num_units / (num_units - 1)
    slack, eps = rounding_of(distances), distances.astype(float)
    if not is_traced(eps) and not np.all((np.asarray(eps) >= -slack) & (np.asarray(eps) <= largest + slack)):
        raise ValueError(f"eps={eps}: must lie in [0, n/(n-1)] = [0, {largest:.6g}]")
    # A value below 0 by rounding alone counts as 0; a value far outside gives NaN under jit.
    eps = jnp.where((eps < 0) & (eps >= -slack), 0.0, eps)
    delta = jnp.minimum(eps / largest, 1.0)
    # xlogy is 0 at 0; (n - 1) eigenvalues eps / n each.
    small = -(num_units - 1) * jax.scipy.special.xlogy(eps / num_units, eps / num_units)
    return jnp.exp(small - jax.scipy.special.xlogy(1 - delta, 1 - delta))


def _corrected_gain(num_units: int, eps, alpha):
    delta, log = eps * (num_units - 1) / num_units, jnp.log(num_units / eps)
    return jnp.exp(delta * (alpha * (1 + log) - jax.scipy.special.xlog1py(1 + alpha, alpha)))


def _leading_log_gain(num_units: int, eps, alpha):
    return jnp.exp(alpha * eps * (num_units - 1) / num_units * jnp.log(num_units / eps))


def _linear_gain(num_units: int, eps, alpha):
    del num_units
    return 1 + alpha * eps


RANK_GAIN_FORMULAS: Mapping[str, Callable[..., Float[Array, "..."]]] = MappingProxyType(
    {"corrected": _corrected_gain, "leading_log": _leading_log_gain, "linear": _linear_gain}
)
"""Approximations of er(C_f) / er(C) as functions of n, eps and alpha; see `rank_gain`."""


@takes_numbers(eps=None, alpha=None)
def rank_gain(
    num_units: int,
    eps: Float[Array, "..."] | float,
    alpha: Float[Array, "..."] | float,
    formula: str = "corrected",
) -> Float[Array, "..."]:
    """Approximate the factor by which an activation multiplies the effective rank of equicorrelated units.

    With `delta = eps (n-1)/n`, `L = ln(n / eps)` and correlations 1 - (1 + alpha) eps after the activation:

    - "corrected": `exp(delta [alpha (1 + L) - (1 + alpha) ln(1 + alpha)])`, relative error O(delta² L).
    - "leading_log": `exp(delta alpha L)`, the form of the paper's appendix: correct only in the limit L -> infinity,
        that is, up to a relative error 1/L in the exponent.
    - "linear": `1 + alpha eps`, the form of the paper's main text: wrong at leading order, as it lacks the factor L.

    Args:
        num_units: n.
        eps: distance of the correlations from 1 before the activation, positive.
        alpha: `lopjax.theory.alpha` of the activation, centred if the covariance is.
        formula: one of `RANK_GAIN_FORMULAS`.

    Returns:
        The approximate er(C_f) / er(C), of the broadcast shape. Exact: `exact_rank_gain`.

    Raises:
        ValueError: an unknown formula, fewer than 2 units, an eps that is not positive or an alpha below -1.
        RuntimeError: double precision is off.

    References:
        arXiv 2510.00304, section 4 and appendix A.
    """
    require_float64()
    if formula not in RANK_GAIN_FORMULAS:
        raise ValueError(f"formula={formula!r}: must be one of {', '.join(RANK_GAIN_FORMULAS)}")
    if num_units < 2:
        raise ValueError(f"num_units={num_units}: must be at least 2")
    eps, alpha = jnp.asarray(eps, float), jnp.asarray(alpha, float)
    if not is_traced(eps) and not np.all((np.asarray(eps) > 0) & np.isfinite(np.asarray(eps))):
        raise ValueError(f"eps={eps}: must be positive and finite")
    if not is_traced(alpha) and not np.all((np.asarray(alpha) >= -1) & np.isfinite(np.asarray(alpha))):
        raise ValueError(f"alpha={alpha}: must be at least -1 and finite")
    return RANK_GAIN_FORMULAS[formula](num_units, eps, alpha)


@takes_numbers(eps=None, gap=None)
def exact_rank_gain(
    num_units: int, eps: Float[Array, "..."] | float, gap: Float[Array, "..."] | float
) -> Float[Array, "..."]:
    """Compute er(C_f) / er(C) exactly, from the distance of the correlations from 1 on both sides.

    Args:
        num_units: n, at least 2.
        eps: distance from 1 before the activation.
        gap: distance from 1 after it, `lopjax.theory.kernel_gap(f, eps)`.

    Returns:
        The ratio, of the broadcast shape.

    Raises:
        ValueError: as in `equicorrelated_effective_rank`.
    """
    return equicorrelated_effective_rank(num_units, gap) / equicorrelated_effective_rank(num_units, eps)


@takes_numbers(correlation=2)
def activation_covariance(
    f: Function, correlation: Shaped[Array | np.ndarray, "units units"], centred: bool = False
) -> Float[Array, "units units"]:
    """Compute the matrix kappa_f(rho_ij) of the units after an activation (standard Gaussian pre-activations).

    By Schur's product theorem it has full rank if |rho_ij| < 1 off the diagonal and f is not a polynomial. Equal units
    (rho = 1) stay equal. Opposite ones (rho = -1) see f(z) and f(-z), whose half sum and half difference are
    uncorrelated. If one of the two is a polynomial of degree k, m pairs of opposite units in general position in d
    dimensions keep C(d + k - 1, k) of its m ranks, if that is fewer: m - d are lost after ReLU, GELU, SiLU and softplus
    (f(z) - f(-z) is linear, k = 1), m - 1 after the sigmoid (f(z) + f(-z) is constant, k = 0), m - d (d + 1)/2 after
    ReLU² (k = 2), and all m if either is 0: f even or odd. So one pair costs nothing with ReLU, and five in the plane
    cost three.

    Args:
        f: activation.
        correlation: correlation matrix of the pre-activations.
        centred: correlations instead of normalised second moments.

    Returns:
        The matrix, with 1 on the diagonal.

    Raises:
        ValueError: the matrix is not square, symmetric and within [-1, 1] with diagonal 1, or f is not integrable,
            not resolved or constant.
        RuntimeError: double precision is off.

    References:
        arXiv 2510.00304, section 4 (hard rank recovery).
    """
    require_float64()
    rho, slack = _square("correlation", correlation)
    off = max(np.abs(rho - rho.T).max(), np.abs(np.diag(rho) - 1).max())
    if not off <= slack:
        raise ValueError("correlation: must be finite and symmetric with diagonal 1")
    if (np.abs(rho) > 1 + slack).any():
        raise ValueError(f"correlation: has an entry of {np.abs(rho).max():g} in modulus; must lie in [-1, 1]")
    rows, columns = np.triu_indices(len(rho), k=1)
    entries = kernel_map(f, jnp.clip(jnp.asarray(rho[rows, columns]), -1.0, 1.0), centred)
    return jnp.eye(len(rho)).at[rows, columns].set(entries).at[columns, rows].set(entries)


@takes_numbers(matrix=2)
def hard_rank(matrix: Shaped[Array | np.ndarray, "units units"], tolerance: float = 1e-10) -> int:
    """Count the eigenvalues of a symmetric matrix above `tolerance` times the largest.

    Args:
        matrix: positive semi-definite.
        tolerance: relative to the largest eigenvalue; at least the rounding of the matrix, units times eps.

    Returns:
        The numerical rank; 0 for the zero matrix.

    Raises:
        ValueError: the matrix is not square, symmetric up to rounding, finite and non-empty, or the tolerance is below
            its rounding.
    """
    array, slack = _square("matrix", matrix)
    size = np.abs(array).max()
    if not np.isfinite(size) or (np.abs(array - array.T) > slack * size).any():
        raise ValueError("matrix: must be finite and symmetric")
    rounding = len(array) * max(slack / 8, float(np.finfo(np.float64).eps))
    if not tolerance >= rounding:
        raise ValueError(f"tolerance={tolerance}: must be at least {rounding:.1e}, the rounding of this matrix")
    eigenvalues = np.linalg.eigvalsh(array)
    return int(np.sum(eigenvalues > tolerance * eigenvalues[-1]))


def _square(name: str, matrix: Shaped[Array | np.ndarray, "units units"]) -> tuple[np.ndarray, float]:
    """A square matrix in float64, and the rounding of its original type."""
    array = np.asarray(matrix)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or len(array) == 0:
        raise ValueError(f"{name} of shape {array.shape}: must be square, with at least one unit")
    return array.astype(np.float64), max(1e-12, rounding_of(array))
