"""The table of conditions: counts of verdicts beside the theorem."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from experiments.conditions.config import CONDITIONS
from experiments.kit.terminal import Table
from lopjax.plotting import PALETTE, new_figure
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_REACHED, AT_A_KINK = "NOT_REACHED", "AT_A_KINK"
NO_VERDICT = frozenset([NOT_REACHED, AT_A_KINK])
"""In place of a verdict: the search for a stationary point did not arrive, or arrived where there is no Hessian."""
COLUMNS = ("network, loss, point", "predicted", "verdicts on clones", "as predicted", "theorem")


def summarise(data: RunData) -> list[dict[str, Any]]:
    """One row per condition that has records: `verdicts` counts them, `agrees` says whether all are as predicted.

    `agrees` is None where theory is silent, and where no network has a verdict.
    """
    rows = []
    for condition in CONDITIONS:
        counts = Counter(record["verdict"] for record in data.select(condition=condition.name))
        if counts:
            judged = set(counts) - NO_VERDICT
            agrees = judged == {condition.predicted} if condition.predicted and judged else None
            verdicts = dict(sorted(counts.items(), key=lambda each: -each[1]))
            rows.append({**condition._asdict(), "condition": condition.name, "verdicts": verdicts, "agrees": agrees})
    return rows


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table."""
    total = sum(count for name, count in row["verdicts"].items() if name not in NO_VERDICT)
    counted = ", ".join(f"{count} {name.lower().replace('_', '-')}" for name, count in row["verdicts"].items())
    predicted = row["predicted"].lower().replace("_", "-") or "theory is silent"
    agreed = f"{row['verdicts'].get(row['predicted'], 0)} of {total}" if row["predicted"] else "-"
    return row["condition"], predicted, counted, agreed, row["theorem"]


def table(data: RunData) -> Table:
    """The table on the terminal."""
    title = (
        f"Stability of {data.config['factor']}x clones, over {len(data.config['seeds'])} random networks per condition"
    )
    return Table(title, COLUMNS, [cells(row) for row in data.summary or summarise(data)])


def texts(data: RunData) -> dict[str, str]:
    """The same for the documentation."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(cells(row) for row in data.summary or summarise(data))]
    return {"conditions.md": "".join(f"| {' | '.join(row)} |\n" for row in rows)}


def figures(data: RunData) -> "dict[str, Figure]":
    """Shares of the verdicts, a bar per condition."""
    rows = data.summary or summarise(data)
    if not rows:
        return {}
    figure, (axes,) = new_figure(1, width=8.0, height=0.9 + 0.24 * len(rows))
    names = list(dict.fromkeys(name for row in rows for name in row["verdicts"]))
    starts = [0] * len(rows)
    for color, name in zip(PALETTE, names):
        counts = [row["verdicts"].get(name, 0) for row in rows]
        axes.barh(range(len(rows)), counts, left=starts, color=color, label=name.lower().replace("_", "-"))
        starts = [start + count for start, count in zip(starts, counts)]
    marks = {True: "", False: " ✗", None: " (theory silent)"}
    axes.set_yticks(range(len(rows)), [row["condition"] + marks[row["agrees"]] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("random networks")
    axes.grid(False)
    figure.legend(loc="outside upper center", ncols=min(len(names), 4), frameon=False)
    return {"conditions": figure}
