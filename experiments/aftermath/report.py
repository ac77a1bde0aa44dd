"""What an aftermath run has shown: a row an arm, with paired differences to the arms it has to be measured by."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.aftermath.config import ARMS, BASE
from experiments.aftermath.parts import NEXT, SAME
from experiments.kit.intervals import Interval, interval
from experiments.kit.terminal import Table
from lopjax.runs import RunData

AT_END = ("train_loss", "test_loss", "test_accuracy", "effective_rank", "distinct_units", "sharpness", "r2")
"""Measured at the end of the task of the base."""
REFERENCES = ("trapped", "scratch", "scratch_short", BASE)
"""Arms that every other is compared with, seed by seed."""
LABELS = {BASE: "small network", **{name: arm.label for name, arm in ARMS.items()}}


def last(data: RunData, arm: str, phase: str, name: str) -> np.ndarray:
    """A value of every seed at the end of a phase, NaN where it is missing or the lane is frozen."""
    return np.array([_number(_records(data, arm, phase, seed)[-1:], name) for seed in data.config["seeds"]])


def mean_over(data: RunData, arm: str, phase: str, name: str) -> np.ndarray:
    """The mean of a logged value over a whole phase, of every seed."""
    return np.array(
        [
            np.mean([_number([record], name) for record in _records(data, arm, phase, seed)] or [math.nan])
            for seed in data.config["seeds"]
        ]
    )


def values_of(data: RunData, arm: str) -> dict[str, np.ndarray]:
    """Everything that is reported of an arm, a value a seed.

    `next_loss` and `next_accuracy` are means over the whole next task, each before the update: how fast it is learned.
    `next_test_accuracy` is that at its end.
    """
    values = {name: last(data, arm, SAME, name) for name in AT_END}
    values |= {f"next_{name}": mean_over(data, arm, NEXT, name) for name in ("loss", "accuracy")}
    return values | {"next_test_accuracy": last(data, arm, NEXT, "test_accuracy")}


def summarise(data: RunData) -> list[dict[str, Any]]:
    """One row an arm: means over seeds, and `[mean, low, high]` of the paired differences to the references."""
    return rows_of(data, tuple(LABELS), REFERENCES)


def rows_of(data: RunData, arms: Sequence[str], references: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of `summarise` for any arms and references; a null for what an arm does not have."""
    values = {arm: values_of(data, arm) for arm in arms}
    rows = []
    for arm, own in values.items():
        row: dict[str, Any] = {"arm": arm, "seeds": len(data.config["seeds"])}
        row |= {name: _plain(interval(of_seeds).mean) for name, of_seeds in own.items()}
        for reference in references:
            if reference != arm:
                row[f"less_{reference}"] = {
                    name: [_plain(number) for number in interval(own[name] - values[reference][name])]
                    for name in own
                    if name != "r2"
                }
        rows.append(row)
    return rows


def table(data: RunData) -> Table:
    """What every arm is like at the end of the task, and how fast it learns the next; differences to two references."""
    rows = data.summary or summarise(data)
    config = data.config
    heads = (
        "arm", "R²", "train loss", "test accuracy", "rank", "distinct", "sharpness", "next task: accuracy on the way",
        "− trapped", "− drawn anew, total budget",
    )  # fmt: skip
    lines = [
        (
            LABELS[row["arm"]], cell(row["r2"], 3), cell(row["train_loss"], 3), cell(row["test_accuracy"], 3),
            cell(row["effective_rank"], 1), cell(row["distinct_units"], 1), cell(row["sharpness"], 1),
            cell(row["next_accuracy"], 3), *(difference(row, other, "next_accuracy") for other in REFERENCES[:2]),
        )
        for row in rows
    ]  # fmt: skip
    title = [
        f"{config['dataset']}, {len(config['seeds'])} seeds: {config['base_steps']:,} steps before the cloning, "
        f"{config['clone_steps']:,} after it, {config['next_steps']:,} on the next task (classes permuted, plain SGD)",
        "means over seeds at the end of the first task; accuracy on the way: before each update of the next task, its",
        "mean, and paired differences with 95 % intervals",
    ]
    return Table("\n".join(title), heads, lines)


def _records(data: RunData, arm: str, phase: str, seed: int) -> list[dict[str, Any]]:
    return data.select(method=arm, phase=phase, seed=seed)


def _number(records: list[dict[str, Any]], name: str) -> float:
    if not records or "frozen_at" in records[0] or records[0].get(name) is None:
        return math.nan
    return float(records[0][name])


def _plain(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def cell(number: float | None, digits: int) -> str:
    """A mean as text; a dash where it is not known."""
    return "-" if number is None else f"{number:.{digits}f}"


def difference(row: dict[str, Any], reference: str, name: str) -> str:
    """A paired difference as text; a dash where there is none."""
    if f"less_{reference}" not in row or None in row[f"less_{reference}"][name]:
        return "-"
    between = Interval(*row[f"less_{reference}"][name])
    return f"{between.mean:+.3f} ± {between.half:.3f}"
