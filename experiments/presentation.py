"""How a run is shown, finished or not: one table, its figures, and how far it is; used by the experiments and show."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.terminal import Table
    from lopjax.runs import RunData


class Presentation(NamedTuple):
    """What an experiment says of a run of its own; every function takes runs that are not complete, too.

    Attributes:
        table: the table on the terminal.
        figures: file name without ending -> figure.
        num_records: how many records a run of a config has in the end, unless seeds are frozen.
    """

    table: "Callable[[RunData], Table]"
    figures: "Callable[[RunData], dict[str, Figure]]"
    num_records: Callable[[Mapping[str, Any]], int]


# Where an experiment that has run folders keeps its `PRESENTATION`.
MODULES = {"cloning": "experiments.cloning.report", "stability": "experiments.stability"}


def presentation_of(experiment: str) -> Presentation:
    """The presentation of an experiment, by the name in its run folders.

    Raises:
        ValueError: there is no such experiment.
    """
    if experiment not in MODULES:
        raise ValueError(f"experiment={experiment!r}: must be one of {list(MODULES)}")
    return import_module(MODULES[experiment]).PRESENTATION


def present(data: "RunData") -> None:
    """Draw the figures of a run into its folder, print its table and the files that there are."""
    from experiments.terminal import print_results
    from lopjax.plotting import save

    shown, paths = presentation_of(data.experiment), []
    for name in ("metrics.jsonl", "summary.json"):
        if (data.folder / name).exists():
            paths.append(data.folder / name)
    for name, figure in shown.figures(data).items():
        paths += save(figure, data.folder / name)
    print_results(shown.table(data), paths)
