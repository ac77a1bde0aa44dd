"""The figure of a run: losses less those of fresh networks over the tasks, and symptoms on the fixed probe."""

from typing import TYPE_CHECKING

from experiments.continual.figures import SYMPTOMS, draw_curves, draw_differences
from experiments.language.report import last_mlp
from lopjax.plotting import drawing
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(run: RunData) -> "dict[str, Figure]":
    """All figures of a run, by file name."""
    return {"language": language_figure(run)}


def language_figure(run: RunData) -> "Figure":
    """Does it lose plasticity, and which symptoms come with it? A colour a method, fresh networks in black.

    Above: loss on the test windows after each task less that of the fresh network, the same of online loss, online loss
    itself. Below: effective rank, dead and duplicate units of the last MLP on the fixed probe.
    """
    with drawing(9.9, 5.8) as figure:
        panels = figure.subplots(2, 3)
        if run.config["fresh"]:
            draw_differences(panels[0, 0], run, "test_loss", "test loss after the task\nminus fresh network (nats)")
            draw_differences(panels[0, 1], run, "online_loss", "online loss\nminus fresh network (nats)")
        draw_curves(panels[0, 2], run, "online_loss", "online loss (nats a token)")
        for axes, symptom in zip(panels[1], ("effective_rank", "dead_fraction", "duplicate_fraction")):
            draw_curves(axes, run, f"probe/{symptom}/{last_mlp(run)}", f"{SYMPTOMS[symptom]}, MLP")
        handles = panels[0, 2].get_legend_handles_labels()[0]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 5), frameon=False)
    return figure
