"""How near every unit is to being lost: to a clone, to death, to saturation. Graded, and in one sentence."""

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int8

from lopjax.activations import activation
from lopjax.arguments.networks import check_network
from lopjax.detection.clones import (
    Nearest,
    activation_rows,
    check_per_unit,
    multiples_by_activations,
    multiples_by_parameters,
    nearest_units,
    parameter_rows,
)
from lopjax.detection.death import dead_on_batch, death_radius
from lopjax.losses import mean_cross_entropy, pair
from lopjax.model import Model, Params, Tap, Variables, samples_by_units
from lopjax.optim.checks import check
from lopjax.signals import observe
from lopjax.wiring import unit_norms


class Status(IntEnum):
    """What a unit is at one moment; the larger number wins where two hold.

    Nothing is said of a unit with a number that is not finite, alive least of all: UNKNOWN.
    """

    ALIVE = 0
    SATURATED = 1
    NEAR_CLONE = 2
    DEAD = 3
    UNKNOWN = -1


class UnitNearness(NamedTuple):
    """How near the units of one space are to being lost; arrays `(units,)`.

    Attributes:
        activations: the nearest unit by what units do on the batch, mirror twins of odd activations and positive
            multiples of homogeneous ones included; the distance is relative.
        parameters: likewise by incoming weights.
        is_dead: constant on the batch.
        death_radius: see `death_radius`: negative for a living ReLU, positive for a dead one, NaN where unknown.
        death_steps: the same over the length of the step that was given, per unit: so many steps of this length cannot
            kill (negative) or wake (positive) it. NaN without a step; infinite where the unit did not move.
        slope: largest |f'| on the batch, over all sites.
        time_scale: norm of the unit's incoming parameters over that of their gradient: the time of gradient flow (steps
            times learning rate) in which they change by their own size.
    """

    activations: Nearest
    parameters: Nearest
    is_dead: Bool[Array, " units"]
    death_radius: Float[Array, " units"]
    death_steps: Float[Array, " units"]
    slope: Float[Array, " units"]
    time_scale: Float[Array, " units"]


def unit_nearness(
    model: Model,
    variables: Variables,
    batch: tuple[Any, Any],
    *,
    step: Params | None = None,
    loss: Callable[[jax.Array, Any], jax.Array] = mean_cross_entropy,
) -> dict[str, UnitNearness]:
    """Everything graded about every unit, on one batch in eval mode. Pure, static shapes; use under jit.

    Args:
        model: any model.
        variables: its variables.
        batch: `(inputs, labels)`.
        step: change of the parameters in one training step, a tree like them: what the radii are measured against.
        loss: `(logits, labels) -> scalar`, a mean over samples.

    Returns:
        For every cloneable space with a site.

    Raises:
        ValueError: as from `lopjax.signals.observe`.
    """
    check_network(model, variables)
    wiring, params, batch = model.wiring, variables["params"], jax.tree.map(jnp.asarray, pair(batch))
    observed = observe(model, variables, batch, loss=loss, dropout_rate=0.0, signals=False)
    nearness = {}
    for space in (space for space in wiring.cloneable if wiring.sites_of(space)):
        taps = [observed.taps[site] for site in wiring.sites_of(space)]
        radius = death_radius(params, wiring, space, observed.taps, batch[0])
        nearness[space] = UnitNearness(
            activations=nearest_units(activation_rows(taps), multiples_by_activations(wiring, space)),
            parameters=nearest_units(parameter_rows(wiring, variables, space), multiples_by_parameters(wiring, space)),
            is_dead=dead_on_batch(taps, batch[0]),
            death_radius=radius,
            death_steps=radius / unit_norms(wiring, step, space)[0] if step is not None else radius * jnp.nan,
            slope=largest_slope(taps),
            time_scale=unit_norms(wiring, params, space)[0] / unit_norms(wiring, observed.gradient, space)[0],
        )
    return nearness


def largest_slope(taps: Sequence[Tap]) -> Float[Array, " units"]:
    """Largest |f'| of every unit of a space, over samples and sites; NaN where a pre-activation is.

    Args:
        taps: pre- and post-activations of all sites of the space.
    """

    def of_site(tap: Tap) -> jax.Array:
        pre = samples_by_units(tap.pre)
        pre = pre.astype(jnp.promote_types(pre.dtype, jnp.float32))
        slopes = jax.jvp(activation(tap.activation).function, (pre,), (jnp.ones_like(pre),))[1]
        # The derivative of a ReLU at NaN is 0.
        return jnp.max(jnp.where(jnp.isnan(pre), jnp.nan, jnp.abs(slopes)), axis=0)

    return jnp.max(jnp.stack([of_site(tap) for tap in taps]), axis=0)


def unit_status(
    nearness: UnitNearness, clone_tolerance: ArrayLike = 0.01, slope_threshold: ArrayLike = 1e-4
) -> Int8[Array, " units"]:
    """One number of `Status` per unit.

    Args:
        nearness: nearness of its space.
        clone_tolerance: relative distance of activations up to which a unit is a near-clone.
        slope_threshold: a unit is saturated if |f'| is at most this on every sample.

    Raises:
        ValueError: arrays that do not fit one another, or a number that is no tolerance.
    """
    check_per_unit(slope=nearness.slope, distance=nearness.activations.distance, is_dead=nearness.is_dead)
    check("clone_tolerance", clone_tolerance, minimum=0.0)
    check("slope_threshold", slope_threshold, minimum=0.0)
    return status_from(
        nearness.slope, nearness.activations.distance, nearness.is_dead, clone_tolerance, slope_threshold
    )


def status_from(
    slope: Float[Array | np.ndarray, " units"],
    distance: Float[Array | np.ndarray, " units"],
    is_dead: Bool[Array | np.ndarray, " units"],
    clone_tolerance: ArrayLike = 0.01,
    slope_threshold: ArrayLike = 1e-4,
) -> Int8[Array, " units"]:
    """One number of `Status` per unit, from what activations alone tell.

    Args:
        slope: largest |f'| on the batch, see `largest_slope`.
        distance: to the nearest clone by activations, see `nearest_units`.
        is_dead: see `dead_on_batch`.
        clone_tolerance: as in `unit_status`.
        slope_threshold: as in `unit_status`.
    """
    status = jnp.where(slope <= slope_threshold, Status.SATURATED, Status.ALIVE)
    status = jnp.where(distance <= clone_tolerance, Status.NEAR_CLONE, status)
    status = jnp.where(is_dead, Status.DEAD, status)
    is_known = ~jnp.isnan(slope) & ~jnp.isnan(distance)
    return jnp.where(is_known, status, Status.UNKNOWN).astype(jnp.int8)


def describe_units(
    nearness: Mapping[str, UnitNearness], clone_tolerance: float = 0.01, slope_threshold: float = 1e-4, most: int = 4
) -> str:
    """A summary for users, off the device: one line for the network, and one for each space with a finding.

    Args:
        nearness: nearness of one network.
        clone_tolerance: as in `unit_status`.
        slope_threshold: as in `unit_status`.
        most: how many units of a kind are named in a line.
    """
    nearness = jax.device_get(dict(nearness))
    status = {space: np.asarray(unit_status(one, clone_tolerance, slope_threshold)) for space, one in nearness.items()}
    counts = {kind: sum(int(np.sum(own == kind)) for own in status.values()) for kind in Status}
    lines = [
        f"{_units(counts[Status.NEAR_CLONE])} within {100 * clone_tolerance:g} % of a clone, "
        f"{counts[Status.DEAD]} dead, {counts[Status.SATURATED]} saturated, of {sum(counts.values())}"
        + (f", of which {counts[Status.UNKNOWN]} unknown: not finite" if counts[Status.UNKNOWN] else "")
    ]
    for space, own in status.items():
        parts = [_named(space, nearness[space], own, kind, most) for kind in list(Status)[:0:-1]]
        if any(parts):
            lines.append(f"  {space}: " + "; ".join(part for part in parts if part))
    return "\n".join(lines)


def _units(number: int) -> str:
    return f"{number} unit{'' if number == 1 else 's'}"


def _named(space: str, nearness: UnitNearness, status: np.ndarray, kind: Status, most: int) -> str:
    """The units of one kind, with the number that says how near each is."""
    units = np.flatnonzero(status == kind)
    if not len(units):
        return ""
    names = [f"{unit}{_detail(nearness, int(unit), kind)}" for unit in units[:most]]
    more = f" and {len(units) - most} more" if len(units) > most else ""
    return f"{kind.name.lower().replace('_', '-')} {', '.join(names)}{more}"


def _detail(nearness: UnitNearness, unit: int, kind: Status) -> str:
    if kind is Status.NEAR_CLONE:
        near = nearness.activations
        multiple = "" if near.multiple[unit] == 1 else f"{near.multiple[unit]:.3g} x "
        gap = near.distance[unit]
        to = "" if gap == 0 else f" to {100 * gap:.2g} %" if gap >= 1e-5 else " to less than 0.001 %"
        return f" (= {multiple}unit {near.unit[unit]}{to})"
    if kind is Status.UNKNOWN:
        return ""
    if kind is Status.DEAD:
        radius = nearness.death_radius[unit]
        return f" (wakes beyond {radius:.2g})" if np.isfinite(radius) else ""
    return f" (time scale {nearness.time_scale[unit]:.2g})"
