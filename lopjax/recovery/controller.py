"""A controller that notices a trap and leaves it: symptoms in, the gentlest intervention that helps out."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int8

from lopjax.arguments.integers import as_integer
from lopjax.detection.nearness import Status, unit_nearness, unit_status
from lopjax.detection.warnings import symptoms_of
from lopjax.interventions.checks import check_state, is_due, spaces_of
from lopjax.interventions.reasons import NO_UNIT_CHOSEN, NOT_ITS_STEP
from lopjax.interventions.slices import no_units
from lopjax.model import Variables
from lopjax.recovery.acting import Look, Looked, act_on, climbed, no_action
from lopjax.recovery.log import FATES, Outcome, empty_log, write_entry
from lopjax.recovery.options import (
    OFF,
    ON,
    ControllerState,
    Options,
    check_numbers,
    check_own,
    checked_budget,
    checked_limits,
    checked_probe,
)
from lopjax.recovery.rungs import DEFAULT_STRENGTHS, KINDS, RUNGS, SYMPTOMS, Strengths, check_ladder, make_treatments
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState


def recovery_controller(
    ladder: Sequence[str] = tuple(RUNGS),
    *,
    probe: tuple[Any, Any] | None = None,
    every: ArrayLike = 100,
    cool_down: ArrayLike = 200,
    on: Mapping[str, ArrayLike] = ON,
    off: Mapping[str, ArrayLike] = OFF,
    budget_units: ArrayLike = 2.0,
    budget_change: ArrayLike = 1.0,
    budget_every: ArrayLike = 1000,
    max_jump: ArrayLike = np.inf,
    strengths: Strengths = DEFAULT_STRENGTHS,
    clone_tolerance: ArrayLike = 0.01,
    entries: int = 32,
) -> Intervention:
    """Watch the symptoms, act when one is there, judge whether it went, and climb the ladder if it has not.

    An intervention like any other: pure, for scan and vmapped lanes; its numbers may be traced; it needs no boundaries.
    `explain(state.own.log)` says what was done, why, at what cost, and whether it helped. docs/recovery.md has the
    rules: whose turn it is, what is undone, what a report's logs hold.

    Args:
        ladder: names of `RUNGS`, the gentlest first.
        probe: `(inputs, labels)` of a fixed batch on which symptoms are measured; None for the batch of the step, whose
            rank and dead units change with the data as well as with the network.
        every: steps between two looks.
        cool_down: steps between an action and its judgement; nothing is done in between.
        on: by symptom, the score from which it is treated; those left out as in `ON`.
        off: by symptom, the score below which it has gone, above 0.
        budget_units: how many units may be changed in one period, as a share of all; 1 for every unit once.
        budget_change: sum of the relative changes `|d theta| / |theta|` in one period.
        budget_every: steps of a period, such as the length of a task.
        max_jump: by how much an action may raise the loss of the batch, relative to it; 0 for not at all but by
            rounding, infinity for any.
        strengths: numbers of the rungs.
        clone_tolerance: relative distance of activations up to which a unit is near a clone.
        entries: number of entries of the log that are kept.

    Returns:
        The intervention, whose state is a `ControllerState`.

    Raises:
        ValueError: an unknown rung or symptom, a number out of range, thresholds in the wrong order; on `init`, a state
            of another optimizer.
    """
    names, limits = check_ladder(ladder), checked_limits(on, off)
    check_numbers(every, cool_down, clone_tolerance)
    budget = checked_budget(budget_units, budget_change, budget_every, max_jump)
    treatments = make_treatments(names, strengths, clone_tolerance)
    fixed = checked_probe(probe)
    entries = as_integer(entries, 1, f"entries={entries!r}: must be a positive integer")
    options = Options(names, treatments, *limits, fixed, every, cool_down, budget, clone_tolerance, entries)
    return Intervention(partial(_init, options), partial(_apply, options))


def _init(options: Options, setting: Setting, state: TrainState) -> ControllerState:
    check_state(setting, state)
    none, minus = jnp.zeros(len(SYMPTOMS), jnp.int32), jnp.int32(-1)
    wiring = setting.model.wiring
    return ControllerState(
        is_on=none > 0,
        rung=none,
        turn=none - 1,
        refused=none,
        waits_until=none,
        is_known=jnp.bool_(True),
        best_rank=jnp.asarray(-jnp.inf),
        rests_until=jnp.int32(0),
        period=minus,
        spent=jnp.zeros(2),
        pending=minus,
        named=jnp.zeros(sum(wiring.size(space) for space in wiring.cloneable if wiring.sites_of(space)), bool),
        actions=jnp.int32(0),
        log=empty_log(options.entries),
        own=tuple(one.init(setting, state) for one in options.treatments.interventions),
    )


def _apply(
    options: Options,
    setting: Setting,
    own: ControllerState,
    state: TrainState,
    observed: Observed,
    key: jax.Array,
    step: Any,
) -> tuple[TrainState, ControllerState, Report]:
    units = no_units(setting, spaces_of(setting.model.wiring, None))

    def look(state: TrainState, own: ControllerState) -> Looked:
        return _look(options, setting, state, own, observed, key, jnp.asarray(step, jnp.int32))

    def rest(state: TrainState, own: ControllerState) -> Looked:
        return state, own, units, jnp.int32(NOT_ITS_STEP), no_action()

    bare = state._replace(own=())  # the state of the controller itself is passed beside it
    check_own(jax.eval_shape(partial(_init, options, setting), bare), own)
    found, own, touched, reason, done = jax.lax.cond(is_due(step, options.every), look, rest, bare, own)
    logs = {"actions": own.actions, "treating": jnp.sum(own.is_on & (options.heights > 0)), **done}
    return found._replace(own=state.own), own, Report(touched, reason, logs)


def symptom_scores(
    setting: Setting, variables: Variables, batch: tuple[Any, Any], clone_tolerance: ArrayLike
) -> tuple[Float[Array, "3"], Float[Array, ""], Int8[Array, " units"]]:
    """Shares of units that are near a clone, dead, saturated; the effective rank; the status of every unit. Pure.

    The shares are NaN if any unit is not finite.
    """
    nearness = unit_nearness(setting.model, variables, batch, loss=setting.loss)
    status = jnp.concatenate([unit_status(one, clone_tolerance) for one in nearness.values()])
    rank = symptoms_of(setting.model, variables, nearness, batch[0]).effective_rank
    shares = jnp.stack([jnp.mean(status == kind, dtype=float) for kind in KINDS[:3]])
    return jnp.where(jnp.any(status == Status.UNKNOWN), jnp.nan, shares), jnp.asarray(rank), status


def _look(
    options: Options,
    setting: Setting,
    state: TrainState,
    own: ControllerState,
    observed: Observed,
    key: Array,
    step: Array,
) -> Looked:
    """One look: measure, judge what is pending, and act if something is to be done."""
    batch = observed.batch if options.probe is None else options.probe
    shares, rank, status = symptom_scores(setting, state.variables, batch, options.clone_tolerance)
    # Activations of units say nothing of the output layer.
    numbers = [shares, *jax.tree.leaves(state.variables)]
    is_known = jnp.all(jnp.stack([jnp.all(jnp.isfinite(each)) for each in numbers]))
    best = jnp.fmax(own.best_rank, rank)
    look = Look(jnp.append(shares, jnp.maximum(1 - rank / best, 0)), status)
    period = (step // options.budget.every).astype(jnp.int32)
    own = own._replace(
        best_rank=best, period=period, spent=jnp.where(period == own.period, own.spent, jnp.zeros_like(own.spent))
    )
    own = _judged(options, own, look, is_known, step)
    own = _noted(own, is_known, step)
    symptom, acts = _next(options, own, look, step)
    units = no_units(setting, spaces_of(setting.model.wiring, None))

    def act(state: TrainState, own: ControllerState) -> Looked:
        return act_on(options, setting, state, own, observed, key, step, symptom, look)

    def wait(state: TrainState, own: ControllerState) -> Looked:
        return state, own, units, jnp.int32(NO_UNIT_CHOSEN), no_action()

    return jax.lax.cond(acts & is_known, act, wait, state, own)


def _next(options: Options, own: ControllerState, look: Look, step: Array) -> tuple[Array, Array]:
    """The symptom whose turn it is, and whether there is one.

    One that has waited for the budget is first; then the longest without a turn, so that none that cannot be helped
    keeps the others waiting; of those that have had none, the farthest beyond its threshold.
    """
    waiting = own.is_on & (options.heights > 0) & (step >= own.waits_until)
    turn = jnp.where(waiting, own.turn, jnp.iinfo(jnp.int32).max)
    is_first = waiting & (turn == jnp.min(turn))
    symptom = jnp.argmax(jnp.where(is_first, look.scores / options.on, -1.0))
    return symptom, jnp.any(waiting) & (step >= own.rests_until)


def _judged(options: Options, own: ControllerState, look: Look, is_known: Array, step: Array) -> ControllerState:
    """Which symptoms are on, and whether that of the last action went, once the cool-down is over."""
    # What is unknown has not gone: a network that an action has blown up is not cured.
    is_on = (look.scores >= options.on) | (own.is_on & ~(look.scores < options.off))
    place = own.pending % options.entries
    is_due = (own.pending >= 0) & ((step >= own.rests_until) | ~is_known)
    symptom = own.log.symptom[place]
    fates = jnp.stack([jnp.sum(own.named & (look.status == kind)) for kind in FATES])
    # Had those that have another symptom now kept the old one, would it still be there?
    others = jnp.array([(kind != Status.ALIVE) for kind in FATES]) & (jnp.array(FATES) != jnp.array(KINDS)[symptom])
    still = look.scores[symptom] + jnp.sum(jnp.where(others, fates, 0)) / look.status.size
    is_turned = ~(still < options.off[symptom])
    # It may have gone during the cool-down and be on its way back, without being on again.
    is_there = is_on[symptom] | ~(look.scores[symptom] < options.off[symptom])
    outcome = jnp.where(is_there, Outcome.STAYED, jnp.where(is_turned, Outcome.TURNED, Outcome.GONE))
    outcome = jnp.where(is_known, outcome, Outcome.UNKNOWN)
    log = write_entry(
        own.log, place, is_due, outcome=outcome, score_after=look.scores[symptom], judged=step, fates=fates
    )
    # Whatever has gone begins at the lowest rung the next time. Of a rung whose result is open the judgement decides:
    # if its symptom goes and comes back meanwhile, the rung has been tried all the same.
    is_open = (own.pending >= 0) & (jnp.arange(len(SYMPTOMS)) == symptom)
    has_gone = jnp.where(is_open, is_due & (outcome == Outcome.GONE), own.is_on & ~is_on)
    rung = jnp.where(has_gone, 0, own.rung)
    climbs = is_due & ((outcome == Outcome.STAYED) | (outcome == Outcome.TURNED))
    rung = jnp.where(climbs, climbed(options, own.rung, symptom), rung)
    refused, pending = jnp.where(is_on, own.refused, 0), jnp.where(is_due, -1, own.pending)
    return own._replace(is_on=is_on, log=log, rung=rung, refused=refused, pending=pending)


def _noted(own: ControllerState, is_known: Array, step: Array) -> ControllerState:
    """An entry when the network has ceased to be finite, which no rung mends."""
    place = own.actions % len(own.log.step)
    is_new = own.is_known & ~is_known
    empty = jax.tree.map(lambda field: field[0], empty_log(1))
    values = empty._replace(step=step, outcome=Outcome.UNKNOWN, times=1, last=step)._asdict()
    return own._replace(
        log=write_entry(own.log, place, is_new, **values), actions=own.actions + is_new, is_known=is_known
    )
