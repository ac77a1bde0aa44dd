"""Escape as survival data: how surely, how soon, and whether two settings differ, although runs end before some do."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from experiments.cloning.report import fate

CONFIDENCE = 0.95


class Escapes(NamedTuple):
    """What became of the clones of some lanes.

    Attributes:
        steps: `(lanes,)`: the first record from which R² < 0.95 for good; where there is none, the last record.
        is_escaped: `(lanes,)`: whether there is one. The others are censored there: they may escape later.
        has_left: `(lanes,)`: whether 1 - R² > 0.001 for at least two records and to the end.
    """

    steps: np.ndarray
    is_escaped: np.ndarray
    has_left: np.ndarray


class Estimate(NamedTuple):
    """A number with the two ends of its 95 % interval."""

    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """A Kaplan-Meier curve: from each of the steps on, the share that has not escaped; the first step is 0.

    Attributes:
        steps: `(points,)`.
        share: `(points,)`.
        low: lower end of its (log-log) interval, `(points,)`.
        high: upper end, `(points,)`.
    """

    steps: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def escapes_of(steps: Sequence[np.ndarray], r2: Sequence[np.ndarray]) -> Escapes:
    """What became of lanes, each from its steps and its R² at them; records after a lane was frozen must be left out.

    Example:
        >>> r2 = [np.array([1, 0.9, 0.8]), np.array([1, 0.9, 0.96])]
        >>> escapes_of([np.array([0, 10, 20])] * 2, r2).steps.tolist()
        [10, 20]
    """
    fates, ends = [fate(*lane) for lane in zip(steps, r2, strict=True)], [recorded[-1] for recorded in steps]
    first = [last if clone.escaped is None else clone.escaped for clone, last in zip(fates, ends, strict=True)]
    is_escaped = np.array([clone.escaped is not None for clone in fates])
    return Escapes(np.array(first), is_escaped, np.array([clone.left is not None for clone in fates]))


def escapes_at(row: Mapping[str, Any]) -> Escapes:
    """The survival data of a row of the summary; `has_left` is known only for those that have escaped."""
    steps, is_escaped = np.array(row["steps"]), np.array(row["is_escaped"], bool)
    return Escapes(steps, is_escaped, is_escaped)


def probability(count: int, total: int) -> Estimate:
    """A share with its Wilson interval.

    Example:
        >>> [round(x, 3) for x in probability(10, 20)]
        [0.5, 0.299, 0.701]
    """
    interval = scipy.stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(count / total, float(interval.low), float(interval.high))


def kaplan_meier(steps: np.ndarray, is_escaped: np.ndarray) -> Curve:
    """The share that has not escaped; censored lanes count for as long as they were observed."""
    survival = scipy.stats.ecdf(_censored(steps, is_escaped)).sf
    with warnings.catch_warnings():
        # The interval is undefined where all or none are left: there the share itself is all that is known.
        warnings.filterwarnings("ignore", message="The confidence interval is undefined", category=RuntimeWarning)
        with np.errstate(divide="ignore", invalid="ignore"):
            interval = survival.confidence_interval(CONFIDENCE, method="log-log")
    share = survival.probabilities
    curves = (interval.low, interval.high)
    bounds = [np.where(np.isnan(curve.probabilities), share, curve.probabilities) for curve in curves]
    return Curve(
        *(np.concatenate([[first], rest]) for first, rest in zip((0, 1, 1, 1), (survival.quantiles, share, *bounds)))
    )


def quantile(curve: Curve, share: float = 0.5) -> Estimate:
    """The step at which this share has escaped, infinite if it is not reached; with the interval from the curve's band.

    References:
        Brookmeyer & Crowley, *A Confidence Interval for the Median Survival Time*, Biometrics 38 (1982) 29.
    """

    def reached(left: np.ndarray) -> float:
        is_reached = left <= 1 - share
        return float(curve.steps[is_reached.argmax()]) if is_reached.any() else float("inf")

    return Estimate(reached(curve.share), reached(curve.low), reached(curve.high))


def log_rank(first: Escapes, second: Escapes) -> tuple[float, float]:
    """Whether two groups escape alike: statistic (positive if the first escapes later) and two-sided p.

    Groups in which nothing escapes, or everything at one record, cannot be told apart: (0, 1).
    """
    x, y = (_censored(group.steps, group.is_escaped) for group in (first, second))
    if not (first.is_escaped.any() or second.is_escaped.any()):
        return 0.0, 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        test = scipy.stats.logrank(x, y)
    statistic, p = float(-test.statistic), float(test.pvalue)
    return (statistic, p) if np.isfinite(statistic) else (0.0, 1.0)


def _censored(steps: np.ndarray, is_escaped: np.ndarray) -> scipy.stats.CensoredData:
    return scipy.stats.CensoredData(uncensored=steps[is_escaped], right=steps[~is_escaped])
