"""When will units have become clones? Their distance now, and the rate at which it changes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Num

from lopjax.arguments.numbers import takes_numbers
from lopjax.optim.checks import check


class Forecast(NamedTuple):
    """Steps until a distance has fallen to a tolerance; infinite if it does not fall, NaN if nothing is known of it.

    Attributes:
        steps: at the rate itself.
        earliest: at the lower end of its interval.
        latest: at the upper end; infinite where the interval reaches 0, so that no end can be promised.
        is_decided: whether the interval of the rate lies on one side of 0.
    """

    steps: Float[Array, ""]
    earliest: Float[Array, ""]
    latest: Float[Array, ""]
    is_decided: jax.Array


class Rate(NamedTuple):
    """Growth rate of a distance: the mean of `ln d` per step, and its standard error."""

    exponent: Float[Array, ""]
    standard_error: Float[Array, ""]


@takes_numbers(distance=None, exponent=None, standard_error=None)
def trap_forecast(
    distance: ArrayLike, exponent: ArrayLike, standard_error: ArrayLike = 0.0, tolerance: ArrayLike = 1e-3
) -> Forecast:
    """On the manifold in about n steps: `n = ln(tolerance / d) / Lambda`, where d shrinks as `exp(Lambda t)`.

    Lambda is the transverse Lyapunov exponent of the manifold (`lopjax.stability.transverse_lyapunov`) or the rate that
    was measured (`measured_rate`). Linear theory: for small distances, and while the data stay what they are. The
    interval is Lambda plus and minus twice its standard error.

    Args:
        distance: d now, relative.
        exponent: Lambda, per step.
        standard_error: standard error of Lambda.
        tolerance: distance that counts as on the manifold.

    Raises:
        ValueError: a tolerance that is not positive.

    Example:
        >>> [round(float(n)) for n in trap_forecast(0.1, -0.01, 0.001, tolerance=0.01)[:3]]
        [230, 192, 288]
    """
    check("tolerance", tolerance, minimum=1e-38)
    distance, tolerance, exponent, standard_error = (
        jnp.asarray(each, jnp.promote_types(jnp.result_type(each), jnp.float32))
        for each in (distance, tolerance, exponent, standard_error)
    )
    away = jnp.maximum(jnp.log(distance) - jnp.log(tolerance), 0)

    def time(rate: Array) -> Array:
        falls = jnp.where(rate < 0, away / jnp.where(rate < 0, -rate, 1), jnp.inf)
        return jnp.where(away == 0, 0.0, jnp.where(jnp.isnan(away) | jnp.isnan(rate), jnp.nan, falls))

    low, high = exponent - 2 * standard_error, exponent + 2 * standard_error
    is_decided = ((low > 0) | (high < 0)) & ~jnp.isnan(away) | (away == 0)
    return Forecast(time(exponent), time(low), time(high), is_decided)


@takes_numbers(distances=1)
def measured_rate(
    distances: Float[Array, " records"], spacing: ArrayLike = 1.0, *, steps: Num[Array, " records"] | None = None
) -> Rate:
    """Least squares slope of `ln d` over measurements, and its standard error.

    The error takes deviations from the line for independent; NaN for fewer than three measurements that are finite, or
    all at one step.

    Args:
        distances: distances of one pair, positive; NaN or infinite ones are left out.
        spacing: steps between two measurements.
        steps: steps of the measurements instead, where they are not equally spaced.
    """
    distances = jnp.asarray(distances)
    distances = distances.astype(jnp.promote_types(distances.dtype, jnp.float32))
    is_there = jnp.isfinite(distances) & (distances > 0)
    n = jnp.sum(is_there)
    x, unit = jnp.arange(distances.shape[0], dtype=distances.dtype), spacing
    if steps is not None:
        given = jnp.asarray(steps)
        if given.shape != distances.shape:
            raise ValueError(f"steps of shape {given.shape}: must be one for each of the {len(distances)} distances")
        x = (given - given[-1]).astype(distances.dtype)  # first the difference, or late steps lose their last digits
        unit = jnp.max(jnp.abs(jnp.where(is_there, x, 0)))
        x = x / unit
    y = jnp.where(is_there, jnp.log(jnp.where(is_there, distances, 1)), 0)
    x_mean, y_mean = jnp.sum(jnp.where(is_there, x, 0)) / n, jnp.sum(y) / n
    from_mean = jnp.where(is_there, x - x_mean, 0)
    spread = jnp.sum(jnp.square(from_mean))
    slope = jnp.sum(from_mean * y) / spread
    residuals = jnp.where(is_there, y - y_mean - slope * from_mean, 0)
    error = jnp.sqrt(jnp.sum(jnp.square(residuals)) / (jnp.maximum(n - 2, 1) * spread))
    return Rate(jnp.where(n >= 3, slope, jnp.nan) / unit, jnp.where(n >= 3, error, jnp.nan) / unit)
