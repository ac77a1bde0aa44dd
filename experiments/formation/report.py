"""What a run has shown: how many units are left at every decay, what the blocks say, and what it costs."""

from collections import Counter
from typing import Any

import numpy as np

from experiments.formation.config import ARMS, STREAMS
from experiments.kit.intervals import Interval, interval
from experiments.kit.terminal import Table
from lopjax.runs import RunData

HEADS = (
    "activation", "labels", "decay", "distinct units", "vanished", "rank", "next task: loss, drawn anew",
    "as it is − drawn anew", "free kick − as it is", "rank after it: as it is", "free kick",
)  # fmt: skip


def column(data: RunData, name: str, **where: Any) -> np.ndarray:
    """A value of every seed that has one, in the order of seeds."""
    return np.array([record[name] for record in data.select(**where)], np.float64)


def summarise(data: RunData) -> list[dict[str, Any]]:
    """A row an activation, stream and decay with records; differences are paired by seed, `[mean, low, high]`."""
    config = data.config
    places = [(a, s, d) for a in config["activations"] for s in STREAMS for d in config["decays"]]
    rows = []
    for name, stream, decay in places:
        where = {"activation": name, "stream": stream, "decay": decay}
        if not data.select(**where, arm="drawn_anew"):
            continue
        loss = {arm: column(data, "next_mean_loss", **where, arm=arm) for arm in ARMS}
        distinct = column(data, "distinct", **where, arm="as_it_is")
        rows.append(
            {
                **where, "seeds": len(distinct),
                "distinct": [float(distinct.mean()), int(distinct.min()), int(distinct.max())],
                "vanished": float(column(data, "vanished", **where, arm="as_it_is").mean()),
                "rank": float(column(data, "rank", **where, arm="as_it_is").mean()),
                "largest_jump": float(np.abs(column(data, "jump", **where, arm="free_kick")).max()),
                "anew": float(loss["drawn_anew"].mean()),
                "cost": list(interval(loss["as_it_is"] - loss["drawn_anew"])),
                "kick": list(interval(loss["free_kick"] - loss["as_it_is"])),
                "next_rank": {arm: float(column(data, "next_rank", **where, arm=arm).mean()) for arm in ARMS},
            }
        )  # fmt: skip
    return rows


def table(data: RunData) -> Table:
    """A line for every activation, stream and decay."""
    config = data.config
    title = [
        f"{config['width']} hidden units, {config['samples']} digits, {config['steps']:,} full-batch steps under "
        f"decay, then {config['next_steps']} on the next task without; {len(config['seeds'])} seeds",
        "distinct units: mean (least to most); loss: mean over the next task's steps; differences with 95 % intervals",
        *predictions(data),
    ]
    return Table("\n".join(title), HEADS, [cells(row) for row in data.summary or summarise(data)])


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    mean, least, most = row["distinct"]
    return (
        row["activation"], row["stream"].split()[0], f"{row['decay']:g}", f"{mean:.1f} ({least} to {most})",
        f"{row['vanished']:.1f}", f"{row['rank']:.1f}", f"{row['anew']:.3f}", _difference(row["cost"]),
        _difference(row["kick"]), f"{row['next_rank']['as_it_is']:.1f}", f"{row['next_rank']['free_kick']:.1f}",
    )  # fmt: skip


def predictions(data: RunData) -> list[str]:
    """A sentence an activation: what the blocks say of the clusters that formed."""
    sentences = []
    for name in data.config["activations"]:
        judged = data.select(activation=name, arm="prediction")
        counts = {where: verdicts(judged, where) for where in ("at_own", "at_smallest")}
        if counts["at_own"].total():
            sentences.append(
                f"{name}: clusters that formed, by their blocks at their own decay: {_counted(counts['at_own'])}; "
                f"at the smallest decay: {_counted(counts['at_smallest'])}"
            )
    return sentences


def verdicts(records: list[dict[str, Any]], where: str) -> Counter[str]:
    """How often every verdict was given, of the records that have clusters."""
    return Counter(record[where]["verdict"] for record in records if record.get(where))


def texts(data: RunData) -> dict[str, str]:
    """The table for the documentation."""
    lines = [HEADS, ("---",) * len(HEADS), *(cells(row) for row in data.summary or summarise(data))]
    return {"formation.md": "".join(f"| {' | '.join(line)} |\n" for line in lines)}


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name.lower()}" for name, count in counts.most_common()) or "none"


def _difference(numbers: list[float]) -> str:
    between = Interval(*numbers)
    return f"{between.mean:+.3f} ± {between.half:.3f}"
