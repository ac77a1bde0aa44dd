"""The figure of a run: distances over tasks, a panel a network and optimizer."""

from typing import TYPE_CHECKING

import numpy as np

from experiments.nearness.config import DISTANCES, NETWORKS, distances_of
from experiments.nearness.report import at
from lopjax.plotting import PALETTE, band, drawing
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(data: RunData) -> "dict[str, Figure]":
    """The figure, once all networks have been trained."""
    rules = data.config["rules"]
    is_whole = all(data.select(network=network, rule=rule) for network in NETWORKS for rule in rules)
    return {"nearness": nearness_figure(data, rules)} if is_whole else {}


def nearness_figure(data: RunData, rules: list[str]) -> "Figure":
    """Medians over units, with 95 % bands over seeds; dashed: shuffled units."""
    with drawing(3.6 * len(NETWORKS) + 0.6, 2.9 * len(rules)) as figure:
        panels = figure.subplots(len(rules), len(NETWORKS), squeeze=False, sharex=True, sharey="col")
        for row, rule in zip(panels, rules):
            for axes, network in zip(row, NETWORKS):
                _distances(axes, data, network, rule)
                axes.set(title=f"{network}, {rule}")
            row[0].set(ylabel="relative distance")
        for axes in panels[-1]:
            axes.set(xlabel="tasks")
        for axes in panels[0]:
            axes.legend(frameon=False, fontsize=7)
    return figure


def _distances(axes: "Axes", data: RunData, network: str, rule: str) -> None:
    tasks = np.arange(data.config["tasks"] + 1)
    for name in distances_of(network):
        color = PALETTE[list(DISTANCES).index(name) % len(PALETTE)]
        own, control = (
            np.array([at(data, network, rule, int(task), f"{name} {kind} median") for task in tasks]).T
            for kind in ("own", "control")
        )
        band(axes, tasks, list(own), color, DISTANCES[name])
        axes.plot(tasks, control.mean(0), linestyle="--", linewidth=1, color=color)
    axes.set_ylim(bottom=0)
