"""The command line of what reads a complete run and prints one table."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.kit.terminal import Table, print_results

if TYPE_CHECKING:
    from lopjax.runs import RunData


def print_table_of_a_run(
    name: str, doc: str | None, make: Callable[["RunData", Path | None], Table], needs: str
) -> None:
    """Parse a run folder and the folder of data, print the table; exit with 2 and a sentence where there can be none.

    Args:
        name: the module's.
        doc: its docstring, whose first line is the description.
        make: the table of a run and the folder of prepared data sets.
        needs: what the run must be, after "run folder of experiments.continual, ".
    """
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=str(doc).split("\n")[0])
    parser.add_argument("run", type=Path, help=f"run folder of experiments.continual, {needs}")
    parser.add_argument("--data-dir", type=Path, help="folder of prepared data sets")
    arguments = parser.parse_args()
    from lopjax.runs import load

    try:
        table = make(load(arguments.run), arguments.data_dir)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print_results(table, ())
