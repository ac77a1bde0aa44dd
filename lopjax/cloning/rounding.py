"""How large a residual rounding alone can produce, from the dtype and the size of the network.

A certificate and a search for clones share these numbers, so that they cannot contradict one another.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lopjax.tolerance import CERTAIN_FROM, rounding_unit
from lopjax.wiring import Wiring

__all__ = ["CERTAIN_FROM", "at_least_float32", "check_precision", "parameter_tolerance", "signal_tolerance"]


def parameter_tolerance(params: Any) -> float:
    """`64 eps` of the type in which parameters are compared, for residuals relative to a block's own size.

    That type is the parameters' own, and float32 for 16-bit ones: their differences are exact there, and two bfloat16
    numbers that differ do so by at least 2^-8 of their size.

    Args:
        params: parameters, at least one array.
    """
    return rounding_unit(_compared(jnp.result_type(*jax.tree.leaves(params))))


def signal_tolerance(params: Any, wiring: Wiring, taps: Mapping[str, Any] | None = None) -> float:
    """`64 eps sqrt(N)`, N the longest sum in a layer, for activations and gradients.

    Args:
        params: parameters.
        wiring: their wiring.
        taps: what the sites carry (or its shapes): the dtype that the network computes in, if that is coarser than the
            dtype of the parameters.
    """
    longest = 1
    for label, leaf in zip(wiring.labels_of(params), jax.tree.leaves(params), strict=True):
        if label.reads():
            longest = max(longest, label.num_summed(leaf.shape))
    computed = max((rounding_unit(leaf.dtype) for leaf in jax.tree.leaves(taps or {})), default=0.0)
    return max(parameter_tolerance(params), computed) * longest**0.5


def at_least_float32(tree: Any) -> Any:
    """The same numbers with every 16-bit or smaller floating point array in float32; nothing is rounded."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, _compared(jnp.asarray(leaf).dtype)), tree)


def check_precision(taps: Mapping[str, Any]) -> None:
    """Refuse a network that computes in 16 bits: its activations cannot tell units apart.

    Args:
        taps: what the sites carry, or its shapes.

    Raises:
        ValueError: a site that carries a floating point type smaller than float32.
    """
    for site, tap in taps.items():
        if jnp.finfo(tap.post.dtype).bits < 32:
            raise ValueError(
                f"site {site!r} carries {tap.post.dtype}: its rounding hides the differences between units; "
                "build the model with compute_dtype='float32' (the same parameters fit), or certify without a batch"
            )


def _compared(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else dtype
