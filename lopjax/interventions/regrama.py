"""ReGraMa: recycling units that do not learn."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lopjax.interventions.activity import relative, weight_magnitude
from lopjax.interventions.checks import Spaces, check_every, check_state, is_due, spaces_of
from lopjax.interventions.reasons import reason_of
from lopjax.interventions.slices import no_units, reset_units
from lopjax.model import Params
from lopjax.optim.checks import check
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState
from lopjax.wiring import Out, Wiring


def regrama(threshold: ArrayLike, every: ArrayLike = 1000, spaces: Spaces = None) -> Intervention:
    r"""Reset the units whose incoming weights have small gradients, at regular intervals.

    The score of a unit is the mean magnitude of the gradient of its incoming weights over the mean of the same over the
    layer (`gradient_scores`); units with a score of at most :math:`\tau` are reset as by `redo`. A layer without any
    gradient is reset entirely, unless the whole network has no gradient, since such a batch gives no information about
    units.

    Args:
        threshold: :math:`\tau`, at least 0.
        every: number of steps between two resets, and before the first.
        spaces: unit spaces; None for all that can be reset.

    Returns:
        The intervention; it has no state of its own.

    Raises:
        ValueError: a number out of range; on `init`, an unknown or fixed space, or a state of another optimizer.

    References:
        arXiv 2505.24061, *Measure gradients, not activations!*.
    """
    check("threshold", threshold, minimum=0.0)
    check_every(every)

    def init(setting: Setting, state: TrainState) -> tuple[()]:
        spaces_of(setting.model.wiring, spaces)
        check_state(setting, state)
        return ()

    def apply(
        setting: Setting, own: tuple[()], state: TrainState, observed: Observed, key: jax.Array, step: Any
    ) -> tuple[TrainState, tuple[()], Report]:
        wiring = setting.model.wiring
        chosen = spaces_of(wiring, spaces)

        def act(state: TrainState) -> tuple[TrainState, Any]:
            teaches = jnp.any(jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(observed.gradient)]))
            scores = {space: gradient_scores(wiring, observed.gradient, space) for space in chosen}
            idle = {space: teaches & (score <= threshold) for space, score in scores.items()}
            return reset_units(setting, state, idle, key), idle

        due = is_due(step, every)
        state, idle = jax.lax.cond(due, act, lambda state: (state, no_units(setting, chosen)), state)
        return state, own, Report(idle, reason_of(due, idle))

    return Intervention(init, apply)


def gradient_scores(wiring: Wiring, gradient: Params, space: str) -> Float[Array, " units"]:
    """Mean magnitude of the gradient of each unit's incoming weights, over the mean over units.

    Biases do not count. A unit that several arrays write (a residual stream, a head) has the largest of its scores: it
    is idle if none of them learns.
    """
    return jnp.max(relative(weight_magnitude(wiring, gradient, Out(space), jnp.mean)), axis=0)
