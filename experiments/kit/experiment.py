"""The definition of an experiment, and the one program that runs all of them.

A new experiment is a folder `experiments/<name>/` whose package holds an `EXPERIMENT`, and a `__main__` that calls
`main(EXPERIMENT)`. No registration is needed: `experiments.show` and `experiments.sweep` find it by its name.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.kit import flags, session
from experiments.kit.terminal import Table, print_results, progress_bar

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from matplotlib.figure import Figure

    from lopjax.model import Model
    from lopjax.runs import Run, RunData
    from lopjax.runs.schedule import Part


class Resources(NamedTuple):
    """Resources of an experiment apart from its config; none of them changes a result.

    Attributes:
        data_dir: folder of prepared data sets; None for the default.
        mesh: devices over which lanes are distributed; None for one device.
    """

    data_dir: Path | None = None
    mesh: "Mesh | None" = None


NO_RESOURCES = Resources()


class Experiment(NamedTuple):
    """An experiment as data and pure functions.

    Attributes:
        name: name of its folder in `experiments/`, and of the folder of its runs.
        description: first sentence of `--help`.
        presets: the config of every preset, a frozen dataclass; the first is the default.
        build: `(config, resources) -> setup`: checks the config, loads data, builds models; compiles nothing.
        parts: `(config, setup) -> parts` of a run (`lopjax.runs.schedule`).
        summary: results of a run, as JSON: a list of rows. Like all functions below it also accepts incomplete runs.
        table: the table on the terminal.
        figures: `{file name without ending: figure}`.
        texts: `{file name: text}`, such as tables for the documentation.
        variants: for experiments with several architectures, the presets by value of `--model`; `presets` are those of
            the first.
        networks: `(config, setup) -> {name: model}`, recorded in the run folder (`RunData.model`).
        probe: `(config, setup) -> (inputs, labels)`, recorded with them (`RunData.probe`).
        is_spread: whether its lanes can be distributed over devices.
        traced: config fields that a grid may vary within one run, each point a lane of the same program.
        environment: environment variables to set before JAX is imported, unless they are set.
    """

    name: str
    description: str
    presets: Mapping[str, Any]
    build: Callable[[Any, Resources], Any]
    parts: "Callable[[Any, Any], Sequence[Part]]"
    summary: "Callable[[RunData], Any]"
    table: "Callable[[RunData], Table]"
    figures: "Callable[[RunData], Mapping[str, Figure]]"
    texts: "Callable[[RunData], Mapping[str, str]]" = lambda data: {}
    variants: Mapping[str, Mapping[str, Any]] = {}
    networks: "Callable[[Any, Any], Mapping[str, Model]]" = lambda config, setup: {}
    probe: "Callable[[Any, Any], tuple[Any, Any] | None]" = lambda config, setup: None
    is_spread: bool = False
    traced: tuple[str, ...] = ()
    environment: Mapping[str, str] = {}


def late(reference: str) -> Callable[..., Any]:
    """A function `module:name` that is imported when first called, so that flags are read before JAX is imported."""

    def call(*args: Any, **kwargs: Any) -> Any:
        module, name = reference.split(":")
        return getattr(import_module(module), name)(*args, **kwargs)

    return call


def find(name: str) -> Experiment:
    """The experiment of a given name, from its folder.

    Raises:
        ValueError: there is no such experiment.
    """
    module = f"experiments.{name}"
    try:
        return import_module(module).EXPERIMENT
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
    except AttributeError:
        pass
    raise ValueError(f"experiment={name!r}: there is no package {module} with an EXPERIMENT")


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> None:
    """Parse, run (or show a complete run), and report. Exit status 1 if every lane was frozen, 2 after a mistake."""
    for variable, value in experiment.environment.items():
        os.environ.setdefault(variable, value)
    config, output = flags.parse(experiment, argv)
    with session.user_errors(experiment.name, config):
        resources = Resources(output.data_dir, session.devices_of(output))
        setup = experiment.build(config, resources)
        folder = session.open_folder(experiment.name, config, output)
    if folder.is_complete:
        print(f"{folder.folder}: this config has been run; --overwrite runs it again", file=sys.stderr)
    else:
        run(experiment, config, setup, folder, output.keep_checkpoints, resources.mesh)
    if not session.is_main_process(output):
        return
    from lopjax import runs

    data = runs.load(folder.folder)
    with session.user_errors(experiment.name, config):
        present(experiment, data)
    _end_if_all_frozen(data)


def run(
    experiment: Experiment,
    config: Any,
    setup: Any,
    folder: "Run",
    keep_checkpoints: int = 2,
    mesh: "Mesh | None" = None,
) -> None:
    """Execute all parts and write the summary; on failure, say what is kept and how to continue."""
    from lopjax import runs
    from lopjax.runs.schedule import play

    with session.kept_records(experiment.name, folder):
        for name, model in experiment.networks(config, setup).items():
            folder.record_network(name, model)
        if (probe := experiment.probe(config, setup)) is not None:
            folder.record_probe(*probe)
        parts = experiment.parts(config, setup)
        total = sum(part.steps for part in parts)
        with progress_bar(total, is_shown=folder.is_writer) as progress:
            play(parts, None, folder, progress=progress, keep=keep_checkpoints, mesh=mesh, say=session.say)
        if folder.is_writer:
            folder.finish(experiment.summary(runs.load(folder.folder)))


def present(experiment: Experiment, data: "RunData") -> None:
    """Draw the figures of a run into its folder; print its table and the paths of all files."""
    from lopjax.plotting import save

    paths = [data.folder / name for name in ("metrics.jsonl", "summary.json") if (data.folder / name).exists()]
    for name, text in experiment.texts(data).items():
        (data.folder / name).write_text(text, encoding="utf-8")
        paths.append(data.folder / name)
    for name, figure in experiment.figures(data).items():
        paths += save(figure, data.folder / name)
    print_results(experiment.table(data), paths)


def _end_if_all_frozen(data: "RunData") -> None:
    """If every lane of a run diverged, say so and exit with status 1."""
    rows = data.summary if isinstance(data.summary, list) else []
    frozen = [row["frozen_at"] for row in rows if row.get("frozen_at") is not None]
    if frozen and len(frozen) == len(rows):
        print(f"stopped: the loss of every seed is not finite, of the last from step {max(frozen)} on", file=sys.stderr)
        raise SystemExit(1)
