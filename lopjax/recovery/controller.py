"""A controller that notices a trap and leaves it: symptoms in, the gentlest intervention that helps out."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from lopjax.arguments.integers import as_integer
from lopjax.detection.nearness import Status, unit_nearness, unit_status
from lopjax.detection.warnings import symptoms_of
from lopjax.interventions.checks import check_state, is_due, spaces_of
from lopjax.interventions.reasons import NO_UNIT_CHOSEN, NOT_ITS_STEP
from lopjax.interventions.slices import no_units
from lopjax.model import Variables
from lopjax.recovery.acting import act_on, climbed
from lopjax.recovery.log import Outcome, empty_log, write_entry
from lopjax.recovery.options import OFF, ON, ControllerState, Options, check_numbers, checked_limits
from lopjax.recovery.rungs import DEFAULT_STRENGTHS, RUNGS, SYMPTOMS, Strengths, check_ladder, make_treatments
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState

Looked = tuple[TrainState, ControllerState, dict[str, Array], Array]
"""The network, the controller, which units were touched, and the code of a reason."""


def recovery_controller(
    ladder: Sequence[str] = tuple(RUNGS),
    *,
    probe: tuple[Any, Any] | None = None,
    every: ArrayLike = 100,
    cool_down: ArrayLike = 200,
    on: Mapping[str, ArrayLike] = ON,
    off: Mapping[str, ArrayLike] = OFF,
    budget_units: ArrayLike = 1.0,
    budget_change: ArrayLike = 1.0,
    budget_every: ArrayLike = 1000,
    max_jump: ArrayLike = np.inf,
    strengths: Strengths = DEFAULT_STRENGTHS,
    clone_tolerance: ArrayLike = 0.01,
    entries: int = 32,
) -> Intervention:
    """Watch the symptoms, act when one is there, judge whether it went, and climb the ladder if it has not.

    Every so many steps it measures the shares of units that are near a clone, dead and saturated, and how far the
    effective rank has fallen below its best. A symptom is treated from `on` until it is below `off`. Of those that are
    on, the one farthest beyond its threshold is met with the lowest rung of the ladder that treats it. After the
    cool-down the action is judged: if the symptom went, the next time begins at the lowest rung again, else one rung
    higher. A rung that finds nothing to do is passed over at once. What would cost more than is left of the budget, or
    let the loss jump by more than is allowed, is undone.

    It is an intervention like any other: pure, for scan and vmapped lanes; its numbers may be traced. Needs no
    boundaries. `explain(state.own.log)` says what was done, why, at what cost, and whether it helped. A report's logs
    hold `actions` so far, symptoms being `treating`, and of this step, 0 if nothing was done: whether an action was
    `kept` or `undone`, its `change` of the parameters relative to their length, and the `rise` of the batch's loss.

    Args:
        ladder: names of `RUNGS`, the gentlest first.
        probe: `(inputs, labels)` of a fixed batch on which symptoms are measured; None for the batch of the step, whose
            rank and dead units change with the data as well as with the network.
        every: steps between two looks.
        cool_down: steps between an action and its judgement; nothing is done in between.
        on: by symptom, the score from which it is treated; those left out as in `ON`.
        off: by symptom, the score below which it has gone, above 0. A unit is counted once, as dead before near a clone
            before saturated: clones that an action has killed are gone as clones, and begin to count as dead.
        budget_units: units that rungs may change in one period, as a share of all; `kick_and_fire` counts every unit of
            the kernels that it writes, `shrink_and_perturb` none: only `budget_change` bounds it.
        budget_change: sum of the relative changes `|d theta| / |theta|` in one period.
        budget_every: steps of a period, such as the length of a task.
        max_jump: by how much an action may raise the loss of the batch, relative to it; 0 for not at all, infinity for
            any.
        strengths: numbers of the rungs.
        clone_tolerance: relative distance of activations up to which a unit is near a clone.
        entries: number of entries of the log that are kept.

    Returns:
        The intervention, whose state is a `ControllerState`.

    Raises:
        ValueError: an unknown rung or symptom, a number out of range, thresholds in the wrong order; on `init`, a state
            of another optimizer.
    """
    names = check_ladder(ladder)
    check_numbers(
        every, cool_down, budget_every,
        budget_units=budget_units, budget_change=budget_change, max_jump=max_jump, clone_tolerance=clone_tolerance,
    )  # fmt: skip
    options = Options(
        names,
        make_treatments(names, strengths, clone_tolerance),
        *checked_limits(on, off),
        None if probe is None else jax.tree.map(jnp.asarray, probe),
        every,
        cool_down,
        jnp.stack([jnp.asarray(budget_units, float), jnp.asarray(budget_change, float)]),
        budget_every,
        max_jump,
        clone_tolerance,
        as_integer(entries, 1, f"entries={entries!r}: must be a positive integer"),
    )
    return Intervention(partial(_init, options), partial(_apply, options))


def _init(options: Options, setting: Setting, state: TrainState) -> ControllerState:
    check_state(setting, state)
    none, minus = jnp.zeros(len(SYMPTOMS), jnp.int32), jnp.int32(-1)
    own = tuple(one.init(setting, state) for one in options.treatments.interventions)
    best, spent = jnp.asarray(-jnp.inf), jnp.zeros(2)
    log = empty_log(options.entries)
    return ControllerState(none > 0, none, best, jnp.int32(0), minus, spent, minus, jnp.int32(0), log, own)


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
        return state, own, units, jnp.int32(NOT_ITS_STEP)

    bare = state._replace(own=())  # the state of the controller itself is passed beside it
    found, own, touched, reason = jax.lax.cond(is_due(step, options.every), look, rest, bare, own)
    logs = {"actions": own.actions, "treating": jnp.sum(own.is_on), **_done(own, step)}
    return found._replace(own=state.own), own, Report(touched, reason, logs)


def symptom_scores(
    setting: Setting, variables: Variables, batch: tuple[Any, Any], clone_tolerance: ArrayLike
) -> tuple[Float[Array, "3"], Float[Array, ""]]:
    """Shares of units that are near a clone, dead, saturated; and the effective rank. Pure; NaN if not finite."""
    nearness = unit_nearness(setting.model, variables, batch, loss=setting.loss)
    status = jnp.concatenate([unit_status(one, clone_tolerance) for one in nearness.values()])
    kinds = (Status.NEAR_CLONE, Status.DEAD, Status.SATURATED)
    rank = symptoms_of(setting.model, variables, nearness, batch[0]).effective_rank
    shares = jnp.stack([jnp.mean(status == kind, dtype=float) for kind in kinds])
    return jnp.where(jnp.any(status == Status.UNKNOWN), jnp.nan, shares), jnp.asarray(rank)


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
    shares, rank = symptom_scores(setting, state.variables, batch, options.clone_tolerance)
    best = jnp.fmax(own.best_rank, rank)
    scores = jnp.append(shares, jnp.maximum(1 - rank / best, 0))
    # What is unknown has not gone: a network that an action has blown up is not cured.
    is_on = (scores >= options.on) | (own.is_on & ~(scores < options.off))
    own = _judged(options, own._replace(best_rank=best, is_on=is_on), scores, step)
    period = (step // options.budget_every).astype(jnp.int32)
    own = own._replace(period=period, spent=jnp.where(period == own.period, own.spent, 0.0))
    symptom = jnp.argmax(jnp.where(is_on & (options.heights > 0), scores / options.on, -1.0))
    acts = jnp.any(is_on & (options.heights > 0)) & (step >= own.rests_until)
    units = no_units(setting, spaces_of(setting.model.wiring, None))

    def act(state: TrainState, own: ControllerState) -> Any:
        return act_on(options, setting, state, own, observed, key, step, symptom, scores)

    def wait(state: TrainState, own: ControllerState) -> Any:
        return state, own, units, jnp.int32(NO_UNIT_CHOSEN)

    return jax.lax.cond(acts, act, wait, state, own)


def _judged(options: Options, own: ControllerState, scores: Array, step: Array) -> ControllerState:
    """Whether the symptom of the last action went, once the cool-down is over."""
    place = own.pending % options.entries
    is_due = (own.pending >= 0) & (step >= own.rests_until)
    symptom = own.log.symptom[place]
    is_gone = ~own.is_on[symptom]
    outcome = jnp.where(is_gone, Outcome.GONE, Outcome.STAYED)
    log = write_entry(own.log, place, is_due, outcome=outcome, score_after=scores[symptom], judged=step)
    rung = jnp.where(is_due & ~is_gone, climbed(options, own.rung, symptom), own.rung)
    # Whatever has gone, treated or by itself, begins at the lowest rung the next time.
    rung = jnp.where(own.is_on, rung, 0)
    return own._replace(log=log, rung=rung, pending=jnp.where(is_due, -1, own.pending))


def _done(own: ControllerState, step: Any) -> dict[str, Array]:
    """What an action of this step came to, 0 without one: to be summed or averaged over steps."""
    entry = jax.tree.map(lambda field: field[jnp.maximum(own.actions - 1, 0) % len(field)], own.log)
    kept = (entry.step == step) & (entry.outcome == Outcome.PENDING)
    undone = (entry.step == step) & ((entry.outcome == Outcome.LOSS_JUMP) | (entry.outcome == Outcome.OVER_BUDGET))
    zero = jnp.zeros_like(entry.loss)
    rise = jnp.where(kept, entry.loss_after - entry.loss, zero)
    return {"kept": kept, "undone": undone, "change": jnp.where(kept, entry.change, zero), "rise": rise}
