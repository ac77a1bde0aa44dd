"""What became of the networks: paired differences from fresh ones with intervals, the summary and the table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.continual.methods import fresh, is_fresh, label_of, lanes_of, method_of
from experiments.kit.intervals import NOT_KNOWN, Interval, interval
from experiments.kit.terminal import Table
from lopjax.runs import RunData

_SYMPTOMS = ("effective_rank", "dead_fraction", "duplicate_fraction", "saturated_fraction")


# --- Curves over tasks --------------------


def at_ends(data: RunData, name: str, method: str, seed: int) -> np.ndarray:
    """A value at the end of every task of a lane, as far as it has come; NaN where it is missing.

    A fresh network that is trained at every eighth task has NaN at the others. So has a lane whose loss was not finite:
    what is recorded of it from then on is of the network before that step, which no longer learns.
    """
    found = {record["task"]: value_of(record, name) for record in data.select(method=method, seed=seed, is_end=True)}
    return np.array([found.get(task, math.nan) for task in range(max(found, default=-1) + 1)])


def over_tasks(data: RunData, name: str, method: str, seed: int) -> np.ndarray:
    """The mean over every whole task of a value that is logged between records (online accuracy, plasticity)."""
    records = data.select(method=method, seed=seed)
    num_tasks = max((record["task"] + 1 for record in records if record["is_end"]), default=0)
    of_task = [[_number(record[name]) for record in records if record["task"] == task] for task in range(num_tasks)]
    return np.array([math.fsum(values) / len(values) if values else math.nan for values in of_task])


def less_fresh(data: RunData, name: str, method: str, seed: int) -> np.ndarray:
    """A curve over tasks minus that of the fresh networks on the same batches; NaN at tasks without one.

    Empty where there are none at all.
    """
    curve = over_tasks if name in ("online_accuracy", "online_loss", "plasticity") else at_ends
    continual, control = (curve(data, name, lane, seed) for lane in (method, fresh(method_of(method).control)))
    num = min(len(continual), len(control))
    return continual[:num] - control[:num]


def late_tasks(data: RunData, name: str, seed: int, num: int) -> list[int]:
    """Those of the last half of `num` tasks that a lane was trained on: a fresh network may be at some only."""
    tasks = [record["task"] for record in data.select(method=name, seed=seed, is_end=True)]
    return [task for task in tasks if num // 2 <= task < num]


def late_less_fresh(data: RunData, value: str, name: str, seed: int) -> np.ndarray:
    """`less_fresh` at every task of the last half that has a fresh network."""
    difference = less_fresh(data, value, name, seed)
    return difference[late_tasks(data, fresh(method_of(name).control), seed, len(difference))]


def accuracy_name(data: RunData) -> str:
    """Accuracy at the end of a task: on its test set, or on its examples where there is no test set."""
    return "test_accuracy" if any("test_accuracy" in record for record in data.records[:1]) else "train_accuracy"


# --- The summary --------------------


def summarise(data: RunData) -> list[dict[str, Any]]:
    """One row per lane that has finished a task.

    `*_less_fresh`: mean over the last half of the tasks of the difference to the fresh network. `*_first`, `*_last`:
    on the fixed probe, mean over sites, at the end of the first and of the last task. `backward_transfer`: accuracy on
    earlier tasks less what it was at their end, mean over tasks and lags. `steps_to_level`: median over the last half,
    None where the level was not reached in half of the tasks; `level_missed`: in how many of all tasks it was not.
    `died`, `revived`: sums over all records. A lane whose loss was not finite has None for what is of later tasks.
    """
    rows = []
    for name in lanes_of(tuple(data.config["methods"]), data.config["fresh"]):
        for seed in data.config["seeds"]:
            if data.select(method=name, seed=seed, is_end=True):
                rows.append({"method": name, "seed": seed, **_numbers(data, name, seed)})
    return rows


def _numbers(data: RunData, name: str, seed: int) -> dict[str, Any]:
    records = data.select(method=name, seed=seed, is_end=True)
    marks = [record["frozen_at"] for record in records if "frozen_at" in record]
    online = over_tasks(data, "online_accuracy", name, seed)
    late = late_tasks(data, name, seed, len(online))
    row: dict[str, Any] = {"tasks": len(records), "frozen_at": marks[0] if marks else None}
    row["online_accuracy"] = _plain(np.mean(online[late]))
    for value in ("online_accuracy", accuracy_name(data)):
        difference = late_less_fresh(data, value, name, seed) if data.config["fresh"] else np.array([])
        row[f"{value}_less_fresh"] = _plain(np.mean(difference)) if len(difference) else None
    for symptom in _SYMPTOMS:
        values = at_ends(data, f"probe/{symptom}/mean", name, seed)
        row |= {f"{symptom}_first": _plain(values[0]), f"{symptom}_last": _plain(values[-1])}
    done = [record["task"] for record in records]
    reached = at_ends(data, "steps_to_level", name, seed)
    censored = np.where(np.isfinite(reached[late]), reached[late], np.inf)
    row |= {"steps_to_level": _plain(np.median(censored)), "level_missed": int(np.isnan(reached[done]).sum())}
    row["plasticity"] = _plain(np.mean(over_tasks(data, "plasticity", name, seed)[late]))
    row["backward_transfer"] = _plain(backward_transfer(data, name, seed))
    for count in ("died", "revived"):  # since the previous record, which need not be the end of a task
        counts = [value_of(record, f"units/{count}") for record in data.select(method=name, seed=seed)]
        row[count] = int(np.nansum(counts))
    return row


def backward_transfer(data: RunData, name: str, seed: int) -> float:
    """Mean over tasks and lags of `A(t, t - lag) - A(t - lag, t - lag)`, A the accuracy on a test set after a task."""
    at_own_end, changes = at_ends(data, "test_accuracy", name, seed), []
    for lag in data.config["earlier"]:
        later = at_ends(data, f"earlier/{lag}", name, seed)
        changes += list(later[lag:] - at_own_end[: len(at_own_end) - lag]) if len(at_own_end) > lag else []
    return float(np.mean(changes)) if changes else math.nan


def lost(data: RunData, name: str, value: str = "online_accuracy") -> Interval:
    """The difference from the fresh network over the last half of the tasks.

    The interval is over seeds, each with its mean over tasks. For a single seed it is over tasks, which share a
    network and so are not independent: it is too narrow, and the table says what it is over.
    """
    halves = [late_less_fresh(data, value, name, seed) for seed in data.config["seeds"]]
    halves = [half for half in halves if len(half)]
    if not halves or len(less_fresh(data, value, name, data.config["seeds"][0])) < 2:
        return NOT_KNOWN
    return interval(halves[0] if len(halves) == 1 else [half.mean() for half in halves])


def verdict(found: Interval) -> str:
    """In words; "undecided" unless the interval lies on one side of zero."""
    if not math.isfinite(found.half):
        return "-"
    return "lost" if found.high < 0 else "better" if found.low > 0 else "undecided"


# --- The table --------------------


def table(data: RunData) -> Table:
    """The table on the terminal, also of an incomplete run: a row per method and fresh network, means over seeds."""
    summary = data.summary or summarise(data)
    rows = []
    for name in lanes_of(tuple(data.config["methods"]), data.config["fresh"]):
        seeds = [row for row in summary if row["method"] == name]
        rows.append(_row(data, name, seeds) if seeds else (label_of(name), "not started", *["-"] * 9))
    columns = (
        *("method", "plasticity", "online - fresh", "test - fresh", "online", "to level"),
        *("rank", "dead", "duplicate", "saturated", "earlier tasks"),
    )
    return Table("\n".join(_title(data)), columns, rows)


def _row(data: RunData, name: str, seeds: list[dict[str, Any]]) -> tuple[str, ...]:
    is_control = is_fresh(name)
    online, tested = (
        NOT_KNOWN if is_control or not data.config["fresh"] else lost(data, name, value)
        for value in ("online_accuracy", accuracy_name(data))
    )
    moves = [f"{_mean(seeds, f'{s}_first', 1)} → {_mean(seeds, f'{s}_last', 1)}" for s in _SYMPTOMS[:1]]
    moves += [f"{_mean(seeds, f'{s}_first', 2)} → {_mean(seeds, f'{s}_last', 2)}" for s in _SYMPTOMS[1:]]
    reached = [row["steps_to_level"] for row in seeds]
    steps = "never" if None in reached else f"{np.median(reached):,.0f}"
    frozen = [row["frozen_at"] for row in seeds if row["frozen_at"] is not None]
    word = f"diverged at {min(frozen):,}" if frozen else "reference" if is_control else verdict(online)
    transfer = "-" if is_control else _mean(seeds, "backward_transfer", 2, sign=True)
    return (
        label_of(name), word, _with_interval(online), _with_interval(tested), _mean(seeds, "online_accuracy", 3),
        steps, *moves, transfer,
    )  # fmt: skip


def _title(data: RunData) -> list[str]:
    config = data.config
    seeds = len(config["seeds"])
    num_done = len(data.select(method=config["methods"][-1], seed=config["seeds"][-1], is_end=True))
    over = f"{seeds} seeds" if seeds > 1 else "the tasks of one seed, which share a network: too narrow"
    every = config.get("fresh_every", 1)
    where = "every task" if every == 1 else f"every {every}th task"
    lines = [
        f"{config['num_tasks']} tasks ({config['tasks'].replace('_', ' ')}) x {config['steps']:,} steps, {seeds} "
        f"seed{'s' if seeds > 1 else ''}"
        + ("" if num_done == config["num_tasks"] else f"; {num_done} tasks done by all"),
        "online, test - fresh: accuracy before each update, and after a task, minus that of a network drawn anew for",
        f"{where} on the same batches; last half of the tasks, 95 % interval over {over}",
        f"to level: steps until accuracy {config['level']:g}, median. rank, dead, duplicate, saturated: mean over",
        "layers on a fixed probe, after the first and the last task. earlier tasks: change of accuracy on them since",
    ]
    if any(label_of(name).endswith("*") for name in config["methods"]):
        lines.append("* looks at where a task starts")
    return lines


def _with_interval(found: Interval) -> str:
    if not math.isfinite(found.mean):
        return "-"
    return f"{found.mean:+.3f}" + (f" ± {found.half:.3f}" if math.isfinite(found.half) else "")


def _mean(rows: Sequence[Mapping[str, Any]], name: str, digits: int, sign: bool = False) -> str:
    values = [row[name] for row in rows]
    if None in values:
        return "-"
    return f"{math.fsum(values) / len(values):{'+' if sign else ''}.{digits}f}"


def value_of(record: Mapping[str, Any], name: str) -> float:
    """A value of a record; NaN where it is missing or the lane has diverged."""
    return math.nan if "frozen_at" in record else _number(record.get(name))


def has_diverged(data: RunData, method: str, seed: int) -> bool:
    """Whether the loss of a lane was not finite at some step, so that it stopped learning there."""
    return any("frozen_at" in record for record in data.select(method=method, seed=seed))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _plain(value: Any) -> float | None:
    """A number of the summary; None if it is not finite."""
    return float(value) if math.isfinite(value) else None
