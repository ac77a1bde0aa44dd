"""The figure of a run: test accuracy on the first task, and distance to clones, against the loss on the next."""

from typing import TYPE_CHECKING

import numpy as np

from experiments.generalisation.config import KNOBS
from experiments.generalisation.report import samples
from experiments.kit.intervals import interval
from lopjax.plotting import PALETTE, drawing
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = {"test_accuracy": "test accuracy, first task", "distance": "distance to the nearest clone"}


def figures(data: RunData) -> "dict[str, Figure]":
    """The figure, with the activations that have been measured; none without one."""
    names = [name for name in data.config["activations"] if data.select(activation=name)]
    return {"generalisation": generalisation_figure(data, names)} if names else {}


def generalisation_figure(data: RunData, names: list[str]) -> "Figure":
    """A row an activation: a path a knob, from its smallest value to its largest, with 95 % intervals."""
    with drawing(4.4 * len(ACROSS) + 0.6, 3.4 * len(names)) as figure:
        panels = figure.subplots(len(names), len(ACROSS), squeeze=False, sharey="row")
        for row, name in zip(panels, names):
            for axes, (quantity, label) in zip(row, ACROSS.items()):
                for color, knob in zip(PALETTE, KNOBS):
                    _path(axes, data, name, knob, quantity, color)
                anew = interval(samples(data, name)["anew_next_loss"][0])
                axes.axhline(anew.mean, color="0.5", linestyle=":", label="network drawn anew")
                axes.set(xlabel=label)
            row[0].set(ylabel=f"{name}: mean loss on the next task")
        panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _path(axes: "Axes", data: RunData, name: str, knob: str, quantity: str, color: str) -> None:
    values = samples(data, name, knob)
    order = np.argsort(values[knob][:, 0])
    across, up = ([interval(values[key][place]) for place in order] for key in (quantity, "next_loss"))
    axes.errorbar(
        [each.mean for each in across], [each.mean for each in up], xerr=[each.half for each in across],
        yerr=[each.half for each in up], fmt="o-", markersize=3, linewidth=1, elinewidth=0.6, color=color,
        label=KNOBS[knob],
    )  # fmt: skip
    # Which end is the larger value.
    axes.plot(across[-1].mean, up[-1].mean, "s", color=color, markersize=7)
