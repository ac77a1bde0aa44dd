"""Escape as survival data: how surely, how soon, and whether two settings differ, with runs that end before they do."""

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
        has_left: `(lanes,)`: whether 1 - R² > 0.001 at two records running and to the end.
    """

    steps: np.ndarray
    is_escaped: np.ndarray
    has_left: np.ndarray


class Estimate(NamedTuple):
    """A number with the two ends of its interval, at 95 %."""

    value: float
    low: float
    high: float


class Curve(NamedTuple):
    """A Kaplan-Meier curve: from each of the steps on, the share that has not escaped; the first step is 0.

    Attributes:
        steps: `(points,)`.
        share: `(points,)`.
        low: of its interval (log-log), `(points,)`.
        high: of its interval, `(points,)`.
    """

    steps: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def escapes_of(steps: Sequence[np.ndarray], r2: Sequence[np.ndarray]) -> Escapes:
    """What became of lanes, each from its steps and its R² at them; records of a lane that is frozen must be left out.

    >>> escapes_of([np.array([0, 10, 20])] * 2, [np.array([1, 0.9, 0.8]), np.array([1, 0.9, 0.96])]).steps.tolist()
    [10, 20]
    """
    fates = [fate(*lane) for lane in zip(steps, r2, strict=True)]
    first = [last[-1] if found.escaped is None else found.escaped for found, last in zip(fates, steps, strict=True)]
    is_escaped = np.array([found.escaped is not None for found in fates])
    return Escapes(np.array(first), is_escaped, np.array([found.left is not None for found in fates]))


def escapes_at(row: Mapping[str, Any]) -> Escapes:
    """The survival data of a row of the summary; of who has left no more is known than that the escaped have."""
    steps, is_escaped = np.array(row["steps"]), np.array(row["is_escaped"], bool)
    return Escapes(steps, is_escaped, is_escaped)


def probability(count: int, total: int) -> Estimate:
    """A share with its Wilson interval.

    >>> [round(x, 3) for x in probability(10, 20)]
    [0.5, 0.299, 0.701]
    """
    interval = scipy.stats.binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(count / total, float(interval.low), float(interval.high))


def kaplan_meier(steps: np.ndarray, is_escaped: np.ndarray) -> Curve:
    """The share that has not escaped, lanes that are censored counted for as long as they were seen."""
    survival = scipy.stats.ecdf(_censored(steps, is_escaped)).sf
    with warnings.catch_warnings():
        # Undefined where all or none are left: there the share itself is all that is known.
        warnings.filterwarnings("ignore", message="The confidence interval is undefined", category=RuntimeWarning)
        with np.errstate(divide="ignore", invalid="ignore"):
            interval = survival.confidence_interval(CONFIDENCE, method="log-log")
    share = survival.probabilities
    ends = [np.where(np.isnan(end.probabilities), share, end.probabilities) for end in (interval.low, interval.high)]
    return Curve(
        *(np.concatenate([[first], rest]) for first, rest in zip((0, 1, 1, 1), (survival.quantiles, share, *ends)))
    )


def quantile(curve: Curve, share: float = 0.5) -> Estimate:
    """The step at which this share has escaped, infinite if it is not reached; with the interval of its curve's band.

    References:
        Brookmeyer & Crowley, *A Confidence Interval for the Median Survival Time*, Biometrics 38 (1982) 29.
    """

    def reached(left: np.ndarray) -> float:
        is_reached = left <= 1 - share
        return float(curve.steps[is_reached.argmax()]) if is_reached.any() else float("inf")

    return Estimate(reached(curve.share), reached(curve.low), reached(curve.high))


def log_rank(first: Escapes, second: Escapes) -> tuple[float, float]:
    """Whether two groups escape alike: statistic (positive if the first escapes later) and p, on two sides.

    Groups none of which escapes, or all of which escape at one record, cannot be told apart: (0, 1).
    """
    x, y = (_censored(group.steps, group.is_escaped) for group in (first, second))
    if not (first.is_escaped.any() or second.is_escaped.any()):
        return 0.0, 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        found = scipy.stats.logrank(x, y)
    statistic, p = float(-found.statistic), float(found.pvalue)
    return (statistic, p) if np.isfinite(statistic) else (0.0, 1.0)


def _censored(steps: np.ndarray, is_escaped: np.ndarray) -> scipy.stats.CensoredData:
    return scipy.stats.CensoredData(uncensored=steps[is_escaped], right=steps[~is_escaped])
