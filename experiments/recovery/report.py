"""What a recovery run has shown: a row an arm, paired with the untreated network and with both that were drawn anew."""

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.aftermath.parts import NEXT, SAME
from experiments.aftermath.report import cell, difference, mean_over, rows_of
from experiments.kit.terminal import Table
from experiments.recovery.config import ARMS, SCRATCH, SCRATCH_SHORT, UNTREATED
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = {name: arm.label for name, arm in ARMS.items()}
REFERENCES = (UNTREATED, SCRATCH, SCRATCH_SHORT)
COLUMNS = {
    "train_loss": ("training loss", 3),
    "test_loss": ("test loss", 3),
    "test_accuracy": ("test accuracy", 3),
    "effective_rank": ("rank", 1),
    "distinct_units": ("distinct", 1),
    "sharpness": ("sharpness", 1),
    "next_accuracy": ("next task: accuracy on the way", 3),
}
"""What is compared: its name in tables, and digits."""


def summarise(data: RunData) -> list[dict[str, Any]]:
    """One row an arm, as of `experiments.aftermath.report.rows_of`; of a controller also what it did.

    `treatment`: means over seeds of how many actions were kept and undone, the sum of `|change| / |parameters|`, and by
    how much an action raised the batch's loss; null for arms without one.
    """
    return [{**row, "treatment": _treatment(data, row["arm"])} for row in rows_of(data, tuple(ARMS), REFERENCES)]


def _treatment(data: RunData, arm: str) -> dict[str, float] | None:
    counts = {name: mean_over(data, arm, SAME, f"own/{name}") for name in ("kept", "undone", "change", "rise")}
    if not all(np.isfinite(count).all() for count in counts.values()):
        return None
    totals = {name: float(count.mean()) * data.config["task_steps"] for name, count in counts.items()}
    return {**totals, "rise": totals["rise"] / totals["kept"] if totals["kept"] else 0.0}


def table(data: RunData) -> Table:
    """Means of every arm, and what the recovered network lacks."""
    rows = data.summary or summarise(data)
    heads = ("arm", *(head for head, _ in COLUMNS.values()))
    lines = [(LABELS[row["arm"]], *(cell(row[name], digits) for name, (_, digits) in COLUMNS.items())) for row in rows]
    return Table("\n".join(_title(data)), heads, lines)


def texts(data: RunData) -> dict[str, str]:
    """The same in Markdown with the differences from every reference: `table.md`."""
    rows = data.summary or summarise(data)
    heads = ["arm", *(head for head, _ in COLUMNS.values())]
    lines = [*_title(data), "", _line(heads), _line(["---"] * len(heads))]
    for row in rows:
        lines.append(_line([LABELS[row["arm"]], *(cell(row[name], digits) for name, (_, digits) in COLUMNS.items())]))
    for reference in REFERENCES:
        lines += ["", f"less {LABELS[reference]}:", "", _line(heads), _line(["---"] * len(heads))]
        others = [row for row in rows if row["arm"] != reference]
        lines += [
            _line([LABELS[row["arm"]], *(difference(row, reference, name) for name in COLUMNS)]) for row in others
        ]
    for row in rows:
        if row["treatment"]:
            did = ", ".join(f"{name} {value:.3g}" for name, value in row["treatment"].items())
            lines += ["", f"{LABELS[row['arm']]}, per seed: {did}"]
    return {"table.md": "\n".join(lines) + "\n"}


def figures(data: RunData) -> "dict[str, Figure]":
    """As of `experiments.aftermath`; none before the next task has begun."""
    from experiments.aftermath.figures import aftermath_figure

    return {"recovery": aftermath_figure(data, LABELS, tuple(ARMS))} if data.select(phase=NEXT) else {}


def _title(data: RunData) -> list[str]:
    config = data.config
    stream = config["stream"]
    return [
        f"{config['dataset']}, {len(config['seeds'])} seeds: {stream['num_tasks']} tasks of random labels of "
        f"{stream['steps']} steps, {config['task_steps']:,} steps on the task, {config['next_steps']:,} on the next",
        "means over seeds at the end of the task; accuracy on the way: before each update of the next task, its mean",
    ]


def _line(words: Any) -> str:
    return f"| {' | '.join(words)} |"
