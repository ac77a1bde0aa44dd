"""Draw several runs side by side, such as one per normalisation: curves over tasks, and bars of their last half.

    python -m experiments.continual.norms runs/continual/none runs/continual/batch runs/continual/layer --output norms

The arrangement of arXiv 2510.00304, figure 3.3. Runs are named by their folders; the method is the first of each.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.continual.figures import SYMPTOMS, draw_done
from experiments.continual.methods import fresh, method_of
from experiments.continual.report import at_ends, late_tasks, less_fresh, over_tasks
from experiments.kit.intervals import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lopjax.runs import RunData


def curves_of(run: "RunData", name: str) -> list[np.ndarray]:
    """One curve per seed of the first method of a run, cut to the same number of tasks; none before a task is done."""
    method, curves = run.config["methods"][0], []
    for seed in run.config["seeds"]:
        if name == "less_fresh":
            curves.append(less_fresh(run, "online_accuracy", method, seed))
        else:
            curves.append((over_tasks if name == "online_accuracy" else at_ends)(run, name, method, seed))
    num = min(map(len, curves))
    return [curve[:num] for curve in curves] if num else []


def late_mean(run: "RunData", name: str, curve: np.ndarray, seed: int) -> float:
    """Mean of a curve of `curves_of` over the last half of the tasks, of those that it has."""
    method = run.config["methods"][0]
    lane = fresh(method_of(method).control) if name == "less_fresh" else method
    return float(curve[late_tasks(run, lane, seed, len(curve))].mean())


def norms_figure(found: "Sequence[RunData]") -> "Figure":
    """Curves above, and below them bars of the mean over the last half of the tasks with 95 % intervals over seeds.

    Online accuracy minus that of the fresh networks if all runs have them; else accuracy and training loss themselves.
    """
    from lopjax.plotting import PALETTE, drawing

    if all(run.config["fresh"] for run in found):
        names = {"less_fresh": "online accuracy\nminus fresh network"}
    else:
        names = {"online_accuracy": "online accuracy", "train_loss": "training loss\nafter the task"}
    names |= {f"probe/{symptom}/mean": label for symptom, label in SYMPTOMS.items()}
    with drawing(2.9 * len(names), 5.2) as figure:
        panels = figure.subplots(2, len(names), height_ratios=(3, 2))
        for (upper, lower), (name, label) in zip(panels.T, names.items()):
            for index, run in enumerate(found):
                if not (curves := curves_of(run, name)):
                    continue
                color = PALETTE[index % len(PALETTE)]
                draw_done(upper, curves, color, run.folder.name)
                bar = interval([late_mean(run, name, curve, seed) for curve, seed in zip(curves, run.config["seeds"])])
                error = bar.half if np.isfinite(bar.half) else None
                lower.bar(index, bar.mean, yerr=error, color=color, width=0.7, capsize=3)
            upper.set(xlabel="task", ylabel=f"{label}, fixed probe" if name.startswith("probe/") else label)
            lower.set_xticks(range(len(found)), [run.folder.name for run in found], rotation=20)
            lower.set_ylabel("last half of the tasks")
        handles = panels[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=len(found), frameon=False)
    return figure


def main() -> None:
    """Read the runs and write the figure."""
    parser = argparse.ArgumentParser(prog="python -m experiments.continual.norms", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders of experiments.continual")
    parser.add_argument("--output", type=Path, default=Path("norms"), help="file to write, without ending")
    arguments = parser.parse_args()
    from lopjax.plotting import save
    from lopjax.runs import load

    try:
        figure = norms_figure([load(folder) for folder in arguments.runs])
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    for path in save(figure, arguments.output):
        print(path)


if __name__ == "__main__":
    main()
