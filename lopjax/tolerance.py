"""Is a number zero, signed, or neither? The one place that holds the constants of this question.

    zero  <=  tau  <  undecided  <  10 tau  <=  signal ,      tau = 64 eps(dtype) sqrt(N) S

for a *residual*, which is a share of something known: N terms are summed, S is their size free of cancellation.

An *eigenvalue* has a sign from `10 tau` on, and it is never zero because it is small: rounding hides signs below its
bound, it does not make them zero. It counts as zero by algebra, or at a stated level,
`|eigenvalue| + 10 tau <= zero_level S`: "nothing curves by more than this share of the block's own terms". The level
is part of the verdict. What is neither signed nor zero is undecided.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import ArrayLike

ROUNDINGS = 64
"""How many roundings tau allows for in every term."""

CERTAIN_FROM = 10.0
"""From this many tau on a number is certainly not rounding."""

TWO_ORDERS_OF_SUMMATION = 1000
"""How many eps two evaluations of one loss may differ by: compiled twice, or summed in another order."""


def rounding_unit(dtype: DTypeLike) -> float:
    """`64 eps`: the relative size of what rounding can do to one term."""
    return ROUNDINGS * float(jnp.finfo(dtype).eps)


def relative_tolerance(dtype: DTypeLike, length: int = 1) -> float:
    """`64 eps sqrt(N)`: tau of a sum of N terms, as a share of the terms' size.

    Example:
        >>> relative_tolerance(jnp.float32, 4) == 2 * 64 * 2.0**-23
        True
    """
    return rounding_unit(dtype) * length**0.5


def rounding_tolerance(dtype: DTypeLike, num_terms: int, scale: ArrayLike) -> np.ndarray | np.float64:
    """`64 eps(dtype) sqrt(N) S`: what rounding can make of a zero eigenvalue.

    Args:
        dtype: type in which the N terms were computed and summed.
        num_terms: N, the number of terms (samples, or parameters where the samples are not known).
        scale: S, a scale free of cancellation: the sum of the sizes of the terms, or a bound of the operator.
    """
    return relative_tolerance(dtype, num_terms) * np.asarray(scale, np.float64)


def default_zero_level(dtype: DTypeLike) -> float:
    """`sqrt(eps)`: the share of a block's own terms below which its curvature may be called flat.

    Coarse types have bounds far above their level: float32 calls hardly anything zero, 16 bits nothing.
    """
    return float(jnp.finfo(dtype).eps) ** 0.5


def drift_tolerance(dtype: DTypeLike) -> float:
    """`sqrt(eps)`: how far, relative to its size, a point may have drifted off a manifold, or a projector off one.

    More than rounding, which training repeats many times, and less than what anyone would call another point.
    """
    return float(jnp.finfo(dtype).eps) ** 0.5


class Threshold(NamedTuple):
    """What decides about the eigenvalues of one operator.

    Attributes:
        tolerance: tau.
        residual: error of the eigenvalues that is not rounding.
        zero_below: `zero_level S`.
    """

    tolerance: float
    residual: float = 0.0
    zero_below: float = 0.0

    @property
    def bound(self) -> float:
        """`10 tau + residual`: how far the true eigenvalue may lie from the computed one."""
        return CERTAIN_FROM * self.tolerance + self.residual

    def is_signed(self, eigenvalues: ArrayLike) -> np.ndarray:
        """Which eigenvalues certainly have the sign they show."""
        return np.asarray(np.abs(np.asarray(eigenvalues, np.float64)) > self.bound)

    def is_zero(self, eigenvalues: ArrayLike) -> np.ndarray:
        """Which of the others are zero at the level."""
        values = np.abs(np.asarray(eigenvalues, np.float64))
        return np.asarray((values <= self.bound) & (values + self.bound <= self.zero_below))
