"""The house style of figures: vector PDF beside PNG, a colour-blind-safe palette, bands over seeds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
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


def new_figure(columns: int, width: float = 3.3, height: float = 2.8) -> "tuple[Figure, Sequence[Axes]]":
    """A row of panels in the house style, drawn without a display; sizes in inches a panel."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height), layout="constrained", dpi=DPI)
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
        color: color of line and band.
        label: in the legend.
        style: matplotlib line style.
    """
    values = np.stack(runs)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    axes.plot(x, mean, style, color=color, label=label)
    if len(values) > 1:
        axes.fill_between(x, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0)


@contextmanager
def drawing(width: float, height: float, dpi: int = DPI) -> "Iterator[Figure]":
    """A figure of any layout in the house style, which holds while it is drawn; sizes in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        yield Figure(figsize=(width, height), layout="constrained", dpi=dpi)


def save(figure: "Figure", path: Path) -> tuple[Path, Path]:
    """Write `path.png`, at the figure's own dots an inch, and `path.pdf`; returns both paths."""
    import matplotlib as mpl

    # Not `with_suffix`: a name like `noise_0.01` has none to replace.
    written = path.with_name(f"{path.name}.png"), path.with_name(f"{path.name}.pdf")
    with mpl.rc_context(STYLE):
        for file in written:
            figure.savefig(file, dpi="figure")
    return written
