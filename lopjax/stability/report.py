"""Verdicts of stability, the evidence beside them, and the one rule by which numbers become signs."""

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import ArrayLike

# |eigenvalue| <= tolerance counts as zero, >= SIGNED_FROM * tolerance + residual as signed, in between as neither.
SIGNED_FROM = 10.0


class Stability(Enum):
    """What the curvature normal to a manifold says about it; the value is the sentence shown to the user."""

    STABLE = "stable: the loss curves upwards along every direction that leaves the manifold"
    UNSTABLE = "unstable: the loss curves downwards along every direction that leaves the manifold"
    SADDLE = "saddle: the loss curves downwards along some directions that leave the manifold and upwards along others"
    SEMI_STABLE = (
        "semi-stable: no direction that leaves the manifold curves downwards, some curve upwards, some are flat"
    )
    SEMI_UNSTABLE = (
        "semi-unstable: no direction that leaves the manifold curves upwards, some curve down, some are flat"
    )
    NEUTRAL = "neutral: the loss is flat to second order along every direction that leaves the manifold"
    UNDECIDED = "undecided: some curvature is too close to zero, or too little is known, to give a sign"


class StabilityReport(NamedTuple):
    """A verdict with its evidence.

    Attributes:
        verdict: the class.
        n_plus: eigenvalues of the normal Hessian that are certainly positive; -1 where the method cannot count.
        n_minus: certainly negative; likewise.
        n_zero: zero within the tolerance, or by algebra; likewise. The three add up to less than the dimension of the
            normal space when some eigenvalues could not be decided.
        min_eigenvalue: smallest eigenvalue, in units of the loss per squared parameter. Where the method cannot count,
            the smallest Rayleigh quotient found: the true minimum is at most this.
        max_eigenvalue: the largest, likewise.
        tolerance: an eigenvalue at most this large counts as zero, one of at least ten times this (plus `residual`)
            as signed.
        residual: bound on the error of the reported eigenvalues beyond rounding.
        structural: how many of the zeros are known by algebra rather than by the tolerance; -1 where unknown.
        exact: whether every eigenvalue was counted and none left undecided.
        method: how they were found: "dense", "lanczos", "closed form", "batched hvp".
        space: the normal space of what: "leaf", "V", "frozen", ...
        note: why the verdict is `UNDECIDED`, where there is more to say than its sentence.
    """

    verdict: Stability
    n_plus: int
    n_minus: int
    n_zero: int
    min_eigenvalue: float
    max_eigenvalue: float
    tolerance: float
    residual: float
    structural: int
    exact: bool
    method: str
    space: str
    note: str = ""


class SignCounts(NamedTuple):
    """How many eigenvalues have which sign, and how many could be given none."""

    plus: int
    minus: int
    zero: int
    undecided: int = 0

    def times(self, multiplicity: int) -> "SignCounts":
        """Counts of the same spectrum repeated."""
        return SignCounts(*(multiplicity * count for count in self))

    def plus_counts(self, other: "SignCounts") -> "SignCounts":
        """Counts of two spectra together."""
        return SignCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def count_signs(eigenvalues: ArrayLike | Sequence[float], tolerance: float, residual: float = 0.0) -> SignCounts:
    """Count signs: zero up to the tolerance, signed from ten times the tolerance plus the residual, else undecided.

    Args:
        eigenvalues: any array of eigenvalues; NaN counts as undecided.
        tolerance: see `rounding_tolerance`.
        residual: bound on the error of the eigenvalues.

    >>> count_signs([-1.0, 0.0, 5e-12, 2.0], tolerance=1e-12)
    SignCounts(plus=1, minus=1, zero=1, undecided=1)
    """
    values = np.asarray(eigenvalues, np.float64)
    threshold = SIGNED_FROM * tolerance + residual
    zero = np.abs(values) <= tolerance
    plus = (values >= threshold) & ~zero
    minus = (values <= -threshold) & ~zero
    counts = [int(np.count_nonzero(mask)) for mask in (plus, minus, zero)]
    return SignCounts(*counts, undecided=values.size - sum(counts))


def verdict_of(counts: SignCounts) -> Stability:
    """The verdict that sign counts allow.

    One eigenvalue of each sign proves a saddle, whatever the undecided ones are; every other verdict says something
    about all eigenvalues, so one that is undecided leaves the verdict undecided.
    """
    if counts.plus and counts.minus:
        return Stability.SADDLE
    if counts.undecided or not (counts.plus or counts.minus or counts.zero):
        return Stability.UNDECIDED
    if counts.plus:
        return Stability.SEMI_STABLE if counts.zero else Stability.STABLE
    if counts.minus:
        return Stability.SEMI_UNSTABLE if counts.zero else Stability.UNSTABLE
    return Stability.NEUTRAL


def rounding_tolerance(dtype: DTypeLike, num_terms: int, scale: ArrayLike) -> np.ndarray | np.float64:
    """`64 eps(dtype) sqrt(N) S`: what rounding can make of a zero eigenvalue.

    Args:
        dtype: type in which the N terms were computed and summed.
        num_terms: N, the number of terms (samples, or parameters where the samples are not known).
        scale: S, a scale free of cancellation: the sum of the sizes of the terms, or a bound of the operator.
    """
    return 64 * float(jnp.finfo(dtype).eps) * num_terms**0.5 * np.asarray(scale, np.float64)


def counted_report(
    counts: SignCounts,
    extremes: tuple[float, float],
    *,
    tolerance: float,
    residual: float,
    structural: int,
    method: str,
    space: str,
    note: str = "",
) -> StabilityReport:
    """The report of a method that sees every eigenvalue; fields as in `StabilityReport`."""
    return StabilityReport(
        verdict_of(counts),
        counts.plus,
        counts.minus,
        counts.zero,
        extremes[0],
        extremes[1],
        tolerance,
        residual,
        structural,
        counts.undecided == 0,
        method,
        space,
        note,
    )


def witnessed_report(
    extremes: tuple[float, float],
    *,
    tolerance: float,
    residual: float,
    method: str,
    space: str,
    is_zero: bool = False,
) -> StabilityReport:
    """The report of a method that sees some directions only: it can prove a saddle, and never a count.

    Args:
        extremes: smallest and largest Rayleigh quotient found. A quotient is a witness whatever its residual.
        tolerance: rounding of one quotient.
        residual: distance within which each quotient has an eigenvalue.
        method: name of the method.
        space: normal space of what.
        is_zero: whether the operator returned exactly zero for a random vector, as only zero does.
    """
    low, high = extremes
    has_negative, has_positive = low < -SIGNED_FROM * tolerance, high > SIGNED_FROM * tolerance
    if has_negative and has_positive:
        verdict, note = Stability.SADDLE, ""
    elif is_zero:
        verdict, note = Stability.NEUTRAL, "the Hessian maps a random normal vector to zero exactly"
    elif has_negative:
        verdict, note = Stability.UNDECIDED, "not stable: negative curvature was found, positive was not"
    elif has_positive:
        verdict, note = (
            Stability.UNDECIDED,
            "not unstable: positive curvature was found, negative was not",
        )
    else:
        verdict, note = Stability.UNDECIDED, "no curvature above rounding was found"
    return StabilityReport(verdict, -1, -1, -1, low, high, tolerance, residual, -1, False, method, space, note)
