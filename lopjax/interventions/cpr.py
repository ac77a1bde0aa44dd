"""CPR: weights are pulled towards a fresh draw, more strongly the less a unit learns."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lopjax.interventions.checks import Spaces, check_every, check_state, is_due, spaces_of
from lopjax.interventions.reasons import reason_of
from lopjax.interventions.regrama import gradient_scores
from lopjax.interventions.slices import no_units
from lopjax.optim.checks import check
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState
from lopjax.wiring import Label, along

STEEPNESS = 16.0


def cpr(
    strength: ArrayLike = 0.015, every: ArrayLike = 1000, decay: ArrayLike = 0.99, spaces: Spaces = None
) -> Intervention:
    r"""Move the weights of units that learn little towards a fresh draw, at regular intervals.

    The utility of a unit is a trace of its gradient score (`gradient_scores`, whose mean over a layer is 1),
    :math:`u \leftarrow \eta u + (1-\eta) s`, started at 1. At every :math:`F`-th step

    .. math:: w_{in} \leftarrow (1-\rho f) w_{in} + \rho f w_{init}, \qquad w_{out} \leftarrow (1-\rho f) w_{out},
        \qquad f = \min(2 \sigma(-16 (u - 1)), 1)

    with :math:`w_{init}` drawn anew from the initial distribution of each array; then all utilities are reset to 1.
    Biases and norm parameters are kept, and so is the optimizer's state. The trace needs no bias correction, because it
    starts at the mean.

    Args:
        strength: :math:`\rho` in [0, 1].
        every: :math:`F`, a number of steps.
        decay: :math:`\eta` in [0, 1].
        spaces: unit spaces; None for all that can be reset.

    Returns:
        The intervention; its state holds the utilities of every space.

    Raises:
        ValueError: a number out of range; on `init`, an unknown or fixed space, or a state of another optimizer.

    References:
        arXiv 2607.24996.
    """
    check("strength", strength, 0.0, 1.0)
    check("decay", decay, 0.0, 1.0)
    check_every(every)

    def init(setting: Setting, state: TrainState) -> dict[str, jax.Array]:
        check_state(setting, state)
        wiring = setting.model.wiring
        return {space: jnp.ones(wiring.size(space)) for space in spaces_of(wiring, spaces)}

    def apply(
        setting: Setting, own: dict[str, jax.Array], state: TrainState, observed: Observed, key: jax.Array, step: Any
    ) -> tuple[TrainState, dict[str, jax.Array], Report]:
        wiring = setting.model.wiring

        def followed(space: str) -> Any:
            score = gradient_scores(wiring, observed.gradient, space)
            return (decay * own[space] + (1 - decay) * score).astype(own[space].dtype)

        utility = {space: followed(space) for space in own}
        share = {space: strength * pull(values) for space, values in utility.items()}

        def act(state: TrainState) -> TrainState:
            fresh = setting.model.init(key)["params"]
            params = wiring.map(lambda *args: _moved(share, *args), state.variables["params"], fresh)
            return state._replace(variables={**state.variables, "params": params})

        due = is_due(step, every)
        state = jax.lax.cond(due, act, lambda state: state, state)
        nothing = no_units(setting, tuple(own))
        touched = {space: jnp.where(due, share[space] > 0, nothing[space]) for space in own}
        own = {space: jnp.where(due, 1.0, values).astype(values.dtype) for space, values in utility.items()}
        return state, own, Report(touched, reason_of(due, touched))

    return Intervention(init, apply)


def pull(utility: Float[Array, " units"]) -> Float[Array, " units"]:
    """`f = min(2 sigmoid(-16 (u - 1)), 1)`: 1 up to the mean of the layer, and decreasing beyond it."""
    return jnp.minimum(2 * jax.nn.sigmoid(-STEEPNESS * (utility - 1)), 1)


def _moved(share: Mapping[str, Any], label: Label, leaf: jax.Array, fresh: jax.Array) -> jax.Array:
    """One array, moved towards the draw along output axes, then towards zero along input axes."""
    if not label.reads():
        return leaf
    moved = leaf
    for is_read in (False, True):
        for index, space, _ in label.unit_axes(share, is_read=is_read):
            part = along(share[space], index, leaf.ndim)
            moved = (1 - part) * moved if is_read else moved + part * (fresh - moved)
    return moved.astype(leaf.dtype)
