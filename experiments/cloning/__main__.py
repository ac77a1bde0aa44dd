"""E1, cloning (arXiv 2510.00304, figure 2.1 and C.5-C.11): can training leave the manifold of cloned units?

A base network is trained, cloned, and base and clone go on side by side on the same batches. SGD and Adam cannot tell
clones apart and stay; noise and dropout can. What to expect, on two CPU cores:

    python -m experiments.cloning                     # digits, under a minute: R² 1 for SGD and Adam, 0.75-0.85 else
    python -m experiments.cloning --preset paper      # CIFAR-10, 20 + 500 epochs, 5 seeds: a day on two CPU cores
    python -m experiments.cloning --preset reference  # CIFAR-10, 5 + 10 epochs, 3 seeds: ten minutes, docs/cloning.md

A complete run is shown, not repeated. An interrupted one keeps what it has recorded; `lopjax.runs.load` reads it.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.cli import parse, user_errors
from experiments.cloning.config import PRESETS, Setup, build

if TYPE_CHECKING:
    from lopjax.runs import Run

# Where the library has another name for what the user has typed.
PHRASES = {"name=": "--dataset=", "another folder": "another --name or --root", "overwrite=True": "--overwrite"}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, run (or show a complete run), and report."""
    config, output = parse("cloning", str(__doc__), PRESETS, argv)
    with user_errors("cloning", config, PHRASES):
        from lopjax import runs

        setup = build(config, output.data_dir)
        folder = runs.open_run(output.root / "cloning" / output.name, config, output.overwrite)
    if folder.is_complete:
        print(f"{folder.folder}: this config has been run; --overwrite runs it again", file=sys.stderr)
    else:
        train(setup, folder)
    with user_errors("cloning", config, PHRASES):
        report(folder)


def train(setup: Setup, folder: "Run") -> None:
    """Run to the end and conclude; after Ctrl-C say what is kept."""
    from experiments.cloning.program import run, total_steps
    from experiments.cloning.report import summarise
    from experiments.terminal import progress_bar
    from lopjax import runs

    try:
        with progress_bar(total_steps(setup)) as progress:
            run(setup, folder, progress)
        folder.finish(summarise(runs.load(folder.folder)))
    except KeyboardInterrupt:
        records = len(runs.load(folder.folder).records)
        print(
            f"interrupted: {records} records are kept, lopjax.runs.load({str(folder.folder)!r}) reads them; "
            "--overwrite starts again and moves them aside",
            file=sys.stderr,
        )
        raise SystemExit(130) from None


def report(folder: "Run") -> None:
    """Draw the figure of a complete run, print its table and where the files are."""
    from experiments.cloning.report import table
    from experiments.terminal import print_results
    from lopjax import runs
    from lopjax.plotting import cloning_figure, save

    data = runs.load(folder.folder)
    figures = save(cloning_figure(data), folder.folder / "cloning")
    print_results(table(data), (folder.folder / "metrics.jsonl", folder.folder / "summary.json", *figures))


if __name__ == "__main__":
    main()
