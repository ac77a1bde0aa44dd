"""What a stability run has shown: a table of measurements, and the escape rates of the units in a figure."""

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.kit.terminal import Table
from lopjax.plotting import PALETTE, new_figure
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def measured(data: RunData) -> list[dict[str, Any]]:
    """The records that hold a stability report, with the epoch counted through both tasks."""
    epochs_before = data.config["epochs"][-1]
    rows = [record for record in data.records if "report" in record]
    return [{**row, "total_epoch": row["epoch"] + epochs_before * row["task"]} for row in rows]


def summarise(data: RunData) -> list[dict[str, Any]]:
    """The reports of all measurements."""
    return [row["report"] for row in measured(data)]


def table(data: RunData) -> Table:
    """One row per measurement; the first is taken before anything is trained."""
    rows = [
        (
            f"{row['task'] + 1}",
            f"{row['epoch']}",
            f"{row['loss']:.3f}",
            row["report"]["verdict"],
            *(
                f"{row['report'][name]:,}" if row["report"][name] >= 0 else "?"
                for name in ("n_plus", "n_minus", "n_zero")
            ),
            f"{row['report']['min_eigenvalue']:.2e}",
            f"{row['report']['max_eigenvalue']:.2e}",
            f"{sum(row['dead'].values())}",
        )
        for row in measured(data)
    ]
    columns = ("task", "epoch", "loss", "class", "n+", "n-", "n0", "lambda min", "lambda max", "dead")
    method = measured(data)[0]["report"]["method"]
    title = f"Stability of {data.config['factor']}x clones ({method}); task 2 has labels redrawn at random"
    return Table(title, columns, rows)


def figures(data: RunData) -> "dict[str, Figure]":
    """All figures of a run, by file name."""
    return {"stability": figure(data)}


def figure(data: RunData) -> "Figure":
    """Distribution over units of -lambda_min(M_j), layer by layer, as the task is fitted and after the label change."""
    rows = measured(data)
    fig, (loss_axes, axes) = new_figure(2, width=4.2, height=3.2)
    spaces = list(rows[0]["min_eigenvalue"])
    change = data.config["epochs"][-1]
    # The two measurements at the change share an epoch: draw the second task a little to the right.
    x = np.array([row["total_epoch"] + 0.02 * change * row["task"] for row in rows])
    loss_axes.plot(x, [row["loss"] for row in rows], "o-", color="0.2", markersize=3)
    for color, space in zip(PALETTE, spaces):
        escape = [-np.array(row["min_eigenvalue"][space]) for row in rows]
        low, middle, high = np.array([np.quantile(values, (0.1, 0.5, 0.9)) for values in escape]).T
        axes.plot(x, middle, "o-", color=color, markersize=3, label=space.replace("_", " "))
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    for panel in (loss_axes, axes):
        panel.axvline(change * 1.01, color="0.5", linestyle=":", label="labels redrawn" if panel is axes else None)
        panel.set_xlabel("epochs")
    loss_axes.set_yscale("log")
    loss_axes.set_ylabel("loss on the measured images (nats)")
    axes.set(yscale="log", ylabel="escape rate of a unit's clones, $-\\lambda_{min}(M_j)$")
    fig.legend(loc="outside right center", frameon=False, title="median and 10-90 %\nof units")
    return fig
