"""The figures of a run: the difference from a fresh network over the tasks, and every method's row of the table."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.remedies.methods import FRESH, METHODS, PLAIN, label_of, lanes_of
from experiments.remedies.report import BASES, curves, paired, summarise
from lopjax.plotting import PALETTE, band, drawing
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEST = 4
COLORS = {"gained": "#0072B2", "kept": "#009E73", "lost": "#D55E00"}
"""Of the verdicts of the table; all others are grey."""
QUANTITIES = {
    "late_less_early": "late − early: what is lost",
    "late_less_fresh": "late − fresh network",
    "transfer": "earlier tasks − when they ended",
}
"""Columns of the table that have panels, and what is written below them."""


def figures(run: RunData) -> "dict[str, Figure]":
    """All figures of a run, by file name."""
    return {"remedies": remedies_figure(run), "remedies_methods_and_streams": methods_and_streams(run)}


def remedies_figure(run: RunData) -> "Figure":
    """A column per stream, the plain optimizer in black, the four best remedies in colours, all others in grey.

    Above: online score minus that of the fresh network over the tasks. Below: forgetting against plasticity, with 95 %
    intervals.
    """
    rows = run.summary or summarise(run)
    streams = run.config["streams"]
    with drawing(4.4 * len(streams), 7.2) as figure:
        panels = figure.subplots(2, len(streams), squeeze=False)
        for column, stream in enumerate(streams):
            of_stream = [row for row in rows if row["stream"] == stream and row["late_less_plain"][0] is not None]
            ranked = sorted((row for row in of_stream if row["method"] not in (FRESH, PLAIN)), key=_gain, reverse=True)
            colors = {row["method"]: PALETTE[number] for number, row in enumerate(ranked[:BEST])} | {PLAIN: "black"}
            _over_tasks(panels[0, column], run, stream, colors)
            _trade(panels[1, column], of_stream, colors)
    return figure


def methods_and_streams(run: RunData) -> "Figure":
    """A row of panels per stream, a line per method: what was lost, the distance from fresh, and earlier tasks.

    All are differences over seeds with 95 % intervals, those of the table, colours its verdicts; the plain optimizer
    is dashed. A method that was not run, or that diverged, has no point.
    """
    rows, streams = run.summary or summarise(run), run.config["streams"]
    names = [PLAIN, *(name for name in METHODS if any(row["method"] == name for row in rows))]
    with drawing(9.5, 1.0 + (0.55 + 0.15 * len(names)) * len(streams)) as figure:
        panels = figure.subplots(len(streams), len(QUANTITIES), squeeze=False, sharey=True)
        for line, stream in zip(panels, streams, strict=True):
            of_stream = {row["method"]: row for row in rows if row["stream"] == stream}
            for axes, (quantity, label) in zip(line, QUANTITIES.items(), strict=True):
                _forest(axes, [of_stream.get(name) for name in names], quantity)
                axes.set(xlabel=label if stream == streams[-1] else "")
            line[0].set_title(stream.replace("_", " "), loc="left", fontweight="bold")
            line[0].set_yticks(range(len(names)), [label_of(name) for name in names], fontsize=7)
            line[0].set_ylim(len(names) - 0.5, -0.5)
        for verdict, color in {**COLORS, "undecided": "0.5"}.items():
            panels[0, 0].plot([], [], "o", markersize=4, color=color, label=verdict)
        figure.legend(loc="outside upper right", ncols=len(COLORS) + 1, fontsize=8)
    return figure


def _forest(axes: "Axes", rows: Sequence[dict[str, Any] | None], quantity: str) -> None:
    axes.axvline(0, color="0.5", linewidth=1)
    if rows[0] is not None and rows[0][quantity][0] is not None:
        axes.axvline(rows[0][quantity][0], color="0.5", linewidth=1, linestyle="--")
    for place, row in enumerate(rows):
        if row is None or row[quantity][0] is None:
            continue
        mean, *bounds = row[quantity]
        color = COLORS.get(row["verdict"], "0.5")
        axes.errorbar(mean, place, xerr=_half(bounds), fmt="o", markersize=3, color=color, linewidth=1)


def _gain(row: dict[str, Any]) -> float:
    return row["late_less_plain"][0]


def _over_tasks(axes: "Axes", run: RunData, stream: str, colors: dict[str, str]) -> None:
    axes.axhline(0, color="0.5", linewidth=1)
    fresh = curves(run, stream, FRESH, "online")
    for method in lanes_of(tuple(run.config["methods"]), BASES[stream]):
        away = paired(curves(run, stream, method, "online"), fresh)
        if method == FRESH or not away.size or not np.isfinite(away).all():
            continue
        tasks = curves(run, stream, method, "task")[0, : away.shape[1]]
        if method in colors:
            band(axes, tasks, list(away), colors[method], label_of(method))
        else:
            axes.plot(tasks, away.mean(axis=0), color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlabel="task", ylabel="online score − fresh network", title=stream.replace("_", " "))
    axes.legend(frameon=False, fontsize=7)


def _trade(axes: "Axes", rows: list[dict[str, Any]], colors: dict[str, str]) -> None:
    for row in rows:
        if row["method"] == FRESH or row["transfer"][0] is None:
            continue
        color = colors.get(row["method"], "0.6")
        (x, *across), (y, *along) = row["late_less_fresh"], row["transfer"]
        errors = [_half(bounds) for bounds in (across, along)]
        axes.errorbar(x, y, xerr=errors[0], yerr=errors[1], fmt="o", markersize=3, color=color, linewidth=0.8)
        axes.annotate(
            label_of(row["method"]), (x, y), xytext=(3, 3), textcoords="offset points", fontsize=6, color=color
        )
    axes.set(xlabel="late online score − fresh network", ylabel="earlier tasks: score − when they ended")


def _half(bounds: list[float | None]) -> float:
    low, high = bounds
    return math.nan if low is None or high is None else (high - low) / 2
