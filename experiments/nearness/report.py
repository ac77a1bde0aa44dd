"""What a run has shown: distances at the start and at the end, beside those of shuffled units."""

from typing import Any

import numpy as np

from experiments.kit.intervals import Interval, interval
from experiments.kit.terminal import Table
from experiments.nearness.config import DISTANCES, NETWORKS, distances_of
from lopjax.runs import RunData

HEADS = ("network", "optimizer", "distance to", "median at the start", "at the end", "− shuffled", "least at the end",
         "− shuffled")  # fmt: skip


def at(data: RunData, network: str, rule: str, task: int, name: str) -> np.ndarray:
    """A value of every seed after a task."""
    return np.array([record[name] for record in data.select(network=network, rule=rule, task=task)], np.float64)


def summarise(data: RunData) -> list[dict[str, Any]]:
    """A row for every network, optimizer and distance with records; differences are paired: `[mean, low, high]`."""
    rows, last = [], data.config["tasks"]
    for network, rule in [(network, rule) for network in NETWORKS for rule in data.config["rules"]]:
        if not data.select(network=network, rule=rule):
            continue
        for name in distances_of(network):
            row: dict[str, Any] = {"network": network, "rule": rule, "distance": name}
            row["start"] = float(at(data, network, rule, 0, f"{name} own median").mean())
            for which in ("median", "least"):
                own, control = (at(data, network, rule, last, f"{name} {kind} {which}") for kind in ("own", "control"))
                row |= {which: float(own.mean()), f"{which}_less_control": list(interval(own - control))}
            rows.append(row)
    return rows


def table(data: RunData) -> Table:
    """A line a distance."""
    config = data.config
    title = (
        f"{config['tasks']} tasks of {config['steps']} steps, {len(config['seeds'])} seeds; distances over the "
        "units of all layers:\nmeans over seeds of their median and their least, paired differences with 95 % intervals"
    )
    return Table(title, HEADS, [cells(row) for row in data.summary or summarise(data)])


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    return (
        row["network"], row["rule"], DISTANCES[row["distance"]], f"{row['start']:.3f}", f"{row['median']:.3f}",
        _difference(row["median_less_control"]), f"{row['least']:.3f}", _difference(row["least_less_control"]),
    )  # fmt: skip


def texts(data: RunData) -> dict[str, str]:
    """The table for the documentation."""
    lines = [HEADS, ("---",) * len(HEADS), *(cells(row) for row in data.summary or summarise(data))]
    return {"nearness.md": "".join(f"| {' | '.join(line)} |\n" for line in lines)}


def _difference(numbers: list[float]) -> str:
    between = Interval(*numbers)
    return f"{between.mean:+.3f} ± {between.half:.3f}"
