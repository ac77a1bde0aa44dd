"""How far units are from death: the change of incoming weights that kills a living one, or wakes a dead one."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lopjax.activations import activation
from lopjax.certificates.dead_units import plain_layer, revival_radius, source_norms
from lopjax.model import Params, Tap, samples_by_units
from lopjax.wiring import Wiring


def death_radius(
    params: Params, wiring: Wiring, space: str, taps: Mapping[str, Tap], inputs: Any
) -> Float[Array, " units"]:
    """Signed distance of ReLU units from the border between life and death on a batch, in units of (w, b).

    `r = min_x -z(x) / ||(h_prev(x), 1)||`. A unit with r > 0 is dead, and stays dead under every change of its
    incoming weights and bias shorter than r; some change of length r reaches z = 0 (`revival_radius`). A unit with
    r < 0 is alive on some sample, and none shorter than |r| kills it: at the sample of the minimum z falls by at most
    the length of the change times `||(h_prev, 1)||`. Both for h_prev fixed. Over the length of one step, r is a number
    of steps.

    Args:
        params: parameters of the network.
        wiring: its wiring.
        space: the space of the units.
        taps: activations on the batch, in eval mode.
        inputs: inputs of the batch.

    Returns:
        r of every unit; NaN where it is not known: a norm, pooling or a sum in front of the activation, several sites,
        or an activation that is not zero below zero alone.
    """
    unknown = jnp.full(wiring.size(space), jnp.nan)
    sites = wiring.sites_of(space)
    if len(sites) != 1:
        return unknown
    entry, layer = activation(wiring.site(sites[0]).activation), plain_layer(params, wiring, sites[0])
    if layer is None or not entry.is_zero_below_zero or entry.flat != ((-np.inf, 0.0),):
        return unknown
    source = str(layer.label.source)
    read = taps[source].post if source in taps else jnp.asarray(inputs)
    return revival_radius(samples_by_units(taps[sites[0]].pre), source_norms(layer, read))


def dead_on_batch(taps: Sequence[Tap], inputs: Any = None) -> Bool[Array, " units"]:
    """Which units carry nothing on a batch: one and the same activation at every sample, 0 where there are more sites.

    A ReLU that never fires, or a unit so saturated that its activation does not change in this precision: what it
    feeds is a second bias. Positions, tokens and the width of a head count as samples. Of a single one, and where all
    inputs are the same, any unit is constant: there only 0 counts.

    Args:
        taps: pre- and post-activations of all sites of one space.
        inputs: inputs of the batch; assumed to differ if None.
    """
    varies = True if inputs is None else jnp.any(jnp.asarray(inputs) != jnp.asarray(inputs)[:1])

    def constant(tap: Tap) -> jax.Array:
        posts = samples_by_units(tap.post)
        lowest = jnp.min(posts, axis=0)
        may_be_bias = jnp.logical_and(varies, len(taps) == 1 and len(posts) > 1)
        return (jnp.max(posts, axis=0) == lowest) & ((lowest == 0) | may_be_bias)

    return jnp.all(jnp.stack([constant(tap) for tap in taps]), axis=0)
