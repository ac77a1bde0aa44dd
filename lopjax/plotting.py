"""Figures of recorded runs: vector PDF beside PNG, a colour-blind-safe palette, bands over seeds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, in an order that keeps neighbours apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE: "dict[Any, Any]" = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
}
METHOD_NAMES = {"sgd": "SGD", "noisy_sgd": "noisy SGD", "dropout": "dropout", "adam": "Adam"}


def new_figure(columns: int, width: float = 3.3, height: float = 2.8) -> "tuple[Figure, Sequence[Axes]]":
    """A row of panels in the house style, drawn without a display; sizes in inches a panel."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, axes


def band(
    axes: "Axes", x: np.ndarray, runs: Sequence[np.ndarray], color: str, label: str | None = None, style: str = "-"
) -> None:
    """Mean over runs as a line, one standard deviation on either side as a band.

    Args:
        axes: where.
        x: `(points,)`.
        runs: one `(points,)` array a seed.
        color: of line and band.
        label: in the legend.
        style: matplotlib line style.
    """
    values = np.stack(runs)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    axes.plot(x, mean, style, color=color, label=label)
    if len(values) > 1:
        axes.fill_between(x, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0)


@contextmanager
def figure_at(path: Path, width: float, height: float, dpi: int = 200) -> "Iterator[Figure]":
    """A figure of any layout in the house style, sizes in inches, written to `path.png` and `path.pdf` at the end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
    save(figure, path, dpi)


def save(figure: "Figure", path: Path, dpi: int = 200) -> tuple[Path, Path]:
    """Write `path.png` (at `dpi` dots an inch) and `path.pdf`; returns both paths."""
    import matplotlib as mpl

    # Not `with_suffix`: a name like `noise_0.01` has none to replace.
    written = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.pdf")
    with mpl.rc_context(STYLE):
        for file in written:
            figure.savefig(file, dpi=dpi)
    return written


def cloning_figure(run: RunData) -> "Figure":
    """E1: R², training loss and effective rank of base and clone after cloning, a colour a method.

    The arrangement of arXiv 2510.00304, figure 2.1: how alike the clones are, whether they help, and how much of the
    added width is used. Of a run that is not complete, what there is: methods without clones yet are left out.
    """
    figure, (r2_axes, loss_axes, rank_axes) = new_figure(3)
    unit, methods = run.config["unit"], run.config["methods"]
    for index, (color, method) in enumerate(zip(PALETTE, methods)):
        lanes = [{"method": method, "seed": seed, "phase": "clone"} for seed in run.config["seeds"]]
        lanes = [lane for lane in lanes if run.select(**lane)]
        if not lanes:
            continue

        def seeds(name: str, lanes: list[dict[str, Any]] = lanes) -> list[np.ndarray]:
            # A run is read while it writes: a seed may be a record ahead.
            columns = [run.column(name, **lane) for lane in lanes]
            return [column[: min(map(len, columns))] for column in columns]

        x = seeds(unit)[0]
        # Methods that keep the clones lie on one line: let each show through the gaps of the next.
        together = (0, (4, len(methods) * 2)) if index else "-"
        band(r2_axes, x, seeds("clone/r2_forward/mean"), color, style="-")
        r2_axes.lines[-1].set_linestyle(together if min(map(np.min, seeds("clone/r2_forward/mean"))) > 0.999 else "-")
        r2_axes.plot([], [], color=color, label=METHOD_NAMES.get(method, method))
        for name, style in (("base", "--"), ("clone", "-")):
            if len(x) > 1:  # there is no training loss at cloning itself
                losses = seeds(f"{name}/train_loss")
                band(loss_axes, x[1 : 1 + len(losses[0])], losses, color, style=style)
            band(rank_axes, x, seeds(f"{name}/effective_rank/mean"), color, style=style)
    for style, name in (("-", "clone"), ("--", "base")):
        r2_axes.plot([], [], style, color="0.3", label=name)
    labels = ("R² of clones (mean over layers)", "training loss (nats)", "effective rank (mean over layers)")
    for axes, label in zip((r2_axes, loss_axes, rank_axes), labels):
        axes.set(xlabel=f"{unit} since cloning", ylabel=label)
    figure.legend(loc="outside upper center", ncols=len(methods) + 2, frameon=False)
    return figure
