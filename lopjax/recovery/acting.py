"""One action of a recovery controller: a rung is applied, weighed against the budget, kept or undone, and logged."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from lopjax.interventions.checks import spaces_of
from lopjax.interventions.reasons import AS_IT_WAS, CHANGED, NO_UNIT_CHOSEN
from lopjax.interventions.slices import no_units
from lopjax.recovery.log import Outcome, add_entry
from lopjax.recovery.options import ControllerState, Options
from lopjax.recovery.rungs import KINDS, RUNGS
from lopjax.signals import Observed
from lopjax.tolerance import rounding_unit
from lopjax.training.interventions import Setting
from lopjax.training.steps import TrainState

Acted = tuple[TrainState, tuple[Any, ...], dict[str, Array], Array]
"""A network, the states of the interventions, which units were touched, and the code of a reason."""
Looked = tuple[TrainState, ControllerState, dict[str, Array], Array, dict[str, Array]]
"""The network, the controller, which units were touched, the code of a reason, and what the action came to."""

# Sums of a budget's parts may exceed it by rounding.
_SLACK = 1 + 1e-5
# Before every step, and before the -1 of a symptom that has had no turn.
_FIRST = -2


class Look(NamedTuple):
    """What a look at the network has found.

    Attributes:
        scores: one for each of `SYMPTOMS`, `(4,)`; NaN where it cannot be measured.
        status: a number of `Status` for every unit, all spaces in a row.
    """

    scores: Float[Array, "4"]
    status: Array


class Tried(NamedTuple):
    """A rung applied, and what that would cost.

    Attributes:
        state: network after it.
        own: states of the interventions after it.
        touched: by unit space, the units that it has changed.
        reason: its own reason.
        is_change: whether any number differs afterwards.
        cost: units and relative change, `(2,)`.
        losses: on the batch of the step, before and after, `(2,)`.
    """

    state: TrainState
    own: tuple[Any, ...]
    touched: dict[str, Array]
    reason: Array
    is_change: Array
    cost: Float[Array, "2"]
    losses: Float[Array, "2"]


def act_on(
    options: Options,
    setting: Setting,
    state: TrainState,
    own: ControllerState,
    observed: Observed,
    key: Array,
    step: Array,
    symptom: Array,
    look: Look,
) -> Looked:
    """Apply the rung of a symptom, and keep what it did if it is finite, within the budget and without a jump."""
    table = np.array([part + [0] * (len(options.ladder) - len(part)) for part in options.parts])
    rung = jnp.asarray(table)[symptom, own.rung[symptom]]
    tried = _tried(options, setting, state, own.own, observed, key, rung)
    limits = options.budget.limits * jnp.array([_num_units(setting), 1])
    outcome, is_affordable = _outcome(options, tried, own.spent, limits)
    kept = outcome == Outcome.PENDING
    log, actions = add_entry(
        own.log, own.actions, step=step, symptom=symptom, outcome=outcome, reason=tried.reason,
        rung=jnp.array([list(RUNGS).index(name) for name in options.ladder])[rung], score=look.scores[symptom],
        units=tried.cost[0], change=tried.cost[1], left=limits - own.spent, loss=tried.losses[0],
        loss_after=tried.losses[1],
    )  # fmt: skip
    own = _after_turn(options, own, symptom, step, kept, waits=(outcome == Outcome.OVER_BUDGET) & is_affordable)
    own = own._replace(
        log=log,
        actions=actions,
        pending=jnp.where(kept, actions - 1, -1),
        named=jnp.where(kept, look.status == jnp.array(KINDS)[symptom], own.named),
        spent=jnp.where(kept, own.spent + tried.cost, own.spent),
        own=jax.tree.map(lambda new, old: jnp.where(kept, new, old), tried.own, own.own),
    )
    state = jax.tree.map(lambda new, old: jnp.where(kept, new, old), tried.state, state)
    reason = jnp.where(kept | (outcome == Outcome.NOTHING_DONE), tried.reason, AS_IT_WAS)
    return state, own, {s: kept & mask for s, mask in tried.touched.items()}, reason, _done(tried, outcome)


def no_action() -> dict[str, Array]:
    """What no action comes to; see `_done`."""
    return {"kept": jnp.bool_(False), "undone": jnp.bool_(False), "change": jnp.zeros(()), "rise": jnp.zeros(())}


def climbed(options: Options, rung: Array, symptom: Array) -> Array:
    """One rung higher for one symptom; from the highest, the lowest again."""
    height = jnp.maximum(jnp.asarray(options.heights, jnp.int32), 1)[symptom]
    return rung.at[symptom].set((rung[symptom] + 1) % height)


def _after_turn(
    options: Options, own: ControllerState, symptom: Array, step: Array, kept: Array, waits: Array
) -> ControllerState:
    """Who is next, and when: the rest after an action, the next rung after a refusal, or the budget's next period.

    What only lacks budget keeps its rung and is the first to have a turn.
    A symptom all of whose rungs were refused waits a cool-down.
    """
    # Not beyond the integers, or the longest of rests would be none.
    rested = step + jnp.minimum(options.cool_down, jnp.iinfo(jnp.int32).max - step)
    refused = jnp.where(waits, own.refused[symptom], jnp.where(kept, 0, own.refused[symptom] + 1))
    is_round = refused >= jnp.maximum(jnp.asarray(options.heights), 1)[symptom]
    until = jnp.where(is_round, rested, own.waits_until[symptom])
    until = jnp.where(waits, (own.period + 1) * options.budget.every, until)
    return own._replace(
        rung=jnp.where(kept | waits, own.rung, climbed(options, own.rung, symptom)),
        turn=own.turn.at[symptom].set(jnp.where(waits, _FIRST, step)),
        refused=own.refused.at[symptom].set(jnp.where(is_round, 0, refused)),
        waits_until=own.waits_until.at[symptom].set(until.astype(jnp.int32)),
        rests_until=jnp.where(kept, rested, own.rests_until).astype(jnp.int32),
    )


def _tried(
    options: Options,
    setting: Setting,
    state: TrainState,
    own: tuple[Any, ...],
    observed: Observed,
    key: Array,
    rung: Array,
) -> Tried:
    seen = _seen(options, setting, state, observed)
    new, inner, touched, reason = _apply_rung(options, setting, state, own, seen, key, rung)
    pairs = zip(jax.tree.leaves(new.variables), jax.tree.leaves(state.variables), strict=True)
    is_change = jnp.any(jnp.stack([jnp.any(a != b) for a, b in pairs]))
    # In 16 bits a sum of squares loses digits that the budget counts.
    old_params, new_params = (
        jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), each.variables["params"])
        for each in (state, new)
    )
    length = optax.tree.norm(old_params)
    change = optax.tree.norm(optax.tree.sub(new_params, old_params)) / jnp.where(length > 0, length, 1)
    moves_all = jnp.array([RUNGS[name].moves_all for name in options.ladder])[rung]
    touched = {space: mask | (moves_all & is_change) for space, mask in touched.items()}
    chosen = jnp.sum(jnp.concatenate(list(touched.values())))
    units = jnp.where(moves_all, _num_units(setting), chosen)
    cost = jnp.where(is_change, jnp.stack([units.astype(float), change.astype(float)]), 0.0)
    reason = jnp.where(is_change, CHANGED, jnp.where(reason == CHANGED, AS_IT_WAS, reason))
    losses = jnp.stack([_loss(setting, each, observed) for each in (state, new)])
    return Tried(new, inner, touched, reason, is_change, cost, losses)


def _seen(options: Options, setting: Setting, state: TrainState, observed: Observed) -> Observed:
    """What rungs choose units by: the data that show the symptom. On one sample any unit is constant."""
    if options.probe is None:
        return observed
    found = setting.model.apply(state.variables, options.probe[0], dropout_rate=0.0)
    return observed._replace(batch=options.probe, logits=found.logits, taps=found.taps)


def _outcome(
    options: Options, tried: Tried, spent: Float[Array, "2"], limits: Float[Array, "2"]
) -> tuple[Array, Array]:
    """The outcome, and whether a new period's budget would do. PENDING if what was done is kept."""
    before, after = tried.losses
    is_finite = jnp.all(jnp.isfinite(tried.cost)) & (jnp.isfinite(after) | ~jnp.isfinite(before))
    # A rung that keeps the function still rounds.
    allowed = (options.budget.max_jump + rounding_unit(before.dtype)) * jnp.abs(before)
    jumps = ~(after <= before + allowed) & ~jnp.isinf(jnp.asarray(options.budget.max_jump, float))
    outcome = jnp.where(jumps, Outcome.LOSS_JUMP, Outcome.PENDING)
    outcome = jnp.where(jnp.all(spent + tried.cost <= limits * _SLACK), outcome, Outcome.OVER_BUDGET)
    outcome = jnp.where(is_finite, outcome, Outcome.NOT_FINITE)
    outcome = jnp.where(tried.is_change, outcome, Outcome.NOTHING_DONE)
    return outcome, jnp.all(tried.cost <= limits * _SLACK)


def _done(tried: Tried, outcome: Array) -> dict[str, Array]:
    """What an action of this step came to, 0 without one: to be summed or averaged over steps."""
    kept = outcome == Outcome.PENDING
    undone = ~kept & (outcome != Outcome.NOTHING_DONE)
    change, rise = tried.cost[1], (tried.losses[1] - tried.losses[0]).astype(float)
    return {"kept": kept, "undone": undone, "change": jnp.where(kept, change, 0), "rise": jnp.where(kept, rise, 0)}


def _num_units(setting: Setting) -> int:
    """All units that rungs may change."""
    wiring = setting.model.wiring
    return sum(wiring.size(space) for space in spaces_of(wiring, None))


def _apply_rung(
    options: Options,
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
    treatments, units = options.treatments, no_units(setting, spaces_of(setting.model.wiring, None))

    def branch(place: int) -> Callable[[Acted], Acted]:
        def run(before: Acted) -> Acted:
            state, own, touched, _ = before
            new, inner, report = treatments.interventions[place].apply(setting, own[place], state, observed, key, 0)
            touched = {space: mask | report.touched.get(space, False) for space, mask in touched.items()}
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
