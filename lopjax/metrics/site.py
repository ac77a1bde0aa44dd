"""The arrays from which a metric is computed at one site of a network."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float


class SiteActivity(NamedTuple):
    """One site of a network on one batch. Positions, tokens and head width count as samples.

    Attributes:
        pre: pre-activations.
        post: activations.
        signal: backward signal, dL/d(post), where the loss L is a mean over the batch.
    """

    pre: Float[Array, "samples units"]
    post: Float[Array, "samples units"]
    signal: Float[Array, "samples units"]


SiteMetric = Callable[[SiteActivity], Any]
"""A metric that is measured at every site: it returns one real number and works under `jit` and `vmap`."""
