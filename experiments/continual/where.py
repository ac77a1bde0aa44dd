"""Where and when effective rank falls first: one row per run, each beside its own fresh networks.

    python -m experiments.continual --seeds 0 1 2 3 4 --methods adam --name base
    python -m experiments.continual --seeds 0 1 2 3 4 --methods adam --net.activation relu --name relu
    python -m experiments.continual.where runs/continual/base runs/continual/relu

Only ranks on the fixed probe are used: those on the tasks themselves change with the tasks. A layer's rank, or the
online accuracy, has fallen from the first of two consecutive tasks at which it is below that of the fresh networks by
more than chance: the 95 % interval of the difference over seeds is below zero. Prints a Markdown table.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments.continual.report import late_less_fresh, less_fresh
from experiments.kit.intervals import Interval, interval

if TYPE_CHECKING:
    from lopjax.runs import RunData

RANK = "probe/effective_rank/"


class Fall(NamedTuple):
    """How a value of the first method of a run compares with the fresh networks'.

    Attributes:
        late: the difference over the last half of the tasks, with its interval over seeds.
        first: the task, from 1, from which it has fallen; None if it has not.
    """

    late: Interval
    first: int | None


def fall_of(run: "RunData", name: str) -> Fall:
    """Where a recorded value falls below that of the fresh networks.

    Raises:
        ValueError: the run has no fresh network at every task, or fewer than two seeds.
    """
    method, seeds = run.config["methods"][0], run.config["seeds"]
    if not run.config["fresh"] or run.config.get("fresh_every", 1) != 1:
        raise ValueError(f"{run.folder}: must have a fresh network at every task (--fresh, --fresh-every 1)")
    if len(seeds) < 2:
        raise ValueError(f"{run.folder}: has {len(seeds)} seed; an interval needs at least 2")
    curves = [less_fresh(run, name, method, seed) for seed in seeds]
    num = min(map(len, curves))
    if num == 0:
        raise ValueError(f"{run.folder}: no task is finished")
    is_below = [bool(interval([curve[task] for curve in curves]).high < 0) for task in range(num)]
    first = next((task + 1 for task in range(num - 1) if is_below[task] and is_below[task + 1]), None)
    return Fall(interval([late_less_fresh(run, name, method, seed).mean() for seed in seeds]), first)


def layers_of(run: "RunData") -> list[str]:
    """The sites whose rank is recorded, from the input to the output.

    Raises:
        ValueError: there are none.
    """
    recorded = run.records[0] if run.records else {}
    layers = [name for name in recorded if name.startswith(RANK) and not name.endswith("/mean")]
    if not layers:
        raise ValueError(f"{run.folder}: records no {RANK}<layer>")
    return layers


def row_of(run: "RunData", name: str) -> str:
    """A row of the table."""
    accuracy, layers = fall_of(run, "online_accuracy"), [fall_of(run, layer) for layer in layers_of(run)]
    fallen = [layer.first for layer in layers if layer.first is not None]
    earliest = [index + 1 for index, layer in enumerate(layers) if fallen and layer.first == min(fallen)]
    # A seed that diverged makes its layer's mean NaN, which then is the lowest: no diverged seed is overlooked.
    lowest = int(np.argmin([layer.late.mean for layer in layers]))
    cells = [
        name,
        _text(accuracy.late, 3),
        _task(accuracy.first),
        f"{min(fallen)} (layer {', '.join(map(str, earliest))})" if fallen else "-",
        *(_text(layers[index].late, 1) for index in (0, len(layers) // 2, -1)),
        f"{lowest + 1}: {_text(layers[lowest].late, 1)}",
    ]
    return f"| {' | '.join(cells)} |"


def table_of(found: "Sequence[RunData]", names: Sequence[str]) -> str:
    """The table as Markdown; differences are bold if their interval excludes zero."""
    titles = ("run", "online − fresh", "falls at task", "a rank falls at task", "rank − fresh, first layer")
    titles += ("middle layer", "last layer", "lowest")
    lines = [f"| {' | '.join(titles)} |", f"| {' | '.join(['---'] * len(titles))} |"]
    return "\n".join([*lines, *map(row_of, found, names)]) + "\n"


def _task(first: int | None) -> str:
    return "-" if first is None else str(first)


def _text(found: Interval, digits: int) -> str:
    if not np.isfinite(found.mean):
        return "not finite"
    text = f"{found.mean:+.{digits}f} ± {found.half:.{digits}f}".replace("-", "−")
    return f"**{text}**" if found.low > 0 or found.high < 0 else text


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs and print the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.continual.where", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("runs", nargs="+", type=Path, help="run folders of experiments.continual, with fresh networks")
    parser.add_argument("--output", type=Path, help="Markdown file to write the table to as well")
    flags = parser.parse_args(arguments)
    from lopjax.runs import load

    try:
        table = table_of([load(folder) for folder in flags.runs], [folder.name for folder in flags.runs])
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    print(table, end="")
    if flags.output:
        flags.output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
