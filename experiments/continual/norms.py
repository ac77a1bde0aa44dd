"""Draw several runs side by side, such as one per normalisation: curves over tasks, and bars of their last half.

    python -m experiments.continual.norms runs/continual/none runs/continual/batch runs/continual/layer --output norms

The arrangement of arXiv 2510.00304, figure 3.3. Runs are named by their folders unless there are --names; the method
is the first of each. Runs of a seed each are joined if written with commas between: runs/none0,runs/none1. Prints a
Markdown table, too: means over the last half of the tasks, and their differences from the first run, seed by seed. Only
tasks that all runs have finished are used.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.continual.figures import SYMPTOMS, draw_done, layers_figure
from experiments.continual.methods import fresh, method_of
from experiments.continual.report import at_ends, late_less_fresh, late_tasks, less_fresh, over_tasks
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


def norms_figure(found: "Sequence[RunData]", names_of_runs: Sequence[str] = ()) -> "Figure":
    """Curves above, and below them bars of the mean over the last half of the tasks with 95 % intervals over seeds.

    Online accuracy minus that of the fresh networks if all runs have them; else accuracy and training loss themselves.
    """
    from lopjax.plotting import PALETTE, drawing

    names_of_runs = names_of_runs or [run.folder.name for run in found]
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
                draw_done(upper, curves, color, names_of_runs[index])
                bar = interval([late_mean(run, name, curve, seed) for curve, seed in zip(curves, run.config["seeds"])])
                error = bar.half if np.isfinite(bar.half) else None
                lower.bar(index, bar.mean, yerr=error, color=color, width=0.7, capsize=3)
            upper.set(xlabel="task", ylabel=f"{label}, fixed probe" if name.startswith("probe/") else label)
            lower.set_xticks(range(len(found)), names_of_runs, rotation=20)
            lower.set_ylabel("last half of the tasks")
        handles = panels[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=len(found), frameon=False)
    return figure


_SAME = ("tasks", "dataset", "classes_per_task", "class_order", "num_images", "steps", "change", "batch_size")
"""What a run and another must have in common for a task to be the same in both."""


def cut_alike(found: "Sequence[RunData]") -> "list[RunData]":
    """The runs up to the last task that all their lanes have finished, so that the last half is the same in all.

    Raises:
        ValueError: their tasks are not the same, or one of them has no task that is finished; names the run.
    """
    first = found[0]
    for run in found[1:]:
        for name in _SAME:
            if run.config.get(name) != first.config.get(name):
                raise ValueError(
                    f"{run.folder}: {name}={run.config.get(name)}, and {first.folder} has {first.config.get(name)}; "
                    "runs side by side must have the same tasks"
                )
    nums = {
        (run.folder, seed): len(at_ends(run, "task", run.config["methods"][0], seed))
        for run in found
        for seed in run.config["seeds"]
    }
    (folder, seed), num = min(nums.items(), key=lambda pair: pair[1])
    if num == 0:
        raise ValueError(f"{folder}: no task of seed {seed} is finished; finish the run with --resume")
    return [run._replace(records=[record for record in run.records if record["task"] < num]) for run in found]


TABLE = {
    "online accuracy": "online_accuracy",
    "online − fresh": "less_fresh",
    "training loss": "train_loss",
    "test accuracy": "test_accuracy",
    "test − fresh": "test_less_fresh",
    "dead, on the task": "stream/dead_fraction/mean",
    "rank, on the task": "stream/effective_rank/mean",
    "rank, fixed probe": "probe/effective_rank/mean",
    "weights": "weight_norm",
}
"""Rows of the table and what they are in a record. Below them come the accuracies on earlier tasks."""


def late_of_seeds(run: "RunData", name: str) -> np.ndarray:
    """A number per seed: the mean of a value over the last half of the tasks; NaN where the run does not have it.

    `earlier/k` is the accuracy on the task k back less what it was when that task ended, over all tasks that have one.
    """
    method, values = run.config["methods"][0], []
    for seed in run.config["seeds"]:
        if name.endswith("less_fresh"):
            value = "test_accuracy" if name.startswith("test") else "online_accuracy"
            curve = late_less_fresh(run, value, method, seed)
        elif name.startswith("earlier/"):
            lag, own = int(name.removeprefix("earlier/")), at_ends(run, "test_accuracy", method, seed)
            curve = at_ends(run, name, method, seed)[lag:] - own[: max(len(own) - lag, 0)]
        else:
            whole = (over_tasks if name == "online_accuracy" else at_ends)(run, name, method, seed)
            curve = whole[len(whole) // 2 :]
        values.append(curve.mean() if len(curve) else np.nan)
    return np.array(values)


def table_of(found: "Sequence[RunData]", names: Sequence[str]) -> str:
    """The table as Markdown; 95 % intervals over seeds, differences paired by seed and bold if they exclude zero."""
    lags = {f"{lag} back": f"earlier/{lag}" for lag in found[0].config["earlier"]}
    differences = [f"{name} − {names[0]}" for name in names[1:]]
    lines = [f"| {' | '.join(('last half of the tasks', *names, *differences))} |"]
    lines.append(f"| {' | '.join(['---'] * (1 + len(names) + len(differences)))} |")
    seeds = [run.config["seeds"] for run in found]
    for label, name in {**TABLE, **lags}.items():
        values = [late_of_seeds(run, name) for run in found]
        cells = [_spread(of_run) for of_run in values]
        for of_run, own in zip(values[1:], seeds[1:], strict=True):
            pairs = [(of_run[own.index(seed)], values[0][seeds[0].index(seed)]) for seed in seeds[0] if seed in own]
            cells.append(_spread(np.array([a - b for a, b in pairs]), is_difference=True))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: np.ndarray, is_difference: bool = False) -> str:
    """Mean and interval, more digits for small numbers; bold for a difference that excludes zero."""
    if not len(values) or not np.isfinite(values).all():
        return "-"
    found = interval(values)
    digits = 1 if abs(found.mean) >= 10 else 3
    text = f"{found.mean:{'+' if is_difference else ''}.{digits}f}"
    text += f" ± {found.half:.{digits}f}" if np.isfinite(found.half) else ""
    return f"**{text}**" if is_difference and (found.low > 0 or found.high < 0) else text


def main() -> None:
    """Read the runs and write the figure."""
    parser = argparse.ArgumentParser(prog="python -m experiments.continual.norms", description=__doc__)
    parser.add_argument("runs", nargs="+", help="run folders of experiments.continual, commas between seeds of one run")
    parser.add_argument("--names", nargs="+", default=(), help="what the runs are called, one name each")
    parser.add_argument("--output", type=Path, default=Path("norms"), help="file to write, without ending")
    parser.add_argument("--layers", type=Path, help="also draw the first run layer by layer into this file")
    arguments = parser.parse_args()
    from experiments.continual.joined import load_joined
    from lopjax.plotting import save

    if arguments.names and len(arguments.names) != len(arguments.runs):
        parser.exit(
            2, f"error: --names: {len(arguments.names)} names for {len(arguments.runs)} runs; must be as many\n"
        )
    try:
        found = cut_alike([load_joined(folders) for folders in arguments.runs])
        names = arguments.names or [run.folder.name for run in found]
        figures = {arguments.output: norms_figure(found, names)}
        if arguments.layers is not None:
            figures[arguments.layers] = layers_figure(found[0], found[0].config["methods"][0])
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(table_of(found, names))
    for file, figure in figures.items():
        print(*save(figure, file), sep="\n")


if __name__ == "__main__":
    main()
