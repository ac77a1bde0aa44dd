"""Compare a cloning run with curves measured by other code: are they within seed noise of each other?

    python -m experiments.cloning --preset reference --data-dir DATA
    python -m experiments.compare_reference runs/cloning/reference REFERENCE.json --output docs/cloning_reference.md

The reference is a list of runs, `{"kind", "seed", "base", "at_cloning", "clone", "base_continued"}`, the curves with a
row an epoch. Prints (and writes) one Markdown table.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lopjax.runs import RunData


class Quantity(NamedTuple):
    """What is compared: its name, where it is in a record of ours and in a reference run, and at which epoch."""

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


def compare(run: "RunData", reference: list[dict[str, Any]]) -> str:
    """A Markdown table of the last epoch: both means over seeds, their difference, and what seed noise would explain.

    Seed noise is the standard error of the difference of the two means, from the standard deviations (1/(n-1)) of both
    sets of seeds pooled; |t| > 3.2 has probability 5 % by chance with 3 + 2 seeds.
    """
    import numpy as np

    lines = [
        "| method | at the last epoch | lopjax | reference | difference | seed noise | t |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method in run.config["methods"]:
        theirs = [entry for entry in reference if entry["kind"] == method]
        for quantity in QUANTITIES:
            measured = np.array(
                [
                    run.column(quantity.column, method=method, seed=seed, phase=quantity.phase)[-1]
                    for seed in run.config["seeds"]
                ]
            )
            expected = np.array([quantity.reference(entry) for entry in theirs])
            deviations = [*(measured - measured.mean()), *(expected - expected.mean())]
            pooled = np.sum(np.square(deviations)) / (len(deviations) - 2)
            noise = float(np.sqrt(pooled * (1 / len(measured) + 1 / len(expected))))
            difference = measured.mean() - expected.mean()
            t = f"{difference / noise:+.1f}" if noise > 0 else ("0" if difference == 0 else "inf")
            lines.append(
                f"| {method} | {quantity.name} | {measured.mean():.4f} | {expected.mean():.4f} "
                f"| {difference:+.4f} | {noise:.4f} | {t} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read both, print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compare_reference", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("run", type=Path, help="run folder of experiments.cloning")
    parser.add_argument("reference", type=Path, help="JSON file of reference curves")
    parser.add_argument("--output", type=Path, help="Markdown file to write the table to")
    arguments = parser.parse_args()
    from lopjax import runs

    table = compare(runs.load(arguments.run), json.loads(arguments.reference.read_text(encoding="utf-8")))
    print(table)
    if arguments.output is not None:
        arguments.output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
