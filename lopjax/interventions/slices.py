"""Resetting units: incoming slices are drawn anew, outgoing ones zeroed, and nothing of the old unit remains."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from lopjax.interventions.moments import forget
from lopjax.training.interventions import Setting
from lopjax.training.steps import TrainState
from lopjax.wiring import Out, unit_masks, where

Units = Mapping[str, Bool[Array, " units"]]


def reset_units(
    setting: Setting,
    state: TrainState,
    units: Units,
    key: jax.Array,
    *,
    crossing: Literal["zero", "draw"] = "zero",
    only: Callable[[Any], bool] | None = None,
) -> TrainState:
    """Replace units by fresh ones that do not yet contribute to the output.

    In every array that writes a chosen unit, its slice is drawn anew from the initial distribution of *that array*
    (`model.init` of the key; statistics and norm scales are reset to their initial values); in every array that reads
    it, its slice is set to zero; the optimizer's state for both is reset.

    Args:
        setting: model and optimizer.
        state: state of the network.
        units: by unit space, which units; may be traced.
        key: random key of the new weights.
        crossing: a weight from one chosen unit to another is both outgoing and incoming: "zero" (a fresh unit
            contributes nothing, not even to fresh units) or "draw" (like a loop over layers from first to last).
        only: the nodes of the optimizer's state that are reset, see `moments.forget`; None for all.

    Returns:
        The state, with parameters, statistics and optimizer state changed on these slices only.

    Raises:
        ValueError: an unknown space, or a mask of another length.
    """
    incoming, outgoing = unit_masks(setting.model.wiring, dict(state.variables), units)
    fresh = setting.model.init(key)
    if crossing == "zero":
        fresh = jax.tree.map(lambda new, mask: jnp.where(mask, 0, new), fresh, outgoing)
    zeroed = jax.tree.map(lambda old, mask: jnp.where(mask, 0, old), dict(state.variables), outgoing)
    changed = where(incoming, fresh, zeroed)
    return forget_slices(setting, state._replace(variables=changed), incoming, outgoing, only)


def draw_units(setting: Setting, state: TrainState, units: Units, key: jax.Array) -> TrainState:
    """Draw incoming slices anew and keep outgoing ones, for units of any space that is written, outputs included."""
    incoming, _ = unit_masks(setting.model.wiring, dict(state.variables), units)
    changed = where(incoming, setting.model.init(key), dict(state.variables))
    return forget_slices(setting, state._replace(variables=changed), incoming, incoming, None)


def forget_slices(
    setting: Setting, state: TrainState, incoming: PyTree, outgoing: PyTree, only: Callable[[Any], bool] | None
) -> TrainState:
    """Reset the optimizer's state on the entries of either mask (over variables)."""
    either = jax.tree.map(jnp.logical_or, incoming["params"], outgoing["params"])
    params = state.variables["params"]
    return state._replace(opt_state=forget(setting.optimizer, state.opt_state, params, either, only))


def no_units(setting: Setting, spaces: tuple[str, ...]) -> dict[str, Bool[Array, " units"]]:
    """Masks that choose no units."""
    return {space: jnp.zeros(setting.model.wiring.size(space), bool) for space in spaces}


def is_written(setting: Setting, space: str) -> bool:
    """Whether any array writes a space, which is so except for the network's inputs."""
    return any(Out(space) in label.axes for _, label in setting.model.wiring.labels)
