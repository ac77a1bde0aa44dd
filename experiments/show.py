"""Show runs: the table and figures of a finished, interrupted or running one, or the list of runs in a folder.

    python -m experiments.show runs/cloning/quick             # prints its table, redraws its figures
    python -m experiments.show runs/cloning/quick --every 30  # again every 30 seconds, until it is complete
    python -m experiments.show runs/cloning/widths            # the grid of experiments.sweep, all points in one table
    python -m experiments.show runs                           # which runs there are, and how far they have come

Only figures and tables are written, so the run may be in progress.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.kit.experiment import find, present
from experiments.kit.session import refuse, say
from experiments.kit.terminal import Table, print_results

if TYPE_CHECKING:
    from lopjax.runs import RunData


@dataclass(frozen=True)
class Arguments:
    """What to show."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or folders of runs."""
    every: float | None = None
    """Show again after this many seconds, until every run is complete."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, and show once or until all is complete."""
    arguments = tyro.cli(Arguments, prog="python -m experiments.show", description=__doc__, args=argv)
    if not arguments.folders:
        refuse("show", "no folder given; runs are under runs/<experiment>/<name>")
    if arguments.every is not None and not 0 < arguments.every < float("inf"):
        refuse("show", f"--every={arguments.every:g}: must be a positive number of seconds")
    try:
        # A list, not a generator: every folder is shown, complete or not.
        while not all([show(folder) for folder in arguments.folders]) and arguments.every is not None:
            time.sleep(arguments.every)
    except (OSError, ValueError) as error:
        refuse("show", error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def show(folder: Path) -> bool:
    """Show a run, a grid of runs, or list the runs below a folder; returns whether all of them are complete.

    Raises:
        FileNotFoundError: there is no run in the folder or below it.
        ValueError: the run does not belong to a known experiment.
    """
    from lopjax import runs

    if (folder / "config.json").exists():
        run = runs.load(folder)
        experiment = find(run.experiment)
        print(f"{folder}: {progress(run)}")
        if run.records:
            present(experiment, run)
        return run.is_complete
    below, damaged = runs.load_all(folder)
    for where, reason in damaged.items():
        say(f"{where}: {reason}")
    is_sweep = (folder / "sweep.json").exists()
    if not below and not damaged and not is_sweep:
        runs.load(folder)  # raises, and says what a run folder is
    if is_sweep:
        from experiments.sweep import grid_table

        print_results(grid_table(folder, below), ())
    else:
        list_runs(folder, below)
    return bool(below) and all(run.is_complete for run in below)


def _records(number: int) -> str:
    return f"{number:,} record" if number == 1 else f"{number:,} records"


def progress(run: "RunData") -> str:
    """The progress of a run in words."""
    from lopjax.runs.schedule import expected_records

    if run.is_complete:
        return f"complete, {_records(len(run.records))}"
    total = expected_records(run.folder)
    if total is None:
        return "not complete, not started"
    if not run.records:
        return f"not complete, none of {_records(total)} yet"
    age = time.time() - (run.folder / "metrics.jsonl").stat().st_mtime
    return f"not complete, {len(run.records):,} of {_records(total)}, the last one {age:,.0f} s ago"


def list_runs(folder: Path, found: "Sequence[RunData]") -> None:
    """One line per run below a folder."""
    rows = [(str(run.folder.relative_to(folder)), run.experiment, progress(run)) for run in found]
    print_results(Table(f"Runs in {folder}", ("run", "experiment", "state"), rows), ())


if __name__ == "__main__":
    main(sys.argv[1:])
