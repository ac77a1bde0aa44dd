"""The figure of a run: what every arm is like at the end of the task, and how it learns the next."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.aftermath.config import BASE
from experiments.aftermath.parts import NEXT
from experiments.aftermath.report import LABELS, values_of
from experiments.kit.intervals import interval
from lopjax.plotting import PALETTE, band, drawing
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = {
    "train_loss": "training loss",
    "test_accuracy": "test accuracy",
    "effective_rank": "effective rank",
    "distinct_units": "distinct units",
    "next_accuracy": "next task: accuracy on the way",
}
IN_CURVES = (BASE, "trapped", "noise", "split", "scratch", "scratch_short")


def figures(run: RunData) -> "dict[str, Figure]":
    """All figures of a run, by file name; none before the next task has begun."""
    return {"aftermath": aftermath_figure(run, LABELS, IN_CURVES)} if run.select(phase=NEXT) else {}


def aftermath_figure(run: RunData, labels: Mapping[str, str], in_curves: Sequence[str]) -> "Figure":
    """Above: means with 95 % intervals, a line an arm. Below: accuracy on the next task over its steps.

    Args:
        run: to be drawn.
        labels: labels of the arms, in their order.
        in_curves: arms of the lower panel.
    """
    arms = list(labels)
    colors = {arm: "0.45" if arm == BASE else PALETTE[(n - 1) % len(PALETTE)] for n, arm in enumerate(arms)}
    values = {arm: values_of(run, arm) for arm in arms}
    with drawing(2.3 * len(PANELS) + 2.2, 6.4) as figure:
        grid = figure.add_gridspec(2, len(PANELS), height_ratios=(1.1, 1))
        panels = [figure.add_subplot(grid[0, column]) for column in range(len(PANELS))]
        for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
            _intervals(axes, {arm: values[arm][name] for arm in arms}, label, colors)
            axes.set_yticks(range(len(arms)), [labels[arm] if axes is panels[0] else "" for arm in arms])
            axes.invert_yaxis()
        _curves(figure.add_subplot(grid[1, :]), run, {arm: labels[arm] for arm in in_curves}, colors)
    return figure


def _intervals(axes: "Axes", values: dict[str, np.ndarray], label: str, colors: Mapping[str, Any]) -> None:
    for place, (arm, of_seeds) in enumerate(values.items()):
        mean = interval(of_seeds)
        color = colors[arm]
        axes.plot(of_seeds, np.full(len(of_seeds), place), "o", color=color, alpha=0.25, markersize=3, linewidth=0)
        axes.errorbar(mean.mean, place, xerr=mean.half, fmt="s", color=color, markersize=4)
    axes.set(xlabel=label)


def _curves(axes: "Axes", run: RunData, labels: Mapping[str, str], colors: Mapping[str, Any]) -> None:
    for arm, label in labels.items():
        seeds = [run.select(method=arm, phase=NEXT, seed=seed) for seed in run.config["seeds"]]
        accuracies = [_column(records, "accuracy") for records in seeds if len(records) == len(seeds[0]) > 0]
        if accuracies:
            steps = np.array([record["step"] for record in seeds[0]])
            band(axes, steps - steps[0] / 2, accuracies, colors[arm], label)
    axes.set(xlabel="steps of the next task", ylabel="accuracy before the update")
    axes.legend(frameon=False, fontsize=8)


def _column(records: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([np.nan if record.get(name) is None else record[name] for record in records])
