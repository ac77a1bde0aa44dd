"""What a controller has done, why, and whether the symptom went: a log of fixed size that lives in its state."""

from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.interventions.reasons import REASONS
from lopjax.recovery.rungs import RUNGS, SYMPTOMS


class Outcome(IntEnum):
    """What came of an action."""

    PENDING = 0
    GONE = 1
    STAYED = 2
    NOTHING_DONE = 3
    OVER_BUDGET = 4
    LOSS_JUMP = 5


_OUTCOMES = {
    Outcome.PENDING: "not judged yet",
    Outcome.GONE: "the symptom went",
    Outcome.STAYED: "the symptom stayed",
    Outcome.NOTHING_DONE: "nothing was done",
    Outcome.OVER_BUDGET: "undone: over the budget",
    Outcome.LOSS_JUMP: "undone: the loss would have jumped",
}


class Log(NamedTuple):
    """The last actions, `(entries,)` each; entry `number % entries` is overwritten.

    Attributes:
        step: step of the action; -1 where there is none.
        symptom: number in `SYMPTOMS`.
        rung: number in the controller's ladder.
        outcome: a number of `Outcome`.
        reason: code of the rung's own report, a number in `lopjax.interventions.REASONS`.
        score: the symptom's score before; it had passed its threshold.
        score_after: when it was judged.
        judged: the step of that.
        units: how many units the action changed.
        change: `|change of parameters| / |parameters|`.
        loss: before, on the batch of the step, in eval mode.
        loss_after: after.
    """

    step: jax.Array
    symptom: jax.Array
    rung: jax.Array
    outcome: jax.Array
    reason: jax.Array
    score: jax.Array
    score_after: jax.Array
    judged: jax.Array
    units: jax.Array
    change: jax.Array
    loss: jax.Array
    loss_after: jax.Array


_REAL = ("score", "score_after", "change", "loss", "loss_after")


def empty_log(entries: int) -> Log:
    """A log without entries."""
    fields = {
        name: jnp.full(entries, jnp.nan) if name in _REAL else jnp.full(entries, -1, jnp.int32) for name in Log._fields
    }
    return Log(**fields)


def write_entry(log: Log, place: jax.Array, is_written: jax.Array, **values: Any) -> Log:
    """The log with fields of one entry set."""
    fields = {}
    for name, value in values.items():
        old = getattr(log, name)
        fields[name] = old.at[place].set(jnp.where(is_written, jnp.asarray(value).astype(old.dtype), old[place]))
    return log._replace(**fields)


def explain(log: Log, ladder: tuple[str, ...] = tuple(RUNGS)) -> list[str]:
    """A sentence for every action, oldest first, off the device.

    Args:
        log: log of one network.
        ladder: ladder of its controller.
    """
    log = jax.device_get(log)
    order = [place for place in np.argsort(log.step, kind="stable") if log.step[place] >= 0]
    return [_sentence(jax.tree.map(lambda leaf, place=place: leaf[place], log), ladder) for place in order]


def _sentence(entry: Log, ladder: tuple[str, ...]) -> str:
    rung, outcome = ladder[int(entry.rung)], Outcome(int(entry.outcome))
    text = f"step {int(entry.step)}: {SYMPTOMS[int(entry.symptom)]} at {float(entry.score):.3g} -> {rung}"
    if outcome is Outcome.NOTHING_DONE:
        return f"{text}: nothing was done, as {REASONS[int(entry.reason)]}"
    jump = f"loss {float(entry.loss):.4g} -> {float(entry.loss_after):.4g}"
    units = f"{int(entry.units)} units, " if entry.units > 0 else ""
    text = f"{text} ({RUNGS[rung].says}; {units}{100 * float(entry.change):.2g} % of the parameters, {jump})"
    judged = f" by step {int(entry.judged)} ({float(entry.score_after):.3g})" if outcome in (1, 2) else ""
    return f"{text}: {_OUTCOMES[outcome]}{judged}"
