"""The figures of a run: error over time, symptoms over time, and what width does."""

from typing import TYPE_CHECKING

import numpy as np

from experiments.bit_flipping.methods import METHODS, Curve, label_of
from experiments.bit_flipping.report import bins_of, curves, spans_of
from experiments.kit.intervals import interval
from lopjax.plotting import PALETTE, drawing
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = ("-", "--", ":", "-.")
TITLES = {
    "error": "squared error",
    "probe/effective_rank": "effective rank",
    "probe/duplicate_fraction": "duplicate units",
    "probe/dead_fraction": "dead units",
    "probe/saturated_fraction": "saturated units",
    "weights": "incoming weights, r.m.s.",
}
MOST_POINTS = 60
"""Points of a curve: bins are averaged down to so many, because the tasks would hide the trend."""


def figures(run: RunData) -> "dict[str, Figure]":
    """All figures of a run, by file name."""
    drawings = {"error": error_figure(run), "symptoms": symptoms_figure(run)}
    if len(run.config["widths"]) > 1:
        drawings["widths"] = widths_figure(run)
    return drawings


def error_figure(run: RunData) -> "Figure":
    """Error over time: a panel per activation and width, a colour per method, a line style per step size."""
    panels = [(a, w) for a in run.config["activations"] for w in run.config["widths"]]
    columns, table = min(3, len(panels)), bins_of(run, "error")
    rows = -(-len(panels) // columns)
    width = 4.6 if columns == 1 else 3.6 * columns
    with drawing(width, 2.7 * rows + 0.5) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, (activation, hidden) in zip(axes, panels):
            of_width = [curve for curve in curves(run) if curve.width in (0, hidden)]
            _draw(panel, run, [curve for curve in of_width if curve.activation in (activation, "identity")], table)
            unit = "unit" if hidden == 1 else "units"
            panel.set(title=f"{activation.replace('_', ' ')}, {hidden} {unit}", ylabel=TITLES["error"])
            _limit(panel)
        for panel in axes[len(panels) :]:
            panel.set_visible(False)
        _legend(figure, axes[0])
    return figure


def symptoms_figure(run: RunData) -> "Figure":
    """Symptoms over time on the fixed batch: the first activation, width and step size, a colour per method."""
    config = run.config
    shown = [
        curve
        for curve in curves(run)
        if curve.width == config["widths"][0]
        and curve.activation == config["activations"][0]
        and dict(curve.point)["step_size"] == config["step_sizes"][0]
    ]
    with drawing(10.8, 5.6) as figure:
        axes = figure.subplots(2, 3).ravel()
        for panel, (name, title) in zip(axes, TITLES.items()):
            _draw(panel, run, shown, bins_of(run, name))
            panel.set(ylabel=title)
            if "fraction" in name:
                panel.set_ylim(-0.02, 1.02)
        if shown:
            _legend(figure, axes[0])
    return figure


def widths_figure(run: RunData) -> "Figure":
    """What width does, in the last tenth of the run: bars over width with 95 % intervals, a colour per method."""
    widths = run.config["widths"]
    names = ("error", "probe/effective_rank", "probe/duplicate_fraction", "probe/dead_fraction")
    base = [c for c in curves(run) if c.width and c.activation == run.config["activations"][0]]
    points = list(dict.fromkeys((curve.method, curve.point) for curve in base))
    with drawing(3.2 * len(names), 3.2) as figure:
        axes = figure.subplots(1, len(names))
        for panel, name in zip(axes, names):
            table = bins_of(run, name)
            for index, (method, point) in enumerate(points):
                group = {curve.width: curve for curve in base if (curve.method, curve.point) == (method, point)}
                means, halves = [], []
                for width in widths:
                    spans = spans_of(table[group[width]])
                    of_unit = width if name.endswith("rank") else 1
                    last = interval(spans[:, -1] / of_unit if spans.shape[1] else [])
                    means.append(last.mean)
                    halves.append(last.half)
                x = np.arange(len(widths)) + (index - (len(points) - 1) / 2) * 0.8 / len(points)
                label = _label(run, group[widths[0]])
                style = {"color": _color(run, method), "label": label, "alpha": 0.9}
                panel.bar(x, means, 0.8 / len(points), yerr=np.nan_to_num(halves), **style)
            panel.set_xticks(range(len(widths)), [str(width) for width in widths])
            title = "effective rank / units" if name.endswith("rank") else TITLES[name]
            panel.set(xlabel="hidden units", ylabel=title)
        _legend(figure, axes[0])
    return figure


def _draw(axes: "Axes", run: RunData, chosen: list[Curve], table: dict[Curve, np.ndarray]) -> None:
    """Mean over seeds and its 95 % interval, of bins averaged to a few dozen points."""
    points = list(dict.fromkeys(curve.point for curve in chosen))
    for curve in chosen:
        values = table[curve]
        if not values.shape[1] or not np.isfinite(values).any():
            continue
        size = -(-values.shape[1] // MOST_POINTS)  # the same for all points, or their spread would differ
        parts = [np.arange(first, first + size) for first in range(0, values.shape[1] - size + 1, size)]
        steps = np.array([(part.mean() + 0.5) * run.config["record_every"] for part in parts])
        means = [interval(values[:, part].mean(axis=1)) for part in parts]
        style = STYLES[points.index(curve.point) % len(STYLES)]
        color = _color(run, curve.method)
        centre, half = (np.array([getattr(found, field) for found in means]) for field in ("mean", "half"))
        axes.plot(steps, centre, style, color=color, label=_label(run, curve))
        axes.fill_between(steps, centre - half, centre + half, color=color, alpha=0.2, linewidth=0)
    axes.set(xlabel="step")
    axes.ticklabel_format(axis="x", scilimits=(0, 3), useMathText=True)


def _limit(axes: "Axes") -> None:
    """Limits from 0 to what shows nearly all means: a spike of one seed would flatten all other curves."""
    means = np.concatenate([line.get_ydata() for line in axes.lines] or [np.zeros(0)])
    means = means[np.isfinite(means)]
    if means.size:
        axes.set_ylim(0, min(axes.get_ylim()[1], 1.5 * np.quantile(means, 0.98)))


def _label(run: RunData, curve: Curve) -> str:
    """The method, and the numbers that distinguish its curves."""
    varied = dict(curve.point[1:])
    if len(run.config["step_sizes"]) > 1:
        varied = {"step size": dict(curve.point)["step_size"], **varied}
    return ", ".join(
        [label_of(curve.method), *(f"{name.replace('_', ' ')} {value:g}" for name, value in varied.items())]
    )


def _color(run: RunData, method: str) -> str:
    """A colour per method; the linear baseline and fresh networks are black and grey."""
    if METHODS[method].is_linear or METHODS[method].act == "fresh":
        return "black" if METHODS[method].is_linear else "0.55"
    colors = [*PALETTE[:-1], "#7F7F00", "#882255", "#44AA99", "#332288", "#AA4499"]
    learning = [name for name in run.config["methods"] if _is_coloured(name)]
    return colors[learning.index(method) % len(colors)]


def _is_coloured(method: str) -> bool:
    return not METHODS[method].is_linear and METHODS[method].act != "fresh"


def _legend(figure: "Figure", axes: "Axes") -> None:
    """A legend above all panels, in as many columns as the width of the figure has room for."""
    handles, labels = axes.get_legend_handles_labels()
    inches = 0.7 + 0.075 * max(map(len, labels), default=0)  # the line, and letters of ten points at most
    columns = max(1, min(4, len(labels), int(figure.get_figwidth() / inches)))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
