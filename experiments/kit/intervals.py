"""A mean over seeds and its 95 % interval by Student's t distribution, for tables and figures."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean and the bounds of its 95 % interval; the bounds are NaN for fewer than two values."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    @property
    def sign(self) -> int:
        """1 or -1 if the interval lies on one side of zero, otherwise 0: undecided."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def __str__(self) -> str:
        """The number with its sign."""
        if math.isnan(self.mean):
            return "-"
        return f"{self.mean:+.3f}" + ("" if math.isnan(self.half) else f" ± {self.half:.3f}")


NOT_KNOWN = Interval(math.nan, math.nan, math.nan)


def around(mean: float, half: float) -> Interval:
    """An interval from its mean and half of its width."""
    return Interval(mean, mean - half, mean + half)


def interval(values: Sequence[float] | np.ndarray, *, leave_out_missing: bool = False) -> Interval:
    """Mean of independent values, one per seed, and its interval.

    Args:
        values: values of the seeds.
        leave_out_missing: leave out values that are not finite. By default they make the result NaN, so that no
            diverged seed is overlooked.

    Example:
        >>> interval([1.0, 3.0]).mean
        2.0
        >>> str(interval([1.0, float("nan")]))
        '-'
    """
    from scipy.special import stdtrit

    array = np.asarray(values, float)
    array = array[np.isfinite(array)] if leave_out_missing else array
    if array.size == 0 or not np.isfinite(array).all():
        return NOT_KNOWN
    mean = float(array.mean())
    if array.size == 1:
        return Interval(mean, math.nan, math.nan)
    return around(mean, float(stdtrit(array.size - 1, (1 + LEVEL) / 2) * array.std(ddof=1) / math.sqrt(array.size)))
