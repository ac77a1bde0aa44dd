"""Activity of units on a batch, over all sites of their space, and the magnitudes of their weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Shaped

from lopjax.model import Tap, Taps, samples_by_units
from lopjax.wiring import In, Out, Wiring

PerUnit = Float[Array, " units"]


def over_sites(wiring: Wiring, taps: Taps, space: str, of: Callable[[Tap], jax.Array]) -> Shaped[Array, "sites units"]:
    """One number per unit at each site that writes the space: a residual stream has many sites, a plain layer one."""
    return jnp.stack([of(taps[site]) for site in wiring.sites_of(space)])


def mean_activation(tap: Tap) -> PerUnit:
    """`mean h` over samples; positions, tokens and the width of a head are samples."""
    return jnp.mean(samples_by_units(tap.post), axis=0)


def mean_magnitude(tap: Tap) -> PerUnit:
    """`mean |h|` over samples."""
    return jnp.mean(jnp.abs(samples_by_units(tap.post)), axis=0)


def weight_magnitude(
    wiring: Wiring, tree: PyTree, wanted: In | Out, reduce: Callable[..., jax.Array]
) -> Float[Array, "arrays units"]:
    """For each weight array with that axis, the magnitudes reduced over its other axes: one number per unit.

    Weight arrays are those that read a space: biases, positions and scales of norms do not count.

    Args:
        wiring: wiring of the network.
        tree: parameters, or a tree like them, such as a gradient.
        wanted: `In(space)` for outgoing weights, `Out(space)` for incoming ones.
        reduce: `jnp.sum` or `jnp.mean`.
    """
    magnitudes = [
        reduce(jnp.abs(array), axis=tuple(other for other in range(array.ndim) if other != index))
        for label, array in zip(wiring.labels_of(tree), jax.tree.leaves(tree), strict=True)
        for index, *_ in label.unit_axes((wanted.space,), is_read=isinstance(wanted, In))
        if label.reads()
    ]
    return jnp.stack(magnitudes) if magnitudes else jnp.zeros((0, wiring.size(wanted.space)))


def relative(scores: Float[Array, "rows units"]) -> Float[Array, "rows units"]:
    """Each row divided by its mean; a row of zeros is left unchanged."""
    mean = jnp.mean(scores, axis=-1, keepdims=True)
    return scores / jnp.where(mean == 0, 1, mean)
