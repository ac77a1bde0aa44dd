"""What rounding alone can leave of a residual, from the dtype and the size of the network."""

from math import prod

import jax
import jax.numpy as jnp

from lopjax.model import Params, Taps
from lopjax.wiring import Out, Wiring

# A residual up to the tolerance counts as zero, from this many tolerances on as not zero, in between as undecided.
GAP = 10.0


def parameter_tolerance(params: Params) -> float:
    """`64 eps` of the parameters' dtype, for residuals relative to an array's own norm."""
    return 64 * float(jnp.finfo(jnp.result_type(*jax.tree.leaves(params))).eps)


def signal_tolerance(params: Params, wiring: Wiring, taps: Taps | None = None) -> float:
    """`64 eps sqrt(N)`, N the longest sum in a layer, for activations and gradients.

    Args:
        params: parameters.
        wiring: their wiring.
        taps: what the sites carry (or its shapes): the dtype that the network computes in, if it is coarser than that
            of the parameters.
    """
    longest = 1
    for label, leaf in zip(wiring.labels_of(params), jax.tree.leaves(params), strict=True):
        if label.reads():
            summed = [size for size, axis in zip(leaf.shape, label.axes) if not isinstance(axis, Out)]
            longest = max(longest, prod(summed))
    computed = max((float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(taps or {})), default=0.0)
    return max(parameter_tolerance(params), 64 * computed) * longest**0.5
