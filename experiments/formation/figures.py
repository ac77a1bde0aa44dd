"""The figure of a run: the staircase of distinct units, and what it costs on the next task."""

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.formation.config import ARMS, STREAMS
from experiments.formation.report import column
from experiments.kit.intervals import interval
from lopjax.plotting import PALETTE, drawing
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(data: RunData) -> "dict[str, Figure]":
    """The figure, with the activations that all networks have been measured of; none without one."""
    names = [
        name
        for name in data.config["activations"]
        if all(data.select(activation=name, stream=stream, arm="drawn_anew") for stream in STREAMS)
    ]
    return {"formation": formation_figure(data, names)} if names else {}


def formation_figure(data: RunData, names: list[str]) -> "Figure":
    """A column an activation: distinct units, loss on the next task and rank after it, over the decay."""
    with drawing(0.6 + 3.4 * len(names), 7.6) as figure:
        panels = figure.subplots(3, len(names), sharex=True, sharey="row", squeeze=False)
        for place, name in enumerate(names):
            top, middle, bottom = panels[:, place]
            for color, stream in zip(PALETTE, STREAMS):
                _over_decays(top, data, "distinct", color, stream, activation=name, stream=stream, arm="as_it_is")
            for color, (arm, label) in zip(PALETTE[2:], ARMS.items()):
                where = {"activation": name, "stream": STREAMS[0], "arm": arm}
                _over_decays(middle, data, "next_mean_loss", color, label, **where)
                _over_decays(bottom, data, "next_rank", color, label, **where)
            middle.set_yscale("log")
            top.set(title=name, ylim=(0, data.config["width"] + 1))
            bottom.set(xlabel="weight decay")
        for axes, label in zip(panels[:, 0], ("distinct units", "next task: mean loss", "rank after it")):
            axes.set(ylabel=label)
            axes.legend(frameon=False, fontsize=8)
    return figure


def _over_decays(axes: "Axes", data: RunData, name: str, color: Any, label: str, **where: Any) -> None:
    """Means with 95 % intervals, and every seed."""
    decays = data.config["decays"]
    values = [column(data, name, decay=decay, **where) for decay in decays]
    means = [interval(of_seeds) for of_seeds in values]
    places = np.arange(len(decays))
    axes.errorbar(
        places, [m.mean for m in means], yerr=[m.half for m in means], color=color, fmt="o-", markersize=4, label=label
    )
    axes.set_xticks(places, [f"{decay:g}" for decay in decays])
