"""Verdicts on stability with their evidence, and the one rule that decides the sign of a number."""

from collections.abc import Sequence
from enum import Enum
from math import inf, nan
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import ArrayLike

from lopjax.tolerance import Threshold, rounding_tolerance

__all__ = [
    "SignCounts",
    "Stability",
    "StabilityReport",
    "count_signs",
    "counted_report",
    "rounding_tolerance",
    "verdict_of",
    "witnessed_report",
]


class Stability(Enum):
    """Verdict from the curvature normal to a manifold; the value is the sentence shown to the user."""

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

    If the method counts, `n_plus + n_minus + n_zero + n_undecided` is the dimension of the normal space.

    Attributes:
        verdict: the class.
        n_plus: number of eigenvalues of the normal Hessian that are certainly positive; -1 if the method cannot count.
        n_minus: number that are certainly negative; -1 likewise.
        n_zero: number that are zero by algebra, or zero at `zero_level`; -1 likewise.
        min_eigenvalue: smallest eigenvalue, in units of the loss per squared parameter. If the method cannot count, the
            smallest Rayleigh quotient found: the true minimum is at most this.
        max_eigenvalue: the largest, likewise.
        tolerance: tau, the rounding error of an eigenvalue: it has a sign if it exceeds ten times this plus `residual`.
            A smaller one is undecided, not zero.
        residual: bound on the error of the reported eigenvalues in addition to rounding.
        structural: number of zeros known by algebra rather than by the level; -1 where unknown.
        exact: whether every eigenvalue was counted and none was left undecided.
        method: how they were found: "dense", "lanczos", "closed form", "batched hvp".
        space: the manifold whose normal space this is: "leaf", "V", "frozen", ...
        note: anything else the reader needs: why the verdict is `UNDECIDED`, kinks, coarse types.
        n_undecided: number of eigenvalues whose sign rounding hides and that are not zero at `zero_level`; -1 likewise.
        zero_level: an eigenvalue of uncertain sign counts as zero if `|eigenvalue| + 10 tolerance + residual` is at
            most this fraction of `scale`. `NEUTRAL` means flat *at this level*.
        scale: size of the terms that make up the Hessian, before cancellation; in a total, the largest of its blocks.
        radius: changes of a unit's incoming parameters shorter than this cross no kink of its activation, and the
            verdict covers only such changes; infinite for smooth activations, NaN where unknown.
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
    n_undecided: int = 0
    zero_level: float = 0.0
    scale: float = 0.0
    radius: float = inf


class SignCounts(NamedTuple):
    """The numbers of eigenvalues of each sign, and of those whose sign is undecided."""

    plus: int
    minus: int
    zero: int
    undecided: int = 0

    def times(self, multiplicity: int) -> "SignCounts":
        """Counts of the spectrum repeated."""
        return SignCounts(*(multiplicity * count for count in self))

    def plus_counts(self, other: "SignCounts") -> "SignCounts":
        """Counts of two spectra combined."""
        return SignCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def count_signs(
    eigenvalues: ArrayLike | Sequence[float], tolerance: float, residual: float = 0.0, zero_below: float = 0.0
) -> SignCounts:
    """Count signs: signed beyond ten times the tolerance plus the residual, zero at the level, else undecided.

    Args:
        eigenvalues: any array of eigenvalues; NaN counts as undecided.
        tolerance: see `rounding_tolerance`.
        residual: bound on the error of the eigenvalues.
        zero_below: absolute level: an eigenvalue that lies below it including its error counts as zero.

    Raises:
        ValueError: a negative tolerance or residual.

    Example:
        >>> count_signs([-1.0, 0.0, 5e-12, 2.0], tolerance=1e-12, zero_below=1.2e-11)
        SignCounts(plus=1, minus=1, zero=1, undecided=1)
    """
    if tolerance < 0 or residual < 0:
        raise ValueError(f"tolerance={tolerance}, residual={residual}: must be at least 0")
    values = np.asarray(eigenvalues, np.float64)
    rule = Threshold(tolerance, residual, zero_below)
    signed = rule.is_signed(values)
    plus, minus = (int(np.count_nonzero(signed & side)) for side in (values > 0, values < 0))
    zero = int(np.count_nonzero(rule.is_zero(values)))
    return SignCounts(plus, minus, zero, values.size - plus - minus - zero)


def verdict_of(counts: SignCounts) -> Stability:
    """The verdict that the sign counts allow.

    One eigenvalue of each sign proves a saddle, whatever the undecided ones are; every other verdict is about all
    eigenvalues, so a single undecided one leaves the verdict undecided.
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
    zero_level: float = 0.0,
    scale: float = 0.0,
    radius: float = inf,
) -> StabilityReport:
    """The report of a method that sees every eigenvalue; fields as in `StabilityReport`."""
    return StabilityReport(
        verdict=verdict_of(counts),
        n_plus=counts.plus,
        n_minus=counts.minus,
        n_zero=counts.zero,
        min_eigenvalue=extremes[0],
        max_eigenvalue=extremes[1],
        tolerance=tolerance,
        residual=residual,
        structural=structural,
        exact=counts.undecided == 0,
        method=method,
        space=space,
        note=note,
        n_undecided=counts.undecided,
        zero_level=zero_level,
        scale=scale,
        radius=radius,
    )


def witnessed_report(
    extremes: tuple[float, float],
    *,
    tolerance: float,
    residual: float,
    method: str,
    space: str,
    is_zero: bool = False,
    zero_level: float = 0.0,
    scale: float = 0.0,
    radius: float = inf,
) -> StabilityReport:
    """The report of a method that sees some directions only: it can prove a saddle, but never gives counts.

    Args:
        extremes: smallest and largest Rayleigh quotient found. A quotient is a witness whatever its residual.
        tolerance: rounding error of one quotient.
        residual: an eigenvalue lies within this distance of each quotient.
        method: name of the method.
        space: the manifold whose normal space it is.
        is_zero: whether the operator returned exactly zero for a random vector. This makes it zero up to rounding,
            which counts as flat only if the rounding error lies below the level.
        zero_level: see `StabilityReport`.
        scale: see `StabilityReport`.
        radius: see `StabilityReport`.
    """
    low, high = extremes
    rule = Threshold(tolerance, 0.0, zero_level * scale)
    has_negative, has_positive = (bool(rule.is_signed(end) and side * end > 0) for end, side in ((low, -1), (high, 1)))
    verdict = Stability.UNDECIDED
    if has_negative and has_positive:
        verdict, note = Stability.SADDLE, ""
    elif is_zero and rule.is_zero(0.0):
        verdict, note = Stability.NEUTRAL, "the Hessian maps a random normal vector exactly to zero"
    elif has_negative:
        note = "not stable: negative curvature was found, positive was not"
    elif has_positive:
        note = "not unstable: positive curvature was found, negative was not"
    else:
        note = "no curvature above rounding was found"
    return StabilityReport(
        verdict,
        -1,
        -1,
        -1,
        low,
        high,
        tolerance,
        residual,
        -1,
        False,
        method,
        space,
        note,
        -1,
        zero_level,
        scale,
        radius,
    )


def precision_note(dtype: DTypeLike) -> str:
    """The note on a verdict computed in less than double precision; empty otherwise."""
    name = jnp.dtype(dtype).name
    return "" if name == "float64" else f"computed in {name}: what is undecided here may be decided in float64"


def at_a_kink(report: StabilityReport, where: str) -> StabilityReport:
    """Withdraw the claims of a report about a point at which the loss has no second derivative.

    Args:
        report: the report from one-sided derivatives.
        where: what lies at a kink, for the note.
    """
    note = (
        f"at a kink: {where}. The loss has no second derivative there and may fall linearly along directions that the "
        "eigenvalues of one side call flat"
    )
    counted = report.n_plus >= 0
    undecided = report.n_plus + report.n_minus + report.n_zero + report.n_undecided - report.structural
    return report._replace(
        verdict=Stability.UNDECIDED,
        n_plus=0 if counted else -1,
        n_minus=0 if counted else -1,
        n_zero=report.structural if counted else -1,
        n_undecided=undecided if counted else -1,
        exact=False,
        note=note,
        radius=0.0,
    )


def kinks_unknown(report: StabilityReport, sites: Sequence[str]) -> StabilityReport:
    """A report about functions whose kinks are not known: observed curvature stands, flatness does not."""
    note = (
        f"the kinks of the activation at {', '.join(sites)} are not known, so the point may lie at one: pass "
        "lopjax.activations.Activation(name, function, kinks=(...)), () for a smooth function"
    )
    guessed = report.n_zero - report.structural if report.n_zero >= 0 else 0
    verdict = Stability.SADDLE if report.verdict is Stability.SADDLE else Stability.UNDECIDED
    return report._replace(
        verdict=verdict,
        n_zero=report.n_zero - guessed,
        n_undecided=report.n_undecided + guessed,
        exact=False,
        note="; ".join(filter(None, (report.note, note))),
        radius=nan if report.radius else 0.0,
    )
