"""Compare a cloning run with curves measured by other code: do they agree within seed noise?

    python -m experiments.cloning --preset reference --data-dir DATA
    python -m experiments.compare_reference runs/cloning/reference REFERENCE.json --output docs/cloning_reference.md

The reference is a list of runs, `{"kind", "seed", "base", "at_cloning", "clone", "base_continued"}`, the curves with a
row per epoch. Prints (and writes) one Markdown table.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lopjax.runs import RunData


class Quantity(NamedTuple):
    """A quantity to compare: its name, its place in our records and in a reference run, and the epoch."""

    name: str
    column: str
    phase: str
    reference: Callable[[dict[str, Any]], float]


QUANTITIES = (
    Quantity(
        "training loss of the base at cloning", "base/train_loss", "base", lambda run: run["base"][-1]["train_loss"]
    ),
    Quantity(
        "training loss of the base", "base/train_loss", "clone", lambda run: run["base_continued"][-1]["train_loss"]
    ),
    Quantity("training loss of the clone", "clone/train_loss", "clone", lambda run: run["clone"][-1]["train_loss"]),
    Quantity("test loss of the clone", "clone/test_loss", "clone", lambda run: run["clone"][-1]["test_loss"]),
    Quantity("test accuracy of the clone", "clone/test_accuracy", "clone", lambda run: run["clone"][-1]["test_acc"]),
    Quantity("R² of the clone", "clone/r2_forward/mean", "clone", lambda run: run["clone"][-1]["r2"]),
    Quantity(
        "effective rank of the base", "base/effective_rank/mean", "clone", lambda run: run["base_continued"][-1]["rank"]
    ),
    Quantity("effective rank of the clone", "clone/effective_rank/mean", "clone", lambda run: run["clone"][-1]["rank"]),
)


class Row(NamedTuple):
    """One quantity of one method: both means over seeds, and the size of seed noise.

    Attributes:
        method: the method.
        quantity: the quantity.
        measured: mean of our seeds.
        expected: mean of the reference's.
        noise: standard error of the difference of the two means, from the standard deviations (1/(n-1)) of both sets of
            seeds pooled.
        freedom: degrees of freedom of that estimate, the number of seeds minus two; 3 for 3 + 2 seeds.
    """

    method: str
    quantity: str
    measured: float
    expected: float
    noise: float
    freedom: int

    @property
    def t(self) -> float:
        """Difference over noise; 0 for equal means without noise."""
        difference = self.measured - self.expected
        if self.noise > 0:
            return difference / self.noise
        return 0.0 if difference == 0 else float("inf") * difference

    @property
    def p(self) -> float:
        """Probability that chance alone makes |t| this large, by a two-sided t test; 1 for rows without noise."""
        from scipy.special import stdtr

        return float(2 * stdtr(self.freedom, -abs(self.t)))


def rows_of(run: "RunData", reference: list[dict[str, Any]]) -> list[Row]:
    """All quantities of all methods of the run."""
    import numpy as np

    rows = []
    for method in run.config["methods"]:
        of_method = [entry for entry in reference if entry["kind"] == method]
        for quantity in QUANTITIES:
            seeds = run.config["seeds"]
            where = {"method": method, "phase": quantity.phase}
            measured = np.array([run.column(quantity.column, seed=seed, **where)[-1] for seed in seeds])
            expected = np.array([quantity.reference(entry) for entry in of_method])
            deviations = [*(measured - measured.mean()), *(expected - expected.mean())]
            freedom = len(deviations) - 2
            pooled = np.sum(np.square(deviations)) / freedom
            noise = float(np.sqrt(pooled * (1 / len(measured) + 1 / len(expected))))
            rows.append(Row(method, quantity.name, float(measured.mean()), float(expected.mean()), noise, freedom))
    return rows


def table_of(rows: list[Row]) -> str:
    """A Markdown table, and a conclusion from all its rows."""
    lines = [
        "| method | at the last epoch | lopjax | reference | difference | seed noise | t |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        t = f"{row.t:+.1f}" if row.t else "0"
        lines.append(
            f"| {row.method} | {row.quantity} | {row.measured:.4f} | {row.expected:.4f} "
            f"| {row.measured - row.expected:+.4f} | {row.noise:.4f} | {t} |"
        )
    return "\n".join([*lines, "", conclusion(rows)]) + "\n"


def conclusion(rows: list[Row]) -> str:
    """How surprising the most extreme row is among this many, by Bonferroni, which is valid for dependent rows."""
    noisy = [row for row in rows if row.noise > 0]
    if not noisy:
        return "No row has seed noise."
    extreme = min(noisy, key=lambda row: row.p)
    corrected_p = min(1.0, len(noisy) * extreme.p)
    return (
        f"The largest |t|: {extreme.method}, {extreme.quantity}: {extreme.t:+.1f}. Chance alone exceeds it with "
        f"probability {extreme.p:.2g} in one row ({extreme.freedom} degrees of freedom), and with at most "
        f"{corrected_p:.2g} in the largest of {len(noisy)}. Rows share networks and batches: they are not independent."
    )


def main() -> None:
    """Read both, print the table, and write it if requested."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare_reference", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("run", type=Path, help="run folder of experiments.cloning")
    parser.add_argument("reference", type=Path, help="JSON file of reference curves")
    parser.add_argument("--output", type=Path, help="Markdown file to write the table to")
    arguments = parser.parse_args()
    from lopjax import runs

    reference = json.loads(arguments.reference.read_text(encoding="utf-8"))
    table = table_of(rows_of(runs.load(arguments.run), reference))
    print(table)
    if arguments.output is not None:
        made_by = "Made by `python -m experiments.compare_reference`; [Cloning](cloning.md) says how.\n\n"
        text = f"# Cloning on CIFAR-10, compared with other code\n\n{made_by}{table}"
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
