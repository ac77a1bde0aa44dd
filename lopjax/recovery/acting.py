"""One action of a recovery controller: a rung is applied, weighed against the budget, kept or undone, and logged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from lopjax.interventions.checks import spaces_of
from lopjax.interventions.reasons import CHANGED, NO_UNIT_CHOSEN
from lopjax.interventions.slices import no_units
from lopjax.recovery.log import Outcome, write_entry
from lopjax.recovery.options import ControllerState, Options
from lopjax.recovery.rungs import Treatments
from lopjax.signals import Observed
from lopjax.training.interventions import Setting
from lopjax.training.steps import TrainState

Acted = tuple[TrainState, tuple[Any, ...], dict[str, Array], Array]
"""A network, the states of the interventions, which units were touched, and the code of a reason."""


def act_on(
    options: Options,
    setting: Setting,
    state: TrainState,
    own: ControllerState,
    observed: Observed,
    key: Array,
    step: Array,
    symptom: Array,
    scores: Array,
) -> tuple[TrainState, ControllerState, dict[str, Array], Array]:
    """Apply the rung of a symptom, and keep what it did if it is within the budget."""
    parts = options.parts
    table = np.array([part + [0] * (len(options.ladder) - len(part)) for part in parts])
    rung = jnp.asarray(table)[symptom, own.rung[symptom]]
    new, inner, touched, reason = _apply_rung(options.treatments, setting, state, own.own, observed, key, rung)
    before, after = (_loss(setting, each, observed) for each in (state, new))
    old_params, new_params = state.variables["params"], new.variables["params"]
    length = optax.tree.norm(old_params)
    change = optax.tree.norm(optax.tree.sub(new_params, old_params)) / jnp.where(length > 0, length, 1)
    chosen = jnp.concatenate(list(touched.values()))
    cost = own.spent + jnp.stack([jnp.mean(chosen, dtype=float), change.astype(float)])
    does = reason == CHANGED
    within, jumps = jnp.all(cost <= options.budget), ~(after <= before + options.max_jump * jnp.abs(before))
    jumps = jumps & ~jnp.isinf(jnp.asarray(options.max_jump, float))
    kept = does & within & ~jumps
    outcome = jnp.where(within, jnp.where(jumps, Outcome.LOSS_JUMP, Outcome.PENDING), Outcome.OVER_BUDGET)
    outcome = jnp.where(does, outcome, Outcome.NOTHING_DONE)
    values = {
        "step": step, "symptom": symptom, "rung": rung, "outcome": outcome, "reason": reason,
        "score": scores[symptom], "score_after": jnp.nan, "judged": -1, "units": jnp.sum(chosen), "change": change,
        "loss": before, "loss_after": after,
    }  # fmt: skip
    log = write_entry(own.log, own.actions % options.entries, jnp.bool_(True), **values)
    climbs = ~does | (does & within & jumps)  # the next look tries the next rung
    own = own._replace(
        log=log,
        actions=own.actions + 1,
        pending=jnp.where(kept, own.actions, -1),
        spent=jnp.where(kept, cost, own.spent),
        rung=jnp.where(climbs, climbed(options, own.rung, symptom), own.rung),
        rests_until=jnp.where(climbs, own.rests_until, step + options.cool_down).astype(jnp.int32),
        own=jax.tree.map(lambda a, b: jnp.where(kept, a, b), inner, own.own),
    )
    state = jax.tree.map(lambda a, b: jnp.where(kept, a, b), new, state)
    return state, own, {space: kept & mask for space, mask in touched.items()}, reason


def climbed(options: Options, rung: Array, symptom: Array) -> Array:
    """One rung higher for one symptom; from the highest, the lowest again."""
    height = jnp.maximum(jnp.asarray(options.heights, jnp.int32), 1)[symptom]
    return rung.at[symptom].set((rung[symptom] + 1) % height)


def _apply_rung(
    treatments: Treatments,
    setting: Setting,
    state: TrainState,
    own: tuple[Any, ...],
    observed: Observed,
    key: Array,
    rung: Array,
) -> Acted:
    """The network after one rung: its interventions one after the other, a branch for each.

    A branch for each intervention and not for each rung: two rungs share the search for a free kick, which takes longer
    to compile than all others together.
    """
    units = no_units(setting, spaces_of(setting.model.wiring, None))

    def branch(place: int) -> Callable[[Acted], Acted]:
        def run(before: Acted) -> Acted:
            state, own, *_ = before
            new, inner, report = treatments.interventions[place].apply(setting, own[place], state, observed, key, 0)
            touched = {**units, **{space: mask for space, mask in report.touched.items() if space in units}}
            return new, (*own[:place], inner, *own[place + 1 :]), touched, jnp.asarray(report.reason, jnp.int32)

        return run

    found: Acted = state, own, units, jnp.int32(NO_UNIT_CHOSEN)
    for stage in range(max(map(len, treatments.of_rung))):
        places = [each[stage] if stage < len(each) else None for each in treatments.of_rung]
        used = sorted({place for place in places if place is not None})
        which = np.array([len(used) if place is None else used.index(place) for place in places])
        found = jax.lax.switch(jnp.asarray(which)[rung], [*map(branch, used), lambda before: before], found)
    return found


def _loss(setting: Setting, state: TrainState, observed: Observed) -> Float[Array, ""]:
    """On the batch of the step, in eval mode."""
    logits = setting.model.apply(state.variables, observed.batch[0], dropout_rate=0.0).logits
    return setting.loss(logits, observed.batch[1])
