"""Compare runs on Tiny ImageNet with curves measured by other code: the same archive, order of classes and settings.

    python -m lopjax.data prepare tiny_imagenet --archive tiny-imagenet-200.zip --data-dir DATA
    python -m experiments.continual --preset reference --data-dir DATA                     # no normalisation
    python -m experiments.continual --preset reference --net.norm batch --name reference_batch --data-dir DATA
    python -m experiments.continual.compare runs/continual/reference REFERENCE.json --output docs/continual_reference.md

The reference is `{"runs": [{"norm", "seed", "fresh", "steps", "rows": [a row per task]}]}`. Only the tasks that both
sides have finished are compared, in two halves. Prints (and writes) one Markdown table.
"""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.continual.report import at_ends, over_tasks
from experiments.kit.intervals import Interval, interval
from lopjax.data.tasks import class_order

if TYPE_CHECKING:
    from lopjax.runs import RunData

QUANTITIES = {
    "online accuracy": ("online_accuracy", "online_acc"),
    "training loss after the task": ("train_loss", "train_loss"),
    "validation accuracy after the task": ("test_accuracy", "val_acc"),
    "dead units, on the task": ("stream/dead_fraction/mean", "dead_fraction"),
    "duplicate units, on the task": ("stream/duplicate_fraction/mean", "dup_fraction"),
    "effective rank, on the task": ("stream/effective_rank/mean", "eff_rank"),
    "dead units, fixed probe": ("probe/dead_fraction/mean", "probe_dead_fraction"),
    "effective rank, fixed probe": ("probe/effective_rank/mean", "probe_eff_rank"),
}
"""What is compared: its name in our records and in a row of the reference."""


class Row(NamedTuple):
    """One quantity of one network over one half of the tasks.

    Attributes:
        network: "continual" or "fresh".
        quantity: key of `QUANTITIES`.
        tasks: the tasks, in words.
        ours: for every seed of ours, the mean over these tasks.
        theirs: the same for the seeds of the reference.
        difference: task by task, ours minus theirs (means over seeds), with its interval over the tasks.
    """

    network: str
    quantity: str
    tasks: str
    ours: list[float]
    theirs: list[float]
    difference: Interval


def rows_of(run: "RunData", reference: dict[str, Any]) -> list[Row]:
    """All quantities that both sides have.

    Raises:
        ValueError: no run of the reference has the run's norm and steps per task, or no task is done by both.
    """
    norm, steps, seed = run.config["net"]["norm"], run.config["steps"], run.config["class_order"]
    alike = [
        entry
        for entry in reference["runs"]
        if entry["norm"] == norm and entry["steps"] == steps and _has_order(entry["order"], seed)
    ]
    if not alike:
        raise ValueError(f"reference: has no runs with norm={norm!r}, {steps} steps per task and class_order={seed}")
    rows = []
    for network, method in (("continual", "adam"), ("fresh", "fresh_adam")):
        entries = [entry for entry in alike if entry["fresh"] == (network == "fresh")]
        for quantity, (ours, theirs) in QUANTITIES.items():
            curves = [curve for entry in entries if len(curve := _column(entry["rows"], theirs))]
            our_curves = _curves(run, ours, method)
            num = min((len(curve) for curve in (*curves, *our_curves)), default=0)
            if not curves or not our_curves or num < 2:
                continue
            rows += _rows(network, quantity, [curve[:num] for curve in our_curves], [curve[:num] for curve in curves])
    if not rows:
        raise ValueError(f"{run.folder}: no task is done by all networks yet")
    return rows


def _has_order(order: list[int], seed: int) -> bool:
    """Whether the classes come in the order of this seed: only then are the tasks the same."""
    return seed >= 0 and order == class_order(len(order), seed).tolist()


def _rows(network: str, quantity: str, ours: list[np.ndarray], theirs: list[np.ndarray]) -> list[Row]:
    num, rows = len(ours[0]), []
    # Fresh networks may have been trained at some tasks only.
    is_done = np.isfinite(np.array(ours)).any(axis=0) if network == "fresh" else np.ones(num, bool)
    for first, last in ((0, num // 2), (num // 2, num)):
        tasks = first + np.flatnonzero(np.asarray(is_done)[first:last])
        if not len(tasks):
            continue
        our_curves, their_curves = ([curve[tasks] for curve in curves] for curves in (ours, theirs))
        difference = interval(np.mean(our_curves, axis=0) - np.mean(their_curves, axis=0))
        ours_mean, theirs_mean = ([float(curve.mean()) for curve in curves] for curves in (our_curves, their_curves))
        rows.append(Row(network, quantity, f"{first + 1}–{last}", ours_mean, theirs_mean, difference))
    return rows


def _curves(run: "RunData", name: str, method: str) -> list[np.ndarray]:
    curve = over_tasks if name == "online_accuracy" else at_ends
    return [values for seed in run.config["seeds"] if len(values := curve(run, name, method, seed))]


def _column(rows: list[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows]) if rows and name in rows[0] else np.array([])


def table_of(rows: list[Row]) -> str:
    """A Markdown table; differences whose interval excludes zero are bold."""
    lines = [
        "| network | quantity | tasks | lopjax | reference | difference (95 % over tasks) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        text = f"{row.difference.mean:+.3f}"
        text += f" ± {row.difference.half:.3f}" if math.isfinite(row.difference.half) else ""
        is_off = math.isfinite(row.difference.half) and abs(row.difference.mean) > row.difference.half
        lines.append(
            f"| {row.network} | {row.quantity} | {row.tasks} | {_spread(row.ours)} | {_spread(row.theirs)} "
            f"| {f'**{text}**' if is_off else text} |"
        )
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    """The mean over seeds, with the smallest and the largest."""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f}–{max(values):.3f})"


def main() -> None:
    """Read both, print the table, and write it if requested."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.continual.compare", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("run", help="run folder of experiments.continual, or several with commas between, a seed each")
    parser.add_argument("reference", type=Path, help="JSON file of reference curves")
    parser.add_argument("--output", type=Path, help="Markdown file to write the table to")
    arguments = parser.parse_args()
    from experiments.continual.joined import load_joined

    try:
        reference = json.loads(arguments.reference.read_text(encoding="utf-8"))
        if not isinstance(reference, dict) or "runs" not in reference:
            raise ValueError(f'{arguments.reference}: must be {{"runs": [...]}}, curves of other code')
        table = table_of(rows_of(load_joined(arguments.run), reference))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(table)
    if arguments.output is not None:
        arguments.output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
