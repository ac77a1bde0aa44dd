"""E1, cloning (arXiv 2510.00304, figure 2.1 and C.5-C.11): can training leave the manifold of cloned units?

A base network is trained, cloned, and base and clone go on side by side on the same batches. SGD and Adam cannot tell
clones apart and stay; noise and dropout can. What to expect, on two CPU cores:

    python -m experiments.cloning                     # digits, under a minute: R² 1 for SGD and Adam, 0.75-0.85 else
    python -m experiments.cloning --preset paper      # CIFAR-10, 20 + 500 epochs, 5 seeds: a day on two CPU cores
    python -m experiments.cloning --preset reference  # CIFAR-10, 5 + 10 epochs, 3 seeds: ten minutes, docs/cloning.md
"""

from experiments.cli import parse, user_errors
from experiments.cloning.config import PRESETS, build


def main() -> None:
    """Parse, run (or show a complete run), and report."""
    config, output = parse("cloning", str(__doc__), PRESETS)
    from experiments.cloning.program import run, total_steps
    from experiments.cloning.report import summarise, table
    from experiments.terminal import print_results, progress_bar

    with user_errors("cloning"):
        from lopjax import runs

        setup = build(config, output.data_dir)
        folder = runs.open_run(output.root / "cloning" / output.name, config, output.overwrite)
    if not folder.is_complete:
        with progress_bar(total_steps(setup)) as progress:
            run(setup, folder, progress)
        folder.finish(summarise(runs.load(folder.folder)))
    from lopjax.plotting import cloning_figure, save

    data = runs.load(folder.folder)
    figures = save(cloning_figure(data), folder.folder / "cloning")
    print_results(table(data), (folder.folder / "metrics.jsonl", folder.folder / "summary.json", *figures))


if __name__ == "__main__":
    main()
