"""How close a network is to what would trap it: how near its units are to clones, how firmly dead the dead ones are.

Nothing here has been cloned or killed by hand. Measured on the fixed probe in eval mode.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lopjax.certificates.dead_units import (
    PlainLayer,
    plain_layer,
    revival_radius,
    rounding_level,
    source_norms,
    summand_sizes,
)
from lopjax.detection import (
    activation_rows,
    dead_on_batch,
    multiples_by_activations,
    nearest_units,
)
from lopjax.detection.nearness import largest_slope, status_from
from lopjax.model import Model, Taps, Variables, samples_by_units
from lopjax.training import Logs

# Two units count as near-clones when their activations differ by less than this share of the larger one.
NEAR = 0.01


def trap_distances(model: Model, variables: Variables, inputs: jax.Array, taps: Taps) -> Logs:
    """Distances to the nearest clones and radii of dead units, as scalars. Pure, static shapes.

    Args:
        model: the network.
        variables: its variables.
        inputs: `(batch, *input_shape)` of the probe.
        taps: activations of the network on it.

    Returns:
        `clones/nearest/<space>`: the smallest distance between two living units of a space, by activations up to the
        multiples that clones may have, 0 for clones, infinite where fewer than two units live
        (`lopjax.detection.clone_distances`); `clones/near/<space>`: the share of units within 1 % of another.
        For every ReLU site whose pre-activation is the output of one layer (nothing is claimed about others):
        `trapped/dead/<site>`, how many units are certified to be off on every sample, `z < -b` with b the most that
        rounding does to z; and of these `trapped/radius/<site>` and `trapped/radius_median/<site>`, the least and the
        median revival radius, infinite where there are none. While what the unit reads stays as it is, no change of its
        incoming weights and bias of a smaller norm wakes it on a sample of the probe
        (`lopjax.certificates.revival_radius`).
    """
    logs = _dead(model, variables, inputs, taps)
    for space, distance in clone_distance(model, taps).items():
        logs |= {
            f"clones/nearest/{space}": jnp.min(distance),
            f"clones/near/{space}": jnp.mean(distance <= NEAR),
        }
    return logs


def unit_lives(model: Model, inputs: jax.Array, taps: Taps) -> dict[str, jax.Array]:
    """What every unit is now, by unit space: numbers of `lopjax.detection.Status`. Arguments as of `trap_distances`."""
    statuses = {}
    for space, distance in clone_distance(model, taps).items():
        tapped = [taps[site] for site in model.wiring.sites_of(space)]
        statuses[space] = status_from(largest_slope(tapped), distance, dead_on_batch(tapped, inputs), NEAR)
    return statuses


def clone_distance(model: Model, taps: Taps) -> dict[str, jax.Array]:
    """Distance of every unit to its nearest clone by activations, for every cloneable space with a site."""
    # Spaces of one kind share a vmapped program: compiling is what a short run waits for.
    alike: dict[Any, dict[str, jax.Array]] = {}
    for space in model.wiring.cloneable:
        if tapped := [taps[site] for site in model.wiring.sites_of(space)]:
            rows, multiples = activation_rows(tapped), multiples_by_activations(model.wiring, space)
            alike.setdefault((rows.shape, multiples), {})[space] = rows
    found = {}
    for (_, multiples), spaces in alike.items():
        stacked = jnp.stack(list(spaces.values()))
        distances = jax.vmap(lambda rows, multiples=multiples: nearest_units(rows, multiples).distance)(stacked)
        found |= dict(zip(spaces, distances, strict=True))
    return found


def _dead(model: Model, variables: Variables, inputs: jax.Array, taps: Taps) -> Logs:
    wiring, radii = model.wiring, {}
    for site, facts in wiring.sites:
        layer = plain_layer(variables["params"], wiring, site) if facts.activation == "relu" else None
        if layer is None:
            continue
        source = str(layer.label.source)
        inputs_of_layer = taps[source].post if source in taps else inputs
        radius = certified_radius(layer, inputs_of_layer, samples_by_units(taps[site].pre), depth=len(wiring.sites))
        is_dead = radius > 0
        radii[f"trapped/dead/{site}"] = jnp.sum(is_dead)
        radii[f"trapped/radius/{site}"] = jnp.min(jnp.where(is_dead, radius, jnp.inf))
        median = jnp.nanmedian(jnp.where(is_dead, radius, jnp.nan))
        radii[f"trapped/radius_median/{site}"] = jnp.where(jnp.any(is_dead), median, jnp.inf)
    return radii


def certified_radius(layer: PlainLayer, read: jax.Array, pre: jax.Array, depth: int) -> jax.Array:
    """Revival radius of every unit of a layer, rounding counted against it; not positive for a unit that may live.

    Args:
        layer: the layer that alone computes the pre-activation.
        read: `(batch, ...)`, what it reads.
        pre: `(samples, units)`, its pre-activations z as computed.
        depth: how many layers rounding has gone through, at most.
    """
    # Every layer below rounds, too, and passes its error on: one more share of the summands' size for each.
    level = depth * rounding_level(layer, float(jnp.finfo(pre.dtype).eps))
    highest = pre + level * samples_by_units(summand_sizes(layer, read))
    return revival_radius(highest, source_norms(layer, read))
