"""Output of experiments: a progress bar with rate and ETA, one table at the end, the paths of the files written."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol


class Progress(Protocol):
    """Called with a short description of the current work and the number of further steps done."""

    def __call__(self, description: str, steps: int) -> None:
        """Advance by `steps`."""
        ...


@contextmanager
def progress_bar(total: int, is_shown: bool = True) -> Iterator[Progress]:
    """Progress over `total` steps on stderr, with the rate in steps per second and the time left.

    A bar on a terminal; in a file, one line per tenth of the run; nothing unless `is_shown`.
    """
    if not is_shown:
        yield lambda description, steps: None
        return
    if not sys.stderr.isatty():
        yield progress_lines(total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("compiling" if not speed else f"{speed:,.0f} steps/s")

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), Rate())
    # A chunk of a long run may take minutes, so the rate is estimated over a long window.
    with Progress(
        *columns, TextColumn("ETA"), TimeRemainingColumn(), console=Console(stderr=True), speed_estimate_period=3600
    ) as bar:
        task = bar.add_task("", total=total)
        yield lambda description, steps: bar.update(task, description=description, advance=steps)


def progress_lines(total: int) -> Progress:
    """Progress as plain lines, for each new description and each tenth of `total`."""
    started, done, resumed, described, printed = time.monotonic(), 0, 0, "", 0

    def advance(description: str, steps: int) -> None:
        nonlocal done, resumed, described, printed
        done += steps
        resumed += steps if description.startswith("resumed") else 0  # these took no time in this run
        tenths = 10 * done // total
        if description == described and tenths == printed:
            return
        described, printed = description, tenths
        rate = (done - resumed) / (time.monotonic() - started)
        left = f", {rate:,.0f} steps/s, ETA {round((total - done) / rate):,} s" if done > resumed else ""
        print(f"{description}: {done / total:.0%}{left}", file=sys.stderr, flush=True)

    return advance


class Table(NamedTuple):
    """One table: a title, column names and rows of text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def print_results(table: Table, paths: Sequence[Path]) -> None:
    """Print a table and the files that were written."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    # In a file a table may be as wide as necessary; on a terminal the terminal's width applies.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    grid = RichTable(
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for index, name in enumerate(table.columns):
        grid.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in table.rows:
        grid.add_row(*row)
    # Not passed as the table's title, because rich would wrap it at the table's width.
    console.print(table.title, highlight=False, markup=False, soft_wrap=True)
    console.print(grid)
    for path in paths:
        console.print(f"  {path}", soft_wrap=True, highlight=False)
