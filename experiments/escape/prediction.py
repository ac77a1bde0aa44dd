"""Linear theory beside the networks: when 1 - R² first reaches a level, for each setting."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.escape.config import AXES
from experiments.escape.setup import CLONE, LINEAR
from experiments.escape.survival import Escapes, kaplan_meier, log_rank, quantile

LEVELS = (0.001, 0.01, 0.05)
"""Levels of 1 - R²: leaving, one in between, and escape."""
QUARTILES = (0.25, 0.5, 0.75)
SIGNIFICANT = 0.01


class Calibration(NamedTuple):
    """One setting: what happened, and what linear theory says.

    Attributes:
        measured: quartiles of the first record at which 1 - R² has reached the level; infinite where not reached.
        predicted: the same by linear theory.
        measured_share: share of seeds in which it is reached within the run.
        predicted_share: the same by linear theory.
        p: p-value of the log-rank test between the two.
    """

    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    measured_share: float
    predicted_share: float
    p: float


def passages(steps: Sequence[np.ndarray], r2: Sequence[np.ndarray], level: float) -> Escapes:
    """The first record of each lane at which 1 - R² has reached a level, for good or not; otherwise it is censored.

    Example:
        >>> passages([np.array([0, 10, 20])] * 2, [np.array([1, 0.9, 0.99]), np.ones(3)], 0.05).steps.tolist()
        [10, 20]
    """
    reached = [1 - lane >= level for lane in r2]
    passage = [
        recorded[is_out.argmax() if is_out.any() else -1] for recorded, is_out in zip(steps, reached, strict=True)
    ]
    is_reached = np.array([is_out.any() for is_out in reached])
    return Escapes(np.array(passage), is_reached, is_reached)


def calibration(rows: Sequence[Mapping[str, Any]], level: float) -> list[Calibration]:
    """All settings of a summary in which either the clones or their linear theory reach a level."""
    by_setting: dict[Any, dict[str, Escapes]] = {}
    for row in rows:
        steps, is_reached = (np.array(values) for values in row["passages"][f"{level:g}"])
        group = Escapes(steps, is_reached, is_reached)
        by_setting.setdefault(tuple(row[name] for name in AXES), {})[row["kind"]] = group
    pairs = [(kinds[CLONE], kinds[LINEAR]) for kinds in by_setting.values() if len(kinds) == 2]
    return [_of_pair(*pair) for pair in pairs if any(group.is_escaped.any() for group in pair)]


def _of_pair(clones: Escapes, linear: Escapes) -> Calibration:
    quartiles = [
        tuple(quantile(kaplan_meier(group.steps, group.is_escaped), share).value for share in QUARTILES)
        for group in (clones, linear)
    ]
    shares = [float(group.is_escaped.mean()) for group in (clones, linear)]
    return Calibration(quartiles[0], quartiles[1], shares[0], shares[1], log_rank(clones, linear)[1])


class Ever(NamedTuple):
    """Whether a level is ever reached at a setting whose noise dies away, without dropout.

    Attributes:
        setting: `(name, value)` of all its numbers.
        measured: seeds that reach it within the run.
        predicted: the same of linear theory.
        num_seeds: number of seeds of each.
        p: p-value of Fisher's exact test between the two.
    """

    setting: tuple[tuple[str, float], ...]
    measured: int
    predicted: int
    num_seeds: int
    p: float


def ever_reached(rows: Sequence[Mapping[str, Any]], level: float) -> list[Ever]:
    """Seeds that ever reach a level where the noise is gone long before the run ends: not all of them need to."""
    from scipy.stats import fisher_exact

    counts: dict[Any, dict[str, tuple[int, int]]] = {}
    for row in rows:
        if row["noise_scale"] > 0 and row["noise_decay"] < 1 and row["dropout"] == 0:
            reached = row["passages"][f"{level:g}"][1]
            setting = tuple((name, row[name]) for name in AXES)
            counts.setdefault(setting, {})[row["kind"]] = sum(reached), len(reached)
    found = []
    for setting, kinds in counts.items():
        if len(kinds) == 2:
            (own, num), (linear, num_linear) = kinds[CLONE], kinds[LINEAR]
            test: Any = fisher_exact([[own, num - own], [linear, num_linear - linear]])
            found.append(Ever(setting, own, linear, num, float(test.pvalue)))
    return found


def said_of_linear(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How well linear theory does, a line per level; nothing for runs without it."""
    if not any(row["kind"] == LINEAR for row in rows):
        return []
    return (
        ["When 1 - R² reaches a level, by linear theory and in the networks:"]
        + [f"  {level:g}: {_said(calibration(rows, level))}" for level in LEVELS]
        + [line for level in LEVELS if (line := _said_of_ever(level, ever_reached(rows, level)))]
    )


def _said_of_ever(level: float, settings: Sequence[Ever]) -> str:
    if not settings:
        return ""
    measured, predicted, num = (sum(values) for values in zip(*(each[1:4] for each in settings), strict=True))
    differ = sum(each.p < SIGNIFICANT for each in settings)
    return (
        f"  {level:g} is ever reached where noise dies away, {len(settings)} settings: by {measured} of {num} "
        f"networks, {predicted} by linear theory; {differ} settings differ (Fisher, p < {SIGNIFICANT})"
    )


def _said(pairs: Sequence[Calibration]) -> str:
    if not pairs:
        return "reached in no setting"
    differ = sum(pair.p < SIGNIFICANT for pair in pairs)
    text = f"{differ} of {len(pairs)} settings differ (log-rank, p < {SIGNIFICANT})"
    medians = np.array([(pair.measured[1], pair.predicted[1]) for pair in pairs])
    finite = medians[np.isfinite(medians).all(axis=1)]
    if len(finite):
        low, middle, high = np.quantile(finite[:, 1] / finite[:, 0], (0.1, 0.5, 0.9))
        text += (
            f"; median step, predicted over measured, {middle:.2f} ({low:.2f} to {high:.2f} in 80 % of {len(finite)})"
        )
    gaps = [pair.predicted_share - pair.measured_share for pair in pairs]
    return f"{text}; shares of seeds, predicted minus measured, {np.mean(gaps):+.2f} on average"
