"""The figures of a run: the difference to fresh networks, symptoms, and where in the network they are."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.continual.methods import fresh, label_of, lanes_of, method_of
from experiments.continual.report import accuracy_name, at_ends, less_fresh, over_tasks, value_of
from experiments.kit.intervals import interval
from lopjax.plotting import PALETTE, band, drawing, new_figure
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SYMPTOMS = {
    "effective_rank": "effective rank",
    "dead_fraction": "dead units",
    "duplicate_fraction": "duplicate units",
    "saturated_fraction": "saturated units",
}

# With more tasks than this, their starts are not marked.
MOST_STARTS = 50


def figures(run: RunData) -> "dict[str, Figure]":
    """All figures of a run, by file name."""
    return {
        "continual": continual_figure(run),
        "dead_and_duplicate": steps_figure(run),
        "rank_and_symptoms": symptoms_figure(run),
        "layers": layers_figure(run, run.config["methods"][0]),
    }


def continual_figure(run: RunData) -> "Figure":
    """Does it lose plasticity, and which symptoms come with it? A colour per method, fresh networks in black.

    Above: accuracy after each task minus the fresh network's, the same for online accuracy, online accuracy itself.
    Below: effective rank on the fixed probe (thin: on the stream, where it moves with the tasks, too), dead, duplicate
    and saturated units on the fixed probe; means over layers.
    """
    with drawing(13.2, 5.8) as figure:
        panels = figure.subplots(2, 4)
        last = accuracy_name(run)
        names = {"test_accuracy": "test accuracy", "train_accuracy": "accuracy"}
        if run.config["fresh"]:
            draw_differences(panels[0, 0], run, last, f"{names[last]} after the task\nminus fresh network")
            draw_differences(panels[0, 1], run, "online_accuracy", "online accuracy\nminus fresh network")
        draw_curves(panels[0, 2], run, "online_accuracy", "online accuracy")
        draw_curves(panels[0, 3], run, "plasticity", "plasticity: share of the loss\nthat a step takes away")
        for axes, (symptom, label) in zip(panels[1], SYMPTOMS.items()):
            draw_curves(axes, run, f"probe/{symptom}/mean", f"{label}, fixed probe")
            if symptom == "effective_rank":
                draw_curves(axes, run, f"stream/{symptom}/mean", f"{label}, fixed probe\n(dotted: on the stream)", ":")
            else:
                axes.set_ylim(-0.02, 1.02)
        handles = panels[0, 2].get_legend_handles_labels()[0]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def steps_figure(run: RunData) -> "Figure":
    """Dead and duplicate units over steps on the fixed probe, mean over layers; grey lines where new tasks start."""
    figure, panels = new_figure(2)
    for axes, symptom in zip(panels, ("dead_fraction", "duplicate_fraction")):
        for name in lanes_of(tuple(run.config["methods"]), run.config["fresh"]):
            curves = [run.select(method=name, seed=seed) for seed in run.config["seeds"]]
            num = min(map(len, curves))
            if num:
                values = [[value_of(record, f"probe/{symptom}/mean") for record in curve[:num]] for curve in curves]
                steps = np.array([record["step"] for record in curves[0][:num]])
                band(axes, steps, [np.array(curve, float) for curve in values], color_of(run, name), label_of(name))
        for task in range(1, run.config["num_tasks"] if run.config["num_tasks"] <= MOST_STARTS else 0):
            axes.axvline(task * run.config["steps"], color="0.9", linewidth=0.6, zorder=0)
        axes.grid(visible=False, axis="x")
        axes.set(xlabel="step", ylabel=f"{SYMPTOMS[symptom]}, fixed probe", ylim=(-0.02, 1.02))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def layers_figure(run: RunData, method: str) -> "Figure":
    """Where in the network: every symptom of every site on the fixed probe over the tasks, dark to light by depth."""
    figure, panels = new_figure(len(SYMPTOMS))
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    sites = sites_of(run)
    colors = [to_hex(color) for color in colormaps["viridis"](np.linspace(0, 0.92, len(sites)))]
    for axes, (symptom, label) in zip(panels, SYMPTOMS.items()):
        for site, color in zip(sites, colors):
            _band(axes, run, f"probe/{symptom}/{site}", method, color, site)
        axes.set(xlabel="task", ylabel=f"{label}, fixed probe")
        if symptom != "effective_rank":
            axes.set_ylim(-0.02, 1.02)
    handles = panels[0].get_legend_handles_labels()
    figure.suptitle(label_of(method), fontsize=10)
    figure.legend(*handles, loc="outside right center", frameon=False, fontsize=7)
    return figure


def symptoms_figure(run: RunData) -> "Figure":
    """Rank against the other symptoms, a point per task, layer and seed, light to dark over the tasks (first method).

    Above each panel: the rank correlation over tasks and layers, its mean and 95 % interval over seeds.
    """
    points = None
    figure, panels = new_figure(3)
    method, seeds = run.config["methods"][0], run.config["seeds"]
    for axes, symptom in zip(panels, list(SYMPTOMS)[1:]):
        of_seeds = [
            [
                [at_ends(run, f"probe/{name}/{site}", method, seed) for name in (symptom, "effective_rank")]
                for seed in seeds
            ]
            for site in sites_of(run)
        ]
        for pairs in of_seeds:
            for across, rank in pairs:
                points = axes.scatter(across, rank, c=np.arange(1, len(rank) + 1), s=8, cmap="viridis_r", alpha=0.6)
        found = interval([correlation(*map(np.concatenate, zip(*pairs))) for pairs in zip(*of_seeds)])
        axes.set_title("" if np.isnan(found.mean) else f"rank correlation {found}", fontsize=8)
        axes.set(xlabel=f"{SYMPTOMS[symptom]}, a layer", ylabel="effective rank of the layer", xlim=(-0.02, 1.02))
    if points is not None:
        figure.colorbar(points, ax=panels[-1], label="task")
    num = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    figure.suptitle(f"{label_of(method)}, {num}, fixed probe", fontsize=10)
    return figure


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where one of the two does not vary.

    Example:
        >>> correlation(np.array([1.0, 2.0, 9.0]), np.array([3.0, 2.0, -1.0]))
        -1.0
    """
    from scipy.stats import rankdata

    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return round(float(np.corrcoef(rankdata(a), rankdata(b))[0, 1]), 12)


def sites_of(run: RunData) -> list[str]:
    """Every site whose symptoms are recorded, in the order of the forward pass."""
    prefix = "probe/effective_rank/"
    names = [name.removeprefix(prefix) for name in run.records[0] if name.startswith(prefix)]
    return [name for name in names if name != "mean"]


def color_of(run: RunData, name: str) -> str:
    """A colour per method; fresh networks are black, or grey."""
    methods = list(run.config["methods"])
    if name in methods:
        return PALETTE[methods.index(name) % (len(PALETTE) - 1)]
    controls = list(dict.fromkeys(fresh(method_of(method).control) for method in methods))
    return ("black", "0.55")[controls.index(name) % 2]


def style_of(run: RunData, name: str) -> str:
    """Dashed where the colours come for the second time."""
    methods = list(run.config["methods"])
    return "--" if name in methods and methods.index(name) >= len(PALETTE) - 1 else "-"


def draw_differences(axes: "Axes", run: RunData, value: str, label: str) -> None:
    """A value of every method over the tasks less that of its fresh networks."""
    axes.axhline(0, color="black", linewidth=1)
    for method in run.config["methods"]:
        curves = [less_fresh(run, value, method, seed) for seed in run.config["seeds"]]
        _draw(axes, curves, color_of(run, method), label_of(method), style_of(run, method))
    axes.set(xlabel="task", ylabel=label)


def draw_curves(axes: "Axes", run: RunData, value: str, label: str, style: str = "-") -> None:
    """A value of every method and fresh network over the tasks."""
    for name in lanes_of(tuple(run.config["methods"]), run.config["fresh"]):
        label_or_none, own = (label_of(name), style_of(run, name)) if style == "-" else (None, style)
        _band(axes, run, value, name, color_of(run, name), label_or_none, own)
    axes.set(xlabel="task", ylabel=label)


def _band(axes: "Axes", run: RunData, value: str, name: str, color: Any, label: str | None, style: str = "-") -> None:
    curve = over_tasks if value in ("online_accuracy", "online_loss", "plasticity") else at_ends
    _draw(axes, [curve(run, value, name, seed) for seed in run.config["seeds"]], color, label, style)


def _draw(axes: "Axes", curves: list[np.ndarray], color: Any, label: str | None, style: str = "-") -> None:
    """Mean and band over seeds, as far as all have come."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    draw_done(axes, curves, color, label, style)


def draw_done(axes: "Axes", curves: list[np.ndarray], color: Any, label: str | None, style: str = "-") -> None:
    """Mean and band over seeds, as far as all have come, of the tasks at which any curve has a value."""
    num = min(map(len, curves))
    done = np.flatnonzero(np.isfinite([curve[:num] for curve in curves]).any(axis=0))
    if len(done):
        band(axes, done + 1, [curve[done] for curve in curves], color, label, style)
