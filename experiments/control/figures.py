"""The figure of a run: a row an environment; score, difference to the fresh network, rank and dead units."""

from typing import TYPE_CHECKING

import numpy as np

from experiments.control.environments import LEVELS
from experiments.control.methods import FRESH, PLAIN, method_of
from experiments.control.report import at_ends, curves, methods_of, paired
from lopjax.plotting import PALETTE, band, drawing
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(run: RunData) -> "dict[str, Figure]":
    """All figures of a run, by file name."""
    return {"control": control_figure(run)}


def control_figure(run: RunData) -> "Figure":
    """Means over seeds with one standard deviation; the fresh network in grey, plain Adam in black."""
    problems, methods = run.config["problems"], methods_of(run)
    others = [name for name in methods if name not in (FRESH, PLAIN)]
    colors = {FRESH: "0.6", PLAIN: "black"} | dict(zip(others, PALETTE))
    with drawing(13.2, 2.9 * len(problems)) as figure:
        panels = figure.subplots(len(problems), 4, squeeze=False)
        for row, problem in zip(panels, problems):
            for name in methods:
                look = colors[name], method_of(name).label
                _score(row[0], run, problem, name, *look)
                _online(row[1], run, problem, name, *look)
                for axes, symptom in ((row[2], "effective_rank"), (row[3], "dead_fraction")):
                    _over_steps(axes, run, problem, name, f"probe/{symptom}/mean", *look)
            drift = run.config[problem]["drift"]
            if drift == "none":
                row[0].axhline(LEVELS[problem], color="0.5", linewidth=1, linestyle="--")
            row[0].set(title=f"{problem.replace('_', ' ')}, drift: {drift.replace('_', ' ')}", ylabel="score")
            row[2].set(ylabel="effective rank, probe")
            row[3].set(ylabel="dead units, probe")
            row[2].legend(fontsize=6)
    return figure


def _online(axes: "Axes", run: RunData, problem: str, name: str, color: str, label: str) -> None:
    """Return while learning: less that of the fresh network in each of several tasks, as it is along a single one."""
    if run.config[problem]["num_tasks"] == 1 or not run.config["fresh"]:
        _over_steps(axes, run, problem, name, "online", color, label, first=1)
        axes.set(ylabel="online return")
    elif name != FRESH:
        away = paired(*(at_ends(run, problem, each, "online") for each in (name, FRESH)))
        _over_tasks(axes, away, color, label)
        axes.axhline(0, color="0.5", linewidth=1)
        axes.set(ylabel="online return − fresh network")


def _score(axes: "Axes", run: RunData, problem: str, name: str, color: str, label: str) -> None:
    """At the end of every task, or along a single one."""
    if run.config[problem]["num_tasks"] == 1:
        _over_steps(axes, run, problem, name, "score", color, label)
        return
    _over_tasks(axes, at_ends(run, problem, name, "score"), color, label)


def _over_tasks(axes: "Axes", values: np.ndarray, color: str, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    _band(axes, np.arange(1, values.shape[1] + 1), values, color, label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="task")


def _over_steps(
    axes: "Axes", run: RunData, problem: str, name: str, value: str, color: str, label: str, first: int = 0
) -> None:
    found = curves(run, problem, name, value)[:, first:]
    steps = curves(run, problem, name, "step")[0, first : first + found.shape[1]]
    _band(axes, steps / 1000, found, color, label)
    axes.set(xlabel="environment steps, thousands")


def _band(axes: "Axes", x: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    if values.size and np.isfinite(values).all():
        band(axes, x[: values.shape[1]], list(values), color, label)
