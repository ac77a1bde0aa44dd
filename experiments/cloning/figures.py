"""The figure of a cloning run: how similar the clones are, whether they help, how much of the added width is used."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.cloning.config import methods_of
from experiments.kit.grid import axes_of
from experiments.kit.methods import curves, label_of
from lopjax.plotting import PALETTE, band, new_figure
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(run: RunData) -> "dict[str, Figure]":
    """All figures of a run, by file name."""
    return {"cloning": cloning_figure(run)}


def cloning_figure(run: RunData) -> "Figure":
    """R², training loss and effective rank of base and clone after cloning, a colour per method and point of the grid.

    Arranged as in arXiv 2510.00304, figure 2.1. An incomplete run is drawn as far as it has come: methods that have no
    clones yet are left out. Where clones are released, their trapped life is drawn in black, with the loss that the
    quotient dynamics predict for it.
    """
    figure, panels = new_figure(3)
    unit, release_at = run.config["unit"], run.config.get("release_at", 0)
    lines = curves(methods_of(run.config["methods"], release_at), axes_of(run.config))
    if release_at:
        _draw(panels, run, {"method": "sgd", "phase": "clone"}, "black", "SGD, trapped", 0)
    for index, (method, point) in enumerate(lines):
        where = {"method": method, **dict(point), "phase": "release" if release_at else "clone"}
        # The curves of methods that keep the clones coincide: let each show through the gaps of the next.
        gaps = (0, (4, len(lines) * 2)) if index else "-"
        color = PALETTE[index % len(PALETTE)]
        _draw(panels, run, where, color, label_of(method, point), release_at, gaps)
    for style, name in (("-", "clone"), ("--", "base"), *([(":", "predicted")] if release_at else [])):
        panels[0].plot([], [], style, color="0.3", label=name)
    labels = ("R² of clones (mean over layers)", "training loss (nats)", "effective rank (mean over layers)")
    for axes, label in zip(panels, labels):
        axes.set(xlabel=f"{unit} since cloning", ylabel=label)
        if release_at:
            axes.axvline(release_at, color="0.6", linewidth=0.8)
    figure.legend(loc="outside upper center", ncols=min(len(lines) + 2, 7), frameon=False)
    return figure


def _draw(
    panels: "Sequence[Axes]",
    run: RunData,
    where: dict[str, Any],
    color: str,
    label: str,
    since: float,
    gaps: Any = "-",
) -> None:
    """One curve in every panel, a band over seeds; nothing if there are no records yet."""
    r2_axes, loss_axes, rank_axes = panels
    lanes = [{**where, "seed": seed} for seed in run.config["seeds"]]
    lanes = [lane for lane in lanes if run.select(**lane)]
    if not lanes:
        return

    def seeds(name: str) -> list[np.ndarray]:
        # The run may still be writing: one seed may be a record ahead of the others.
        columns = [run.column(name, **lane) for lane in lanes]
        return [column[: min(map(len, columns))] for column in columns]

    x = seeds(run.config["unit"])[0] + since
    r2 = seeds("clone/r2_forward/mean")
    band(r2_axes, x, r2, color)
    r2_axes.lines[-1].set_linestyle(gaps if min(map(np.min, r2)) > 0.999 else "-")
    r2_axes.plot([], [], color=color, label=label)
    for name, style in (("base", "--"), ("clone", "-"), ("quotient", ":")):
        if len(x) > 1 and any(f"{name}/train_loss" in record for record in run.select(**lanes[0])):
            losses = seeds(f"{name}/train_loss")  # there is none at cloning itself
            band(loss_axes, x[1 : 1 + len(losses[0])], losses, color, style=style)
    for name, style in (("base", "--"), ("clone", "-")):
        band(rank_axes, x, seeds(f"{name}/effective_rank/mean"), color, style=style)
