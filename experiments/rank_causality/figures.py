"""The figures: rank at the start beside the loss at the end, arm by arm; and how both go over a task."""

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.kit.intervals import interval
from experiments.rank_causality.arms import ARMS, FRESH, NONE
from experiments.rank_causality.config import cases_of
from experiments.rank_causality.effects import Cell, cells_of
from lopjax.plotting import PALETTE, band, drawing
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {
    "nothing freed": PALETTE[1], "added units free": PALETTE[0], "regularised": PALETTE[2], "drawn anew": PALETTE[6],
}  # fmt: skip
"""Kinds of arms."""
CURVES = ("dead", "cloned", "woken_on_leaf", "kick_small", "split", "woken", "fresh_wide")


def figures(run: RunData) -> "dict[str, Figure]":
    """All figures of a run, by file name: of every kind of tasks the effects, of the first case the curves."""
    cells = cells_of(run)
    cases = [case for case in cases_of(run.config) if any(place[:2] == (case, 1) for place in cells)]
    drawn = {}
    for kind in dict.fromkeys(case.tasks for case in cases):
        columns = {case: _own(cells, case) for case in cases if case.tasks == kind}
        drawn[f"effects_{kind}"] = effects_figure(columns)
    return drawn | ({"curves": curves_figure(cases[0].name, _own(cells, cases[0]))} if cases else {})


def _own(cells: dict[Any, Cell], case: Any) -> dict[str, Cell]:
    """The arms of a case on the first task after the checkpoint."""
    return {name: cell for (of, task, name), cell in cells.items() if (of, task) == (case, 1)}


def kind_of(name: str) -> str:
    """Of an arm, a key of `COLORS`."""
    arm = ARMS[name]
    if name in FRESH.values():
        return "drawn anew"
    if arm.is_free:
        return "added units free"
    return "regularised" if arm.regulariser != NONE and not arm.is_wide else "nothing freed"


def effects_figure(columns: "dict[Any, dict[str, Cell]]") -> "Figure":
    """A row an arm: its rank where the task begins, in the first case, and the loss at its end, in every case."""
    names = sorted(
        next(iter(columns.values())), key=lambda name: (list(COLORS).index(kind_of(name)), list(ARMS).index(name))
    )
    with drawing(2.9 + 1.9 * (1 + len(columns)), 0.9 + 0.21 * len(names)) as figure:
        panels = figure.subplots(1, 1 + len(columns), sharey=True, squeeze=False)[0]
        first = next(iter(columns.values()))
        _row_by_row(panels[0], names, {name: cell.rank_start for name, cell in first.items()})
        case = next(iter(columns))
        title = f"rank: {case.activation}, {case.width}-{case.width} units"
        panels[0].set(xlabel="effective rank at the start", title=title)
        panels[0].set_yticks(range(len(names)), [ARMS[name].label for name in names])
        panels[0].invert_yaxis()
        for axes, (case, cells) in zip(panels[1:], columns.items(), strict=True):
            _row_by_row(axes, names, {name: cell.loss for name, cell in cells.items()})
            axes.set(
                xscale="log", xlabel="loss at the end", title=f"{case.activation}, {case.width}-{case.width} units"
            )
        for kind, color in COLORS.items():
            panels[0].plot([], [], "o", color=color, markersize=4, label=kind)
        figure.legend(loc="outside lower center", ncols=len(COLORS), frameon=False)
        figure.suptitle(f"Same function, different rank: {next(iter(columns)).tasks.replace('_', ' ')}", fontsize=10)
    return figure


def _row_by_row(axes: "Axes", names: list[str], values: dict[str, np.ndarray]) -> None:
    for row, name in enumerate(names):
        if name not in values:
            continue
        found, color = interval(values[name]), COLORS[kind_of(name)]
        axes.plot(values[name], np.full(len(values[name]), row), ".", color=color, alpha=0.25, markersize=3)
        bounds = [[found.mean - max(found.low, 0.5 * values[name].min())], [found.high - found.mean]]
        axes.errorbar(found.mean, row, xerr=np.nan_to_num(bounds), fmt="o", color=color, markersize=4, capsize=2)


def curves_figure(name: str, cells: dict[str, Cell]) -> "Figure":
    """Loss on all examples and rank on the probe over the first task, means and deviations over seeds."""
    with drawing(8.4, 3.4) as figure:
        panels = figure.subplots(1, 2)
        shown = [arm for arm in CURVES if arm in cells]
        for color, arm in zip(PALETTE, shown):
            band(panels[0], cells[arm].steps, list(cells[arm].losses), color, ARMS[arm].label)
            band(panels[1], cells[arm].steps, list(cells[arm].ranks), color)
        highest = max(cells[arm].losses[:, 1:].mean(axis=0).max() for arm in shown)  # the start is the same for most
        panels[0].set(xlabel="step of the task", ylabel="loss on all of its examples", ylim=(0, 1.3 * highest))
        panels[1].set(xlabel="step of the task", ylabel="effective rank on the fixed probe")
        figure.legend(loc="outside right center", frameon=False, fontsize=8)
        figure.suptitle(name, fontsize=10)
    return figure
