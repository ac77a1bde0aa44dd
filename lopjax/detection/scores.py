"""What an indicator is worth: how long before the loss of plasticity it rings, at a fixed rate of false alarms."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lopjax.arguments.numbers import takes_numbers


class IndicatorScore(NamedTuple):
    """Score of one indicator.

    Attributes:
        threshold: an alarm is a value above it.
        false_alarms: share of the healthy runs with an alarm at that threshold.
        detected: share of the runs that lose plasticity in which the alarm came no later than the loss.
        lead: median steps between alarm and loss, over the detected ones; NaN if there are none.
        leads: lead times of all runs that lose plasticity; NaN where it was missed.
    """

    threshold: float
    false_alarms: float
    detected: float
    lead: float
    leads: np.ndarray


@takes_numbers(curves=2, steps=1, onset=1)
def score_indicator(
    curves: ArrayLike, steps: ArrayLike, onset: ArrayLike, false_alarm_rate: float = 0.1
) -> IndicatorScore:
    """Threshold, false alarms and lead time of an indicator.

    The threshold is the smallest at which no more than the wanted share of healthy runs ever has a value above it. With
    few healthy runs that share is coarse: of 5 at a rate of 0.1, none.

    Args:
        curves: the indicator, `(runs, records)`, larger is worse; NaN where it is not known.
        steps: steps of the records, `(records,)`.
        onset: step at which each run was seen to lose plasticity, `(runs,)`; infinite for a healthy one.
        false_alarm_rate: in [0, 1).

    Raises:
        ValueError: shapes that do not go together, a rate out of range, no healthy run or none that loses plasticity;
            steps that do not rise, an onset that is NaN or minus infinity, a healthy run of which nothing is known.

    Example:
        >>> curves = [[0, 1, 2], [0, 5, 9], [0, 0, 9]]
        >>> score_indicator(curves, [10, 20, 30], [np.inf, 30, 20]).leads.tolist()
        [10.0, nan]
    """
    values, at, starts = (np.asarray(each, np.float64) for each in (curves, steps, onset))
    if values.shape != (len(starts), len(at)):
        raise ValueError(f"curves {values.shape}: must be (runs, records) = ({len(starts)}, {len(at)})")
    if not 0 <= false_alarm_rate < 1:
        raise ValueError(f"false_alarm_rate={false_alarm_rate}: must be in [0, 1)")
    if not (np.isfinite(at).all() and (np.diff(at) > 0).all()):
        raise ValueError(f"steps={at}: must be finite and rise from record to record")
    if np.isnan(starts).any() or np.isneginf(starts).any():
        raise ValueError(f"onset={starts}: must be a step for each run, or infinity for a healthy one")
    is_healthy = np.isinf(starts)
    if is_healthy.all() or not is_healthy.any():
        raise ValueError(
            f"{is_healthy.sum()} of {len(starts)} runs are healthy: a threshold needs healthy runs, a lead time others"
        )
    if np.isnan(values[is_healthy]).all(axis=1).any():
        raise ValueError(
            "a healthy run has no value that is known: nothing shows when it would have rung; leave it out"
        )
    values = np.where(np.isnan(values), -np.inf, values)
    highest = np.sort(values[is_healthy].max(axis=1))[::-1]
    num_allowed = np.count_nonzero(np.arange(1, len(highest)) / len(highest) <= false_alarm_rate)
    threshold = float(highest[num_allowed])
    is_alarm = values > threshold
    first = np.where(is_alarm.any(axis=1), at[is_alarm.argmax(axis=1)], np.inf)
    leads = (starts - np.where(np.isinf(first), 0, first))[~is_healthy]
    leads = np.where((first[~is_healthy] <= starts[~is_healthy]), leads, np.nan)
    is_found = np.isfinite(leads)
    lead = float(np.median(leads[is_found])) if is_found.any() else np.nan
    return IndicatorScore(threshold, float(np.mean(highest > threshold)), float(is_found.mean()), lead, leads)
