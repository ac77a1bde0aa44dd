"""A controller that notices a trap and leaves it: symptoms in, the gentlest intervention that helps out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from lopjax.arguments.integers import as_integer
from lopjax.detection.nearness import Status, unit_nearness, unit_status
from lopjax.detection.warnings import symptoms_of
from lopjax.interventions.checks import check_every, check_state, is_due, spaces_of
from lopjax.interventions.reasons import CHANGED, NO_UNIT_CHOSEN, NOT_ITS_STEP
from lopjax.interventions.slices import no_units
from lopjax.model import Variables
from lopjax.optim.checks import check
from lopjax.recovery.log import Log, Outcome, empty_log, write_entry
from lopjax.recovery.rungs import DEFAULT_STRENGTHS, RUNGS, SYMPTOMS, Strengths, check_ladder, make_rung
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState

ON: Mapping[str, float] = {"cloning": 0.1, "dying": 0.3, "saturation": 0.3, "rank_collapse": 0.3}
"""The score from which on treatment begins, by symptom."""
OFF: Mapping[str, float] = {"cloning": 0.02, "dying": 0.2, "saturation": 0.2, "rank_collapse": 0.15}
"""The score below which a symptom has gone."""


class ControllerState(NamedTuple):
    """Memory of a controller.

    Attributes:
        is_on: which of `SYMPTOMS` are being treated, `(4,)`.
        rung: place of each in its own part of the ladder, int32.
        best_rank: largest effective rank so far.
        rests_until: step before which nothing is done, int32.
        period: number of the budget's period, int32.
        spent: units and relative change of parameters that it has cost in this period, `(2,)`.
        pending: number of the log's entry that is not judged yet; -1 for none.
        actions: entries written so far, int32.
        log: the last of them.
        own: states of the rungs.
    """

    is_on: jax.Array
    rung: jax.Array
    best_rank: jax.Array
    rests_until: jax.Array
    period: jax.Array
    spent: jax.Array
    pending: jax.Array
    actions: jax.Array
    log: Log
    own: tuple[Any, ...]


class _Options(NamedTuple):
    """The constructor's arguments, checked."""

    ladder: tuple[str, ...]
    rungs: tuple[Intervention, ...]
    on: Float[Array, "4"]
    off: Float[Array, "4"]
    probe: tuple[Any, Any] | None
    every: ArrayLike
    cool_down: ArrayLike
    budget: Float[Array, "2"]
    budget_every: ArrayLike
    max_jump: ArrayLike
    clone_tolerance: ArrayLike
    entries: int


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
        off: by symptom, the score below which it has gone.
        budget_units: units that may be changed in one period, as a share of all.
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
    limits = _limits(on, off)
    check_every(every)
    check_every(cool_down, "cool_down")
    check_every(budget_every, "budget_every")
    for name, value in {"budget_units": budget_units, "budget_change": budget_change}.items():
        check(name, value, minimum=0.0)
    if not isinstance(max_jump, Tracer) and not np.all(np.asarray(max_jump) >= 0):
        raise ValueError(f"max_jump={max_jump!r}: must be at least 0; infinity for any")
    check("clone_tolerance", clone_tolerance, minimum=0.0)
    options = _Options(
        names,
        tuple(make_rung(name, strengths, clone_tolerance) for name in names),
        *limits,
        None if probe is None else jax.tree.map(jnp.asarray, probe),
        every,
        cool_down,
        jnp.stack([jnp.asarray(budget_units, float), jnp.asarray(budget_change, float)]),
        budget_every,
        max_jump,
        clone_tolerance,
        as_integer(entries, 1, f"entries={entries!r}: must be a positive integer"),
    )

    def init(setting: Setting, state: TrainState) -> ControllerState:
        check_state(setting, state)
        none, minus = jnp.zeros(len(SYMPTOMS), jnp.int32), jnp.int32(-1)
        own = tuple(rung.init(setting, state) for rung in options.rungs)
        best, spent = jnp.asarray(-jnp.inf), jnp.zeros(2)
        log = empty_log(options.entries)
        return ControllerState(none > 0, none, best, jnp.int32(0), minus, spent, minus, jnp.int32(0), log, own)

    def apply(
        setting: Setting, own: ControllerState, state: TrainState, observed: Observed, key: jax.Array, step: Any
    ) -> tuple[TrainState, ControllerState, Report]:
        units = no_units(setting, spaces_of(setting.model.wiring, None))

        def look(state: TrainState, own: ControllerState) -> tuple[TrainState, ControllerState, Any, Array]:
            return _look(options, setting, state, own, observed, key, jnp.asarray(step, jnp.int32))

        def rest(state: TrainState, own: ControllerState) -> tuple[TrainState, ControllerState, Any, Array]:
            return state, own, units, jnp.int32(NOT_ITS_STEP)

        bare = state._replace(own=())  # the state of the controller itself is passed beside it
        found, own, touched, reason = jax.lax.cond(is_due(step, every), look, rest, bare, own)
        logs = {"actions": own.actions, "treating": jnp.sum(own.is_on), **_done(own, step)}
        return found._replace(own=state.own), own, Report(touched, reason, logs)

    return Intervention(init, apply)


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


def _limits(on: Mapping[str, ArrayLike], off: Mapping[str, ArrayLike]) -> tuple[Array, Array]:
    for thresholds in (on, off):
        if unknown := sorted(set(thresholds) - set(SYMPTOMS)):
            raise ValueError(f"thresholds {unknown}: must be of {list(SYMPTOMS)}")
    begin, end = {**ON, **on}, {**OFF, **off}
    for name in SYMPTOMS:
        for word, each in (("on", begin), ("off", end)):
            check(f"{word}[{name!r}]", each[name], minimum=0.0, maximum=1.0)
        is_traced = any(isinstance(each[name], Tracer) for each in (begin, end))
        if not is_traced and not np.all(np.asarray(end[name]) < np.asarray(begin[name])):
            raise ValueError(f"{name}: on={begin[name]}, off={end[name]}: must be off < on, or treatment flickers")
    stacked = [jnp.stack([jnp.asarray(each[name], float) for name in SYMPTOMS]) for each in (begin, end)]
    return stacked[0], stacked[1]


def _look(
    options: _Options,
    setting: Setting,
    state: TrainState,
    own: ControllerState,
    observed: Observed,
    key: Array,
    step: Array,
) -> tuple[TrainState, ControllerState, dict[str, Array], Array]:
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
    symptom = jnp.argmax(jnp.where(is_on & (_heights(options) > 0), scores / options.on, -1.0))
    acts = jnp.any(is_on & (_heights(options) > 0)) & (step >= own.rests_until)
    units = no_units(setting, spaces_of(setting.model.wiring, None))

    def act(state: TrainState, own: ControllerState) -> Any:
        return _act(options, setting, state, own, observed, key, step, symptom, scores)

    def wait(state: TrainState, own: ControllerState) -> Any:
        return state, own, units, jnp.int32(NO_UNIT_CHOSEN)

    return jax.lax.cond(acts, act, wait, state, own)


def _parts(options: _Options) -> list[list[int]]:
    """By symptom, the rungs that treat it, lowest first."""
    return [[n for n, name in enumerate(options.ladder) if s in RUNGS[name].treats] for s in SYMPTOMS]


def _heights(options: _Options) -> np.ndarray:
    return np.array([len(part) for part in _parts(options)])


def _judged(options: _Options, own: ControllerState, scores: Array, step: Array) -> ControllerState:
    """Whether the symptom of the last action went, once the cool-down is over."""
    place = own.pending % options.entries
    is_due = (own.pending >= 0) & (step >= own.rests_until)
    symptom = own.log.symptom[place]
    is_gone = ~own.is_on[symptom]
    outcome = jnp.where(is_gone, Outcome.GONE, Outcome.STAYED)
    log = write_entry(own.log, place, is_due, outcome=outcome, score_after=scores[symptom], judged=step)
    rung = jnp.where(is_due & ~is_gone, _climbed(options, own.rung, symptom), own.rung)
    # Whatever has gone, treated or by itself, begins at the lowest rung the next time.
    rung = jnp.where(own.is_on, rung, 0)
    return own._replace(log=log, rung=rung, pending=jnp.where(is_due, -1, own.pending))


def _climbed(options: _Options, rung: Array, symptom: Array) -> Array:
    """One rung higher for one symptom; from the highest, the lowest again."""
    height = jnp.maximum(jnp.asarray(_heights(options), jnp.int32), 1)[symptom]
    return rung.at[symptom].set((rung[symptom] + 1) % height)


def _act(
    options: _Options,
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
    parts = _parts(options)
    table = np.array([part + [0] * (len(options.ladder) - len(part)) for part in parts])
    rung = jnp.asarray(table)[symptom, own.rung[symptom]]
    new, inner, touched, reason = _apply_rung(options, setting, state, own.own, observed, key, rung)
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
        rung=jnp.where(climbs, _climbed(options, own.rung, symptom), own.rung),
        rests_until=jnp.where(climbs, own.rests_until, step + options.cool_down).astype(jnp.int32),
        own=jax.tree.map(lambda a, b: jnp.where(kept, a, b), inner, own.own),
    )
    state = jax.tree.map(lambda a, b: jnp.where(kept, a, b), new, state)
    return state, own, {space: kept & mask for space, mask in touched.items()}, reason


def _apply_rung(
    options: _Options,
    setting: Setting,
    state: TrainState,
    own: tuple[Any, ...],
    observed: Observed,
    key: Array,
    rung: Array,
) -> tuple[TrainState, tuple[Any, ...], dict[str, Array], Array]:
    """The network after one rung, by a branch for each."""
    units = no_units(setting, spaces_of(setting.model.wiring, None))

    def branch(number: int) -> Any:
        def run() -> tuple[TrainState, tuple[Any, ...], dict[str, Array], Array]:
            new, inner, report = options.rungs[number].apply(setting, own[number], state, observed, key, 0)
            touched = {**units, **{space: mask for space, mask in report.touched.items() if space in units}}
            states = (*own[:number], inner, *own[number + 1 :])
            return new, states, touched, jnp.asarray(report.reason, jnp.int32)

        return run

    return jax.lax.switch(rung, [branch(number) for number in range(len(options.rungs))])


def _done(own: ControllerState, step: Any) -> dict[str, Array]:
    """What an action of this step came to, 0 without one: to be summed or averaged over steps."""
    entry = jax.tree.map(lambda field: field[jnp.maximum(own.actions - 1, 0) % len(field)], own.log)
    kept = (entry.step == step) & (entry.outcome == Outcome.PENDING)
    undone = (entry.step == step) & ((entry.outcome == Outcome.LOSS_JUMP) | (entry.outcome == Outcome.OVER_BUDGET))
    zero = jnp.zeros_like(entry.loss)
    rise = jnp.where(kept, entry.loss_after - entry.loss, zero)
    return {"kept": kept, "undone": undone, "change": jnp.where(kept, entry.change, zero), "rise": rise}


def _loss(setting: Setting, state: TrainState, observed: Observed) -> Float[Array, ""]:
    """On the batch of the step, in eval mode."""
    logits = setting.model.apply(state.variables, observed.batch[0], dropout_rate=0.0).logits
    return setting.loss(logits, observed.batch[1])
