"""Reading a run folder, complete or not, independently of the process that writes it."""

import hashlib
import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lopjax.model import Model
from lopjax.runs import checkpoints
from lopjax.runs.errors import RunFolderError
from lopjax.runs.networks import network_of
from lopjax.runs.plain import untagged
from lopjax.runs.records import read_records


class RunData(NamedTuple):
    """A run read back, for notebooks and figures.

    Attributes:
        folder: where it is.
        config: the config as plain JSON; infinities and NaN are floats.
        records: every record of `metrics.jsonl` that can be read, in order.
        summary: summary of the run; None while it is incomplete.
        experiment: name of the experiment as passed to `open_run`, else that of the parent folder.
        is_complete: whether `summary.json` exists; a summary may be empty.
        damage: a sentence for every line or file that cannot be read.
    """

    folder: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: Any
    experiment: str
    is_complete: bool = False
    damage: tuple[str, ...] = ()

    def select(self, **where: Any) -> list[dict[str, Any]]:
        """The records with all the given values, in order."""
        return [row for row in self.records if all(row.get(key) == value for key, value in where.items())]

    def column(self, name: str, **where: Any) -> np.ndarray:
        """One value of every record that has it and matches `where`, as float64 (missing values are NaN).

        Example: `run.column("clone/r2_forward/mean", method="noisy_sgd", seed=0)`.

        Raises:
            KeyError: no matching record has it; the message lists the available names.
        """
        rows = self.select(**where)
        if not rows:
            raise KeyError(
                f"no record where {where}; the run has {len(self.records)} in all{_choices(self.records, where)}"
            )
        values = [row[name] for row in rows if name in row]
        if not values:
            raise KeyError(f"no record with {name!r} where {where}; names are {sorted({k for r in rows for k in r})}")
        return np.array([math.nan if value is None else value for value in values], np.float64)

    def variables(self, name: str) -> dict[str, Any]:
        """Variables at the end of training, as nested dictionaries of arrays on the default device.

        Example: `run.variables("noisy_sgd")["clone"]["params"]`, with seeds along the leading axes.

        Raises:
            FileNotFoundError: nothing is stored under this name; the message lists the available names.
            CheckpointError: the file is damaged.
        """
        path = self.folder / "variables" / f"{name}.npz"
        if not path.exists():
            names = sorted(file.stem for file in path.parent.glob("*.npz"))
            raise FileNotFoundError(f"{path}: no such file; names are {names}")
        return checkpoints.read(path)[0]

    def model(self, name: str) -> Model:
        """A network of this run, rebuilt by importing and calling the function that the run folder names.

        Example: `run.model("clone").apply(variables, run.probe()[0])`, with the variables of one seed:
        `jax.tree.map(lambda leaf: leaf[0], run.variables("sgd")["clone"])`.

        Raises:
            FileNotFoundError: no network of this name is recorded; the message lists the available names.
            RunFolderError: the file is damaged, or the function no longer exists or refuses its arguments; the message
                says why.
        """
        path = self.folder / "networks" / f"{checked_name(name)}.json"
        if not path.exists():
            names = sorted(file.stem for file in path.parent.glob("*.json"))
            raise FileNotFoundError(f"{path}: no such file; names are {names}")
        try:
            recipe = json.loads(path.read_bytes())
            if not isinstance(recipe, dict) or not {"make", "arguments", "sizes"} <= set(recipe):
                raise ValueError("no recipe of a network")
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"{path}: cannot be read ({error})") from error
        return network_of(recipe)

    def probe(self) -> tuple[Any, Any]:
        """Inputs and labels of the batch that measurements were taken on, arrays on the default device.

        Raises:
            FileNotFoundError: no probe batch is recorded.
            CheckpointError: the file is damaged.
        """
        path = self.folder / "probe.npz"
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; the run records no probe batch")
        batch = checkpoints.read(path)[0]
        return batch["inputs"], batch["labels"]


def checked_name(name: str) -> str:
    """A name that is valid for a file; raises ValueError otherwise."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError(f"name={name!r}: must be letters, digits and any of _ . + -, and begin with a letter or digit")
    return name


def _choices(records: list[dict[str, Any]], where: Mapping[str, Any]) -> str:
    """The values of the records under the names asked for: `, with seed in [0, 1]`."""
    choices = {name: sorted({repr(row[name]) for row in records if name in row}) for name in where}
    return "".join(f", with {name} in [{', '.join(values)}]" for name, values in choices.items())


def load(folder: Path | str, strict: bool = False) -> RunData:
    """Read a run folder, complete or not; a last line truncated by a crash is left out.

    Args:
        folder: where.
        strict: refuse a damaged folder, such as one with a line of `metrics.jsonl` that is not JSON. Otherwise
            everything that can be read is returned, with a sentence about each damaged part in `RunData.damage` and a
            warning.

    Raises:
        FileNotFoundError: the folder has no run; the message says what a run folder contains.
        RunFolderError: `strict`
            is set and something is damaged; the message names file and line.
    """
    run = _loaded(Path(folder))
    if run.damage and strict:
        raise RunFolderError("; ".join(run.damage))
    if run.damage:
        warnings.warn(f"left out of the run: {'; '.join(run.damage)}", stacklevel=2)
    return run


def load_all(folder: Path | str) -> tuple[list[RunData], dict[Path, str]]:
    """Every run in and below a folder, in the order of their names; a damaged run does not hide the others.

    Returns:
        The runs, and for every folder that has a `config.json` and cannot be read the reason. Damage within a run is
        described in its `damage`; there are no warnings.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: not a run folder (no such folder); runs are under runs/<experiment>/<name>")
    runs: list[RunData] = []
    refused: dict[Path, str] = {}
    for path in sorted(Path(folder).rglob("config.json")):
        try:
            runs.append(_loaded(path.parent))
        except (OSError, ValueError) as error:
            refused[path.parent] = str(error)
    return runs, refused


def _loaded(folder: Path) -> RunData:
    description = description_of(folder)
    if not description:
        raise FileNotFoundError(
            f"{folder}: not a run folder (no readable config.json); runs are under runs/<experiment>/<name>"
        )
    records, damage = read_records(folder / "metrics.jsonl")
    summary, is_complete, damaged_summary = _summary(folder / "summary.json")
    return RunData(
        folder=folder,
        config=untagged(description["config"]),
        records=records,
        summary=summary,
        experiment=description.get("experiment", folder.resolve().parent.name),
        is_complete=is_complete,
        damage=(*damage, *damaged_summary),
    )


def _summary(path: Path) -> tuple[Any, bool, tuple[str, ...]]:
    """The summary of a run, whether it is complete, and damage to the file."""
    try:
        return json.loads(path.read_bytes()), True, ()
    except FileNotFoundError:
        return None, False, ()
    except (ValueError, RecursionError) as error:
        return None, True, (f"{path}: cannot be read ({error})",)


def run_id(folder: Path) -> str:
    """A unique id of a run that survives moving its folder; for runs of older versions, the folder's path."""
    return description_of(folder).get("id") or hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def description_of(folder: Path) -> dict[str, Any]:
    """The content of `config.json`; empty if the file is missing or something else."""
    try:
        description = json.loads((folder / "config.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, RecursionError):
        return {}
    is_ours = isinstance(description, dict) and isinstance(description.get("config"), dict)
    return description if is_ours else {}
