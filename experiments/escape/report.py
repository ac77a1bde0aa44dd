"""What an escape run has shown: a row per point of the grid, the table on the terminal, and what each number does."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.escape.config import AXES, Point, points_of, values_of
from experiments.escape.prediction import LEVELS, SIGNIFICANT, passages, said_of_linear
from experiments.escape.setup import CLONE, LINEAR
from experiments.escape.survival import escapes_at, escapes_of, kaplan_meier, log_rank, probability, quantile
from experiments.kit.terminal import Table
from lopjax.runs import RunData

_AT_END = ("loss", "effective_rank", "test_loss", "test_accuracy")


def summarise(data: RunData) -> list[dict[str, Any]]:
    """One row per kind (clones; their linear theory) and point of the grid that has records: what became of its seeds.

    `steps` and `is_escaped` are the survival data of every seed (`survival.Escapes`), `passages` the same of the first
    record at which 1 - R² has reached a level; `num_left` and `num_frozen` count seeds. `probability` of escape within
    the run and `median` step of escape are `[value, low, high]` with the 95 % interval; steps that are not reached are
    None. `frozen_at` is the last step at which a seed was frozen, if all were. The rest are means over seeds at the
    last record.
    """
    kinds = [CLONE, *([LINEAR] if data.config.get("linear") else [])]
    return [row for kind in kinds for row in _rows(data, kind)]


def _rows(data: RunData, kind: str) -> list[dict[str, Any]]:
    lanes: dict[Point, dict[int, list[dict[str, Any]]]] = {}
    for record in data.select(method=kind, phase="clone"):
        point = tuple((name, record[name]) for name in AXES)
        lanes.setdefault(point, {}).setdefault(record["seed"], []).append(record)
    points = [point for point in points_of(data.config) if point in lanes]
    return [{"kind": kind, **dict(point), **_row(kind, list(lanes[point].values()))} for point in points]


def _row(kind: str, seeds: list[list[dict[str, Any]]]) -> dict[str, Any]:
    frozen = [next((record["frozen_at"] for record in seed if "frozen_at" in record), None) for seed in seeds]
    # A network that diverges is censored from there. Linear theory that has overflowed has left for good.
    alive = [[row for row in seed if kind == LINEAR or "frozen_at" not in row] or seed[:1] for seed in seeds]
    steps, r2 = ([_column(seed, name) for seed in alive] for name in ("step", "r2"))
    escapes, by_level = escapes_of(steps, r2), {f"{level:g}": passages(steps, r2, level) for level in LEVELS}
    median = quantile(kaplan_meier(escapes.steps, escapes.is_escaped))
    last = [seed[-1] for seed in seeds]
    is_over = all(step is not None for step in frozen)
    return {
        "steps": escapes.steps.tolist(),
        "is_escaped": escapes.is_escaped.tolist(),
        "passages": {name: [passage.steps.tolist(), passage.is_escaped.tolist()] for name, passage in by_level.items()},
        "num_left": int(escapes.has_left.sum()),
        "num_frozen": sum(step is not None for step in frozen),
        "frozen_at": max(step for step in frozen if step is not None) if is_over else None,
        "probability": list(probability(int(escapes.is_escaped.sum()), len(seeds))),
        "median": [step if math.isfinite(step) else None for step in median],
        "r2": float(np.mean([seed[-1]["r2"] for seed in alive])),
        **{name: _mean(record.get(name) for record in last) for name in _AT_END},
    }


def _column(records: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([math.nan if record[name] is None else record[name] for record in records])


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


# --- What each number does --------------------


def comparisons(summary: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float, int, int, int]]:
    """What going from one value of an axis to the next does, all other numbers being equal, by the log-rank test.

    Returns:
        `(value, next value, pairs of points, pairs that escape sooner at the next value, pairs that escape later)`,
        counting those with p < 0.01. The seeds of two points have the same bases and batches, which the test ignores.
    """
    by_others: dict[Any, dict[float, Mapping[str, Any]]] = {}
    for row in summary:
        others = tuple(row[other] for other in AXES if other != name)
        by_others.setdefault(others, {})[row[name]] = row
    counts = []
    for low, high in itertools.pairwise(sorted({row[name] for row in summary})):
        pairs = [(rows[low], rows[high]) for rows in by_others.values() if low in rows and high in rows]
        tests = [log_rank(escapes_at(first), escapes_at(second)) for first, second in pairs]
        signs = [np.sign(statistic) if p < SIGNIFICANT else 0 for statistic, p in tests]
        counts.append((low, high, len(pairs), signs.count(1), signs.count(-1)))
    return counts


def _effects(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each number does, a line per step along its axis."""
    return [
        f"{name} {low:g} → {high:g}: sooner in {sooner}, later in {later} of {pairs} pairs of settings"
        for name in AXES
        for low, high, pairs, sooner, later in comparisons(summary, name)
    ]


# --- The table --------------------

ACROSS = ("learning_rate", "momentum", "weight_decay")
DOWN = ("noise_scale", "noise_decay", "dropout")


def table(data: RunData) -> Table:
    """The grid: noise and dropout down, learning rate, momentum and weight decay across."""
    rows_of = data.summary or summarise(data)
    summary = [row for row in rows_of if row["kind"] == CLONE]
    across = [name for name in ACROSS if len(values_of(data.config, name)) > 1] or ["learning_rate"]
    down = list(dict.fromkeys(tuple(row[name] for name in DOWN) for row in summary))
    columns = list(dict.fromkeys(tuple(row[name] for name in across) for row in summary))
    cells = {(tuple(row[n] for n in DOWN), tuple(row[n] for n in across)): cell(row) for row in summary}
    rows = [(*(f"{value:g}" for value in key), *(cells.get((key, column), "-") for column in columns)) for key in down]
    heads = [", ".join(f"{name} {value:g}" for name, value in zip(across, column)) for column in columns]
    title = [
        f"Share of {len(data.config['seeds'])} seeds whose clones have R² < 0.95 for good within "
        f"{data.config['clone_steps']:,} steps, with its 95 % interval; then the median step with its interval",
        f"In log-rank tests at p < {SIGNIFICANT} between neighbouring settings, clones escape",
        *(f"  {line}" for line in _effects(summary)),
    ]
    frozen = sum(row["num_frozen"] for row in summary)
    title += [f"{frozen} lanes diverged and are censored there"] if frozen else []
    title += said_of_linear(rows_of)
    return Table("\n".join(title), (*DOWN, *heads), rows)


def cell(row: Mapping[str, Any]) -> str:
    """One point of the grid, in the table: `0.45 [0.26, 0.66] 675 [400, -)`."""
    value, low, high = row["probability"]
    text = f"{value:.2f} [{low:.2f}, {high:.2f}]"
    if row["median"][0] is None:
        return f"{text} no median" if value else f"{text} never"
    first, last = (f"{step:,.0f}" if step is not None else "-" for step in row["median"][1:])
    return f"{text} {row['median'][0]:,.0f} [{first}, {last}]"
