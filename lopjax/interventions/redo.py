"""ReDo: recycling dormant units."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from lopjax.interventions.activity import over_sites
from lopjax.interventions.checks import Spaces, check_every, check_state, is_due, spaces_of
from lopjax.interventions.reasons import reason_of
from lopjax.interventions.slices import no_units, reset_units
from lopjax.metrics import dormant_scores
from lopjax.model import samples_by_units
from lopjax.optim.checks import check
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState


def redo(threshold: ArrayLike = 0.025, every: ArrayLike = 1000, spaces: Spaces = None) -> Intervention:
    r"""Reset the units that are dormant on the batch, at regular intervals.

    The score of a unit is its mean magnitude over the mean of the layer
    (`lopjax.metrics.dormant_scores`); units with :math:`s_j \le \tau` get new incoming weights and zero
    outgoing ones, and the optimizer forgets both. A unit that is observed at several sites (a residual stream) has the
    largest of its scores: it is dormant only if it is dormant at all of them.

    The authors' code divides by the mean, as here, though the paper's text says that scores sum to 1. At a dense layer
    after a flattened convolution, it repeats a mask that it should tile, and so resets the wrong rows; here the wiring
    says which rows belong to a channel.

    Args:
        threshold: :math:`\tau`, at least 0; 0 resets units that are zero on the whole batch. The authors' code has the
            default 0.025; their runs used 0.1.
        every: :math:`F`, the number of steps between two resets; the first is after :math:`F` steps.
        spaces: unit spaces; None for all that can be reset.

    Returns:
        The intervention; it has no state of its own.

    Raises:
        ValueError: a number out of range; on `init`, an unknown or fixed space, or a state of another optimizer.

    References:
        Sokar, Agarwal, Castro & Evci, arXiv 2302.12902, algorithm 1; google/dopamine, `labs/redo`.
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

        def scores(space: str) -> jax.Array:
            return over_sites(wiring, observed.taps, space, lambda tap: dormant_scores(samples_by_units(tap.post)))

        def act(state: TrainState) -> tuple[TrainState, Any]:
            dormant = {space: jnp.max(scores(space), axis=0) <= threshold for space in chosen}
            return reset_units(setting, state, dormant, key), dormant

        due = is_due(step, every)
        state, dormant = jax.lax.cond(due, act, lambda state: (state, no_units(setting, chosen)), state)
        return state, own, Report(dormant, reason_of(due, dormant))

    return Intervention(init, apply)
