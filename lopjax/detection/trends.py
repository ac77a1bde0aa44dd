"""Is there a trend in a window of measurements? A rank test, which one wild value does not move."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lopjax.arguments.numbers import takes_numbers


class Trend(NamedTuple):
    """A trend over equally spaced measurements.

    Attributes:
        z: standard score of Kendall's S under no trend: beyond 1.645 rising, below -1.645 falling, at 5 % each. 0 for
            fewer than four measurements.
        slope: median slope over all pairs, per measurement (Theil and Sen); NaN for fewer than two.
    """

    z: Float[Array, ""]
    slope: Float[Array, ""]


@takes_numbers(values=1)
def trend(values: Float[Array, " records"]) -> Trend:
    """The test of Mann and Kendall. Pure.

    `S = sum_(i<j) sign(x_j - x_i)` has mean 0 and variance n (n - 1)(2n + 5)/18 if the order is random;
    `z = (S - sign S) / sqrt(variance)`. Ties make the variance smaller, which is left out: with many of them the test
    is cautious. Measurements that follow one another closely are not independent, and then it is not cautious: what a
    threshold is worth is for `lopjax.detection.scores` to say.

    Args:
        values: one per measurement, NaN where there is none; infinity is larger than any number.

    References:
        Mann, Econometrica 13 (1945) 245; Sen, JASA 63 (1968) 1379.
    """
    values = jnp.asarray(values)
    values, num = values.astype(jnp.promote_types(values.dtype, jnp.float32)), values.shape[0]
    later = jnp.arange(num)[None] > jnp.arange(num)[:, None]
    # Comparisons, not signs of differences: those of infinities are NaN, those of subnormal numbers may vanish.
    is_larger, is_smaller = values[None] > values[:, None], values[None] < values[:, None]
    s = jnp.sum(jnp.where(later, is_larger.astype(jnp.int32) - is_smaller.astype(jnp.int32), 0)).astype(values.dtype)
    is_there = ~jnp.isnan(values)
    n = jnp.sum(is_there).astype(values.dtype)
    variance = n * (n - 1) * (2 * n + 5) / 18
    z = jnp.where(n >= 4, (s - jnp.sign(s)) / jnp.sqrt(jnp.maximum(variance, 1)), 0)
    gaps = jnp.where(later, jnp.arange(num)[None] - jnp.arange(num)[:, None], 1)
    slopes = values[None] / gaps - values[:, None] / gaps
    slopes = jnp.where(later & is_there[None] & is_there[:, None], slopes, jnp.nan)
    return Trend(z, jnp.nanmedian(slopes) if num else jnp.full((), jnp.nan, values.dtype))
