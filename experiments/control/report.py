"""What became of the agents: scores against the published levels, paired differences, symptoms, the table."""

import math
from typing import Any

import numpy as np

from experiments.control.environments import LEVELS
from experiments.control.methods import FRESH, PLAIN, lanes_of, method_of
from experiments.kit.intervals import NOT_KNOWN, interval
from experiments.kit.terminal import Table
from experiments.remedies.report import early, late, paired, verdict
from lopjax.runs import RunData

EVENTS = ("died", "revived", "cloned", "freed", "reset")
FOUND = ("clones_found", "clones_certified", "dead_found", "dead_certified")
COLUMNS = (
    *("method", "score", "online", "plasticity", "late - fresh", "late - early", "late - plain"),
    *("rank", "dead", "died/revived/reset", "clones (certified)", "dead (certified)"),
)


def methods_of(data: RunData) -> list[str]:
    """The lanes of a run, controls first."""
    return lanes_of(tuple(data.config["methods"]), data.config["fresh"])


def curves(data: RunData, problem: str, method: str, name: str) -> np.ndarray:
    """A value at the start and at every record, `(seeds, records)`; NaN where it is missing or the lane has diverged.

    `online` is the mean return of the episodes that ended since the record before.
    """
    rows = []
    for seed in data.config["seeds"]:
        records = data.select(problem=problem, method=method, seed=seed)
        rows.append([_value(record, name) for record in records])
    num = min(map(len, rows))
    return np.array([row[:num] for row in rows]).reshape(len(rows), num)


def _value(record: dict[str, Any], name: str) -> float:
    if name == "online":
        episodes = record.get("episodes")
        return record["returns"] / episodes if episodes else math.nan
    value = record.get(name)
    return math.nan if value is None or "frozen_at" in record else float(value)


def at_ends(data: RunData, problem: str, method: str, name: str) -> np.ndarray:
    """A value of every task, `(seeds, tasks)`: of its last record, or for `online` the mean over its records."""
    every = data.config[problem]["records_per_task"]
    found = curves(data, problem, method, name)[:, 1:]
    tasks = found[:, : found.shape[1] // every * every].reshape(len(found), -1, every)
    return tasks.mean(axis=2) if name == "online" else tasks[:, :, -1]


def summarise(data: RunData) -> list[dict[str, Any]]:
    """One row an environment and method; every interval `[mean, low, high]`, 95 % over seeds, null if not known.

    With several tasks `score` and `online` are means over the last half of them; `late_less_fresh`, `late_less_early`,
    `late_less_plain`: of the online returns, over the last half of the tasks, less those of a network drawn anew for
    each, less the same difference over the first fifth, less those of the plain optimizer. With one task `score` is
    that at its end, and the differences are null. Symptoms are `[first, last]`, means over seeds on the fixed probe;
    events are counted over the whole run.
    """
    return [
        _row(data, problem, method)
        for problem in data.config["problems"]
        for method in methods_of(data)
        if curves(data, problem, method, "score").shape[1] > 1
    ]


def _row(data: RunData, problem: str, method: str) -> dict[str, Any]:
    score, online = (at_ends(data, problem, method, name) for name in ("score", "online"))
    has_tasks, records = data.config[problem]["num_tasks"] > 1, data.select(problem=problem, method=method)
    frozen = [record["frozen_at"] for record in records if "frozen_at" in record]
    found = {
        "score": interval(late(score) if has_tasks else score[:, -1]),
        "online": interval(late(online) if has_tasks else online[:, -1]),
        **({name: interval(values) for name, values in _differences(data, problem, method).items()}),
    }
    plain = interval(_differences(data, problem, PLAIN).get("late_less_early", np.array([])))
    changed = found.get("late_less_early", NOT_KNOWN)
    return {
        "problem": problem,
        "method": method,
        "level": LEVELS[problem] if data.config[problem]["drift"] == "none" else None,
        "verdict": f"diverged at {min(frozen):,}" if frozen else verdict(method, changed, plain),
        "frozen_at": max(frozen) if frozen and len({r["seed"] for r in records if "frozen_at" in r}) > 0 else None,
        **{name: [_plain(bound) for bound in one] for name, one in found.items()},
        **{name: _first_and_last(data, problem, method, f"probe/{name}/mean") for name in SYMPTOMS},
        **{event: _total(data, problem, method, f"units/{event}") for event in EVENTS},
        **{name: _plain(float(np.nanmean(_last(data, problem, method, name)))) for name in FOUND},
    }


SYMPTOMS = ("effective_rank", "dead_fraction", "duplicate_fraction")


def _differences(data: RunData, problem: str, method: str) -> dict[str, np.ndarray]:
    """By seed; only what there is something to compare with."""
    if data.config[problem]["num_tasks"] < 2:
        return {}
    online, plain = (at_ends(data, problem, name, "online") for name in (method, PLAIN))
    found = {"late_less_plain": late(paired(online, plain))}
    if data.config["fresh"]:
        away = paired(online, at_ends(data, problem, FRESH, "online"))
        found |= {"late_less_fresh": late(away), "late_less_early": late(away) - early(away)}
    return found


def _first_and_last(data: RunData, problem: str, method: str, name: str) -> list[float | None]:
    values = curves(data, problem, method, name)
    return [_plain(float(np.nanmean(values[:, place]))) for place in (0, -1)]


def _total(data: RunData, problem: str, method: str, name: str) -> float | None:
    return _plain(float(np.nansum(curves(data, problem, method, name), axis=1).mean()))


def _last(data: RunData, problem: str, method: str, name: str) -> np.ndarray:
    return curves(data, problem, method, name)[:, -1]


# --- The table --------------------


def table(data: RunData) -> Table:
    """The table on the terminal: a row an environment and method; also of an incomplete run."""
    rows = [(row["problem"], *cells(row)) for row in data.summary or summarise(data)]
    return Table("\n".join(title(data)), ("problem", *COLUMNS), rows)


def texts(data: RunData) -> dict[str, str]:
    """The same in Markdown, a table an environment: `table.md`."""
    lines = []
    for problem in data.config["problems"]:
        lines += ["", f"**{problem}**", "", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
        lines += [_line(cells(row)) for row in data.summary or summarise(data) if row["problem"] == problem]
    return {"table.md": "\n".join([*title(data), *lines]) + "\n"}


def title(data: RunData) -> list[str]:
    """What the columns are, and which levels were reached."""
    seeds = len(data.config["seeds"])
    lines = [
        f"{seeds} seeds, 95 % intervals over them. score: mean return of {data.config['episodes']} episodes at the end",
        "of a task, most probable actions; online: of the episodes while learning; both over the last half of the",
        "tasks. late - fresh: online, less that of a network drawn anew for each task; late - early: less the same",
        "over the first fifth; late - plain: less that of plain Adam. rank, dead: first -> last, on the fixed probe;",
        "died, revived, reset: events between records; clones and dead units at the end, in brackets those certified.",
    ]
    for row in data.summary or summarise(data):
        if row["level"] is not None and row["method"] == PLAIN:
            mean, low, high = (math.nan if bound is None else bound for bound in row["score"])
            said = "reached" if mean >= row["level"] else "not reached"
            bounds = f" [{low:.1f}, {high:.1f}]" if math.isfinite(low) else ""
            lines.append(f"{row['problem']}: level {row['level']:g} {said}: {mean:.1f}{bounds} at the end")
    return lines


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as text."""
    of = {name: _interval(row.get(name)) for name in ("late_less_fresh", "late_less_early", "late_less_plain")}
    is_fresh, is_plain = row["method"] == FRESH, row["method"] == PLAIN
    return (
        method_of(row["method"]).label,
        _interval(row["score"], "").lstrip("+"),
        _interval(row["online"], "").lstrip("+"),
        row["verdict"],
        "0" if is_fresh else of["late_less_fresh"],
        "0" if is_fresh else of["late_less_early"],
        "0" if is_plain else of["late_less_plain"],
        _arrow(row["effective_rank"], ".1f"),
        _arrow(row["dead_fraction"], ".1%"),
        "/".join(_number(row[event]) for event in ("died", "revived", "reset")),
        f"{_number(row['clones_found'])} ({_number(row['clones_certified'])})",
        f"{_number(row['dead_found'])} ({_number(row['dead_certified'])})",
    )


def _arrow(pair: list[float | None], form: str) -> str:
    return " -> ".join("-" if value is None else format(value, form) for value in pair)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _interval(bounds: list[float | None] | None, sign: str = "+") -> str:
    mean, low, high = (math.nan if bound is None else bound for bound in bounds or (None,) * 3)
    if not math.isfinite(mean):
        return "-"
    return f"{mean:{sign}.1f}" + (f" ± {(high - low) / 2:.1f}" if math.isfinite(low) else "")


def _line(words: Any) -> str:
    return f"| {' | '.join(words)} |"


def _plain(value: float) -> float | None:
    """A number of the summary; None if it is not finite."""
    return float(value) if math.isfinite(value) else None
