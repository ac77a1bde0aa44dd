"""What the experiments print: a progress bar with rate and ETA, one table at the end, the paths of what was written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol


class Progress(Protocol):
    """Told what is going on: a short description, and how many more steps are done."""

    def __call__(self, description: str, steps: int) -> None:
        """Advance by `steps`."""
        ...


@contextmanager
def progress_bar(total: int) -> Iterator[Progress]:
    """A bar over `total` steps with the rate in steps a second and the time left; silent when not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("compiling" if not speed else f"{speed:,.0f} steps/s")

    columns = (TextColumn("{task.description:<24}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), Rate())
    with Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda description, steps: bar.update(task, description=description, advance=steps)


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

    console = Console()
    drawn = RichTable(
        title=table.title,
        title_justify="left",
        title_style="",
        header_style="bold",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for index, name in enumerate(table.columns):
        drawn.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*row)
    console.print(drawn)
    for path in paths:
        console.print(f"  {path}", soft_wrap=True, highlight=False)
