"""Linear theory beside the networks: quantiles of the escape time and shares that escape, setting by setting."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.escape.config import AXES
from experiments.escape.setup import CLONE, LINEAR
from experiments.escape.survival import Escapes, escapes_at, kaplan_meier, log_rank, quantile

QUARTILES = (0.25, 0.5, 0.75)


class Calibration(NamedTuple):
    """One setting: what happened, and what linear theory says.

    Attributes:
        measured: quartiles of the escape time; infinite where they are not reached.
        predicted: the same by linear theory.
        measured_share: of seeds that escape within the run.
        predicted_share: the same by linear theory.
        p: of the log-rank test between the two.
    """

    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    measured_share: float
    predicted_share: float
    p: float


def calibration(rows: Sequence[Mapping[str, Any]]) -> list[Calibration]:
    """All settings of a summary of which there are both the clones and their linear theory."""
    found: dict[Any, dict[str, Escapes]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in AXES), {})[row["kind"]] = escapes_at(row)
    return [_of_pair(both[CLONE], both[LINEAR]) for both in found.values() if len(both) == 2]


def _of_pair(clones: Escapes, linear: Escapes) -> Calibration:
    quartiles = [
        tuple(quantile(kaplan_meier(group.steps, group.is_escaped), share).value for share in QUARTILES)
        for group in (clones, linear)
    ]
    shares = [float(group.is_escaped.mean()) for group in (clones, linear)]
    return Calibration(quartiles[0], quartiles[1], shares[0], shares[1], log_rank(clones, linear)[1])


def said_of_linear(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How well linear theory does, in words; nothing for runs without it."""
    pairs = calibration(rows)
    if not pairs:
        return []
    medians = np.array([(pair.measured[1], pair.predicted[1]) for pair in pairs])
    known = medians[np.isfinite(medians).all(axis=1)]
    ratios = known[:, 1] / known[:, 0]
    differ = sum(pair.p < 0.01 for pair in pairs)
    said = f"Linear theory: {differ} of {len(pairs)} settings differ from it in a log-rank test at p < 0.01"
    if len(ratios):
        low, middle, high = np.quantile(ratios, (0.1, 0.5, 0.9))
        said += f"; median step, predicted over measured: {middle:.2f} ({low:.2f} to {high:.2f} in 80 % of settings)"
    gap = max(abs(pair.measured_share - pair.predicted_share) for pair in pairs)
    return [f"{said}; shares that escape within {gap:.2f}"]
