"""Saturated or only at a turning point? The slope of an activation from a pre-activation out to infinity."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lopjax.activations import Activation

# Beyond this every activation of the library is constant, linear or periodic; f' is evaluated at the sample itself as
# well.
REACH, POINTS = 60.0, 4801

CURVATURE = 10.0
"""For an activation to count as saturated, f'' may be this many times larger than f': erf has f'' = -2 z f'."""


class Slopes(NamedTuple):
    """Slopes of the activation at the units' pre-activations on a batch; arrays `(units,)`.

    Attributes:
        largest: largest |f'(z)|.
        is_saturated: whether f' and f'' are small on every sample, and stay small all the way to infinity on one side
            of it.
    """

    largest: np.ndarray
    is_saturated: np.ndarray


def slopes(entry: Activation, pre: Float[Array, "samples units"], threshold: float) -> Slopes:
    """Whether units are saturated.

    A small f' is not enough: at the minimum of GELU or SiLU f' is 0, f'' is not, and after the next small change of a
    weight there is a gradient again. So |f'| (and |f''| / `CURVATURE`) must be at most the threshold on the whole tail
    of the activation, left or right of the sample: beyond its last extremum.

    Args:
        entry: the activation; only the ends towards which it `saturates` count, and none if that is unknown.
        pre: pre-activations z.
        threshold: largest slope of a saturated unit.
    """

    def first(z: jax.Array) -> jax.Array:
        return jax.jvp(entry.function, (z,), (jnp.ones_like(z),))[1]

    def size(z: jax.Array) -> tuple[np.ndarray, np.ndarray]:
        slope, curvature = jax.jvp(first, (z,), (jnp.ones_like(z),))
        slope, curvature = (
            np.nan_to_num(np.abs(np.asarray(each, np.float64)), nan=np.inf) for each in (slope, curvature)
        )
        return slope, np.maximum(slope, curvature / CURVATURE)

    grid = np.linspace(-REACH, REACH, POINTS)
    _, on_grid = size(jnp.asarray(grid, pre.dtype))
    left = np.concatenate([[0.0], np.maximum.accumulate(on_grid)])
    right = np.concatenate([np.maximum.accumulate(on_grid[::-1])[::-1], [0.0]])
    ends = entry.saturates or ()
    left, right = (
        tail if end in ends else np.full_like(tail, np.inf) for tail, end in ((left, -np.inf), (right, np.inf))
    )
    slope, here = size(pre)
    place = np.searchsorted(grid, np.asarray(pre, np.float64))
    tail = np.maximum(here, np.minimum(left[place], right[place]))
    return Slopes(slope.max(axis=0), np.all(tail <= threshold, axis=0))
