"""What a controller has done, why, and whether the symptom went: a log of fixed size that lives in its state."""

from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lopjax.detection.nearness import Status
from lopjax.interventions.reasons import REASONS
from lopjax.recovery.rungs import RUNGS, SYMPTOMS


class Outcome(IntEnum):
    """What came of an action.

    GONE and TURNED are both "below its threshold". TURNED is when it would not be, if the units that had the symptom
    before the action and have another one now still counted: clones that died have not been recovered.
    """

    PENDING = 0
    GONE = 1
    STAYED = 2
    NOTHING_DONE = 3
    OVER_BUDGET = 4
    LOSS_JUMP = 5
    NOT_FINITE = 6
    TURNED = 7
    UNKNOWN = 8


REFUSED = (Outcome.NOTHING_DONE, Outcome.OVER_BUDGET, Outcome.LOSS_JUMP, Outcome.NOT_FINITE)
"""The network is what it was before."""
_OUTCOMES = {
    Outcome.PENDING: "not judged yet",
    Outcome.GONE: "the symptom went",
    Outcome.STAYED: "the symptom stayed",
    Outcome.OVER_BUDGET: "undone: over what was left of the budget",
    Outcome.LOSS_JUMP: "undone: the loss would have jumped",
    Outcome.NOT_FINITE: "undone: parameters or loss would not have been finite",
    Outcome.TURNED: "the symptom went, but its units have another one",
    Outcome.UNKNOWN: "whether the symptom went cannot be said: the network was no longer finite",
}
_DIVERGED = (
    "parameters or activations are not finite: no symptom can be measured, and no rung mends that; go back to a "
    "checkpoint"
)
FATES = (Status.ALIVE, Status.SATURATED, Status.NEAR_CLONE, Status.DEAD)
_FATES = ("healthy", "saturated", "near a clone", "dead")


class Log(NamedTuple):
    """The last entries, `(entries,)` each; entry `number % entries` is overwritten.

    Attributes:
        step: step of the action; -1 where there is none.
        symptom: number in `SYMPTOMS`; -1 for the entry that the network is not finite.
        rung: number in `RUNGS`; -1 likewise.
        outcome: a number of `Outcome`.
        reason: code of the rung's own report, a number in `lopjax.interventions.REASONS`.
        score: the symptom's score before; it had passed its threshold.
        score_after: when it was judged.
        judged: the step of that.
        fates: when it was judged, how many of the units that had the symptom were of each kind of `FATES`: healthy,
            saturated, near a clone, dead; 0 for a symptom that names no units; `(entries, 4)`.
        units: how many units the action changed, or would have.
        change: `|change of parameters| / |parameters|`.
        left: units and change that were left of the budget before it, `(entries, 2)`.
        loss: before, on the batch of the step, in eval mode.
        loss_after: after.
        times: how often the rung was tried with this same outcome, where it was refused; the numbers are of the first.
        last: the last step of these.
    """

    step: jax.Array
    symptom: jax.Array
    rung: jax.Array
    outcome: jax.Array
    reason: jax.Array
    score: jax.Array
    score_after: jax.Array
    judged: jax.Array
    fates: jax.Array
    units: jax.Array
    change: jax.Array
    left: jax.Array
    loss: jax.Array
    loss_after: jax.Array
    times: jax.Array
    last: jax.Array


_REAL = ("score", "score_after", "change", "left", "loss", "loss_after")
_WIDTHS = {"fates": (len(FATES),), "left": (2,)}


def empty_log(entries: int) -> Log:
    """A log without entries."""
    fields = {}
    for name in Log._fields:
        shape = (entries, *_WIDTHS.get(name, ()))
        fields[name] = jnp.full(shape, jnp.nan) if name in _REAL else jnp.full(shape, -1, jnp.int32)
    return Log(**fields)


def write_entry(log: Log, place: Array, is_written: Array, **values: Any) -> Log:
    """The log with fields of one entry set."""
    fields = {}
    for name, value in values.items():
        old = getattr(log, name)
        fields[name] = old.at[place].set(jnp.where(is_written, jnp.asarray(value).astype(old.dtype), old[place]))
    return log._replace(**fields)


def add_entry(log: Log, number: Array, **values: Any) -> tuple[Log, Array]:
    """The log with another entry, and how many there then are.

    A rung that is refused again as it was the last time adds none: the entry of that time counts it.
    """
    same = (log.step >= 0) & (log.symptom == values["symptom"]) & (log.rung == values["rung"])
    latest = jnp.argmax(jnp.where(same, log.last, -1))
    is_refused = jnp.any(jnp.asarray(values["outcome"]) == jnp.array(REFUSED))
    is_known = same[latest] & (log.outcome[latest] == values["outcome"]) & (log.reason[latest] == values["reason"])
    repeats, place = is_refused & is_known, number % len(log.step)
    log = write_entry(log, place, ~repeats, **values, score_after=jnp.nan, judged=-1, fates=-jnp.ones(4))
    log = write_entry(log, place, ~repeats, times=1, last=values["step"])
    log = write_entry(log, latest, repeats, times=log.times[latest] + 1, last=values["step"])
    return log, number + ~repeats


def explain(log: Log) -> list[str]:
    """A sentence for every entry, oldest first, off the device.

    Args:
        log: log of one network.

    Raises:
        ValueError: logs of several networks at once.
    """
    if np.ndim(log.step) != 1:
        raise ValueError(
            f"a log with steps of shape {np.shape(log.step)}: must be of one network; take lane 0 by "
            "jax.tree.map(lambda leaf: leaf[0], log)"
        )
    log = jax.device_get(log)
    order = [place for place in np.argsort(log.step, kind="stable") if log.step[place] >= 0]
    return [_sentence(jax.tree.map(lambda leaf, place=place: leaf[place], log)) for place in order]


def _sentence(entry: Log) -> str:
    outcome, head = Outcome(int(entry.outcome)), f"step {int(entry.step)}: "
    if entry.rung < 0:
        return head + _DIVERGED
    name = tuple(RUNGS)[int(entry.rung)]
    head += f"{SYMPTOMS[int(entry.symptom)]} at {float(entry.score):.3g} -> {name}"
    again = f"; {int(entry.times)} times by step {int(entry.last)}" if entry.times > 1 else ""
    if outcome is Outcome.NOTHING_DONE:
        return f"{head}: nothing was done, as {REASONS[int(entry.reason)]}{again}"
    cost = f"{_units(entry.units)}, parameters moved by {_percent(entry.change)} of their length, "
    cost += f"loss {float(entry.loss):.4g} -> {float(entry.loss_after):.4g}"
    return f"{head} ({RUNGS[name].says}; {cost}): {_OUTCOMES[outcome]}{_evidence(entry, outcome)}{again}"


def _evidence(entry: Log, outcome: Outcome) -> str:
    """The numbers that an outcome rests on."""
    if outcome is Outcome.OVER_BUDGET:
        return f" ({_units(entry.left[0])}, {_percent(entry.left[1])} of the length)"
    if outcome not in (Outcome.GONE, Outcome.STAYED, Outcome.TURNED):
        return ""
    judged = f" by step {int(entry.judged)} ({float(entry.score_after):.3g})"
    if np.sum(entry.fates) <= 0:
        return judged
    counts = [f"{int(count)} {fate}" for count, fate in zip(entry.fates, _FATES, strict=True) if count > 0]
    return f"{judged}; the units that had it are now: {', '.join(counts)}"


def _units(number: Any) -> str:
    return f"{float(number):.6g} unit{'' if number == 1 else 's'}"


def _percent(share: Any) -> str:
    return f"{100 * float(share):.3g} %"
