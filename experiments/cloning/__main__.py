"""E1, cloning (arXiv 2510.00304, figure 2.1 and C.5-C.11): can training leave the manifold of cloned units?

A base network is trained, cloned, and base and clone go on side by side on the same batches. SGD and Adam cannot tell
clones apart and stay; noise and dropout can. What to expect, on two CPU cores:

    python -m experiments.cloning                     # digits, under a minute: R² 1 for SGD and Adam, 0.75-0.85 else
    python -m experiments.cloning --model vit         # or cnn, resnet18: a small one on digits, one to two minutes
    python -m experiments.cloning --preset paper      # CIFAR-10, 20 + 500 epochs, 5 seeds: a day on two CPU cores
    python -m experiments.cloning --preset reference  # CIFAR-10, 5 + 10 epochs, 3 seeds: ten minutes, docs/cloning.md

A complete run is shown, not repeated. An interrupted one, also by a crash, goes on with --resume and ends with the same
bits as if nothing had happened; `lopjax.runs.load` reads what it has recorded so far.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.cli import (
    PHRASES,
    SpreadOutput,
    devices_of,
    is_main_process,
    kept_records,
    open_folder,
    parse,
    read_first,
    say_refused,
    user_errors,
)
from experiments.cloning.config import PRESETS, Setup, build

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from lopjax.runs import Run


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run (or show a complete run), and report."""
    model = read_first("cloning", "model", PRESETS, argv)
    suffix = "" if model == "mlp" else f"_{model}"
    config, output = parse("cloning", str(__doc__), PRESETS[model], argv, SpreadOutput, suffix)
    with user_errors("cloning", config, PHRASES):
        mesh = devices_of(output)
        from lopjax.lanes import check_lanes

        setup = build(config, output.data_dir)
        check_lanes(len(config.seeds), mesh)
        folder = open_folder("cloning", config, output)
    if folder.is_complete:
        print(f"{folder.folder}: this config has been run; --overwrite runs it again", file=sys.stderr)
    else:
        train(setup, folder, output.keep_checkpoints, mesh)
    if not is_main_process(output):
        return
    from experiments.presentation import present
    from lopjax import runs

    data = runs.load(folder.folder)
    with user_errors("cloning", config, PHRASES):
        present(data)
    frozen = [row["frozen_at"] for row in data.summary]
    if None not in frozen:
        print(f"stopped: the loss of every seed is not finite, of the last from step {max(frozen)} on", file=sys.stderr)
        raise SystemExit(1)


def train(setup: Setup, folder: "Run", keep_checkpoints: int, mesh: "Mesh | None") -> None:
    """Run to the end and conclude; if that is not to be, say what is kept and how to go on."""
    from experiments.cloning.program import run, total_steps
    from experiments.cloning.report import summarise
    from experiments.terminal import progress_bar
    from lopjax import runs

    with kept_records("cloning", folder):
        with progress_bar(total_steps(setup), is_shown=folder.is_writer) as progress:
            say_refused(run(setup, folder, progress, keep_checkpoints, mesh))
        if folder.is_writer:
            folder.finish(summarise(runs.load(folder.folder)))


if __name__ == "__main__":
    main()
