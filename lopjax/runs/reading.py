"""Reading a run folder back, complete or not; needs nothing of the process that writes it."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lopjax.runs import checkpoints


class RunData(NamedTuple):
    """A run read back, for notebooks and figures.

    Attributes:
        folder: where it is.
        config: the config as plain JSON.
        records: every record of `metrics.jsonl`, in order.
        summary: what the run concluded; None while it is incomplete.
        experiment: name of the experiment, as it was told to `open_run`; else that of the folder above.
    """

    folder: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: Any
    experiment: str

    def select(self, **where: Any) -> list[dict[str, Any]]:
        """The records that have all the given values, in order."""
        return [row for row in self.records if all(row.get(key) == value for key, value in where.items())]

    def column(self, name: str, **where: Any) -> np.ndarray:
        """One value of every record that has it and matches `where`, as float64 (missing values are NaN).

        Example: `run.column("clone/r2_forward/mean", kind="noisy_sgd", seed=0)`.

        Raises:
            KeyError: no matching record has it; the message lists the names there are.
        """
        rows = self.select(**where)
        if not rows:
            raise KeyError(
                f"no record where {where}; there are {len(self.records)} records{_choices(self.records, where)}"
            )
        values = [row[name] for row in rows if name in row]
        if not values:
            raise KeyError(f"no record with {name!r} where {where}; names are {sorted({k for r in rows for k in r})}")
        return np.array([math.nan if value is None else value for value in values], np.float64)

    def variables(self, name: str) -> dict[str, Any]:
        """What training ended with, as nested dictionaries of arrays on the default device.

        Example: `run.variables("noisy_sgd")["clone"]["params"]`, with one seed after the other along the leading axes.

        Raises:
            FileNotFoundError: nothing is kept under this name; the message lists the names there are.
            CheckpointError: the file is damaged.
        """
        path = self.folder / "variables" / f"{name}.npz"
        if not path.exists():
            names = sorted(file.stem for file in path.parent.glob("*.npz"))
            raise FileNotFoundError(f"{path}: no such file; names are {names}")
        return checkpoints.read(path)[0]


def _choices(records: list[dict[str, Any]], where: Mapping[str, Any]) -> str:
    """What the records have under the names asked for: `, with seed in [0, 1]`."""
    found = {name: sorted({repr(row[name]) for row in records if name in row}) for name in where}
    return "".join(f", with {name} in [{', '.join(values)}]" for name, values in found.items())


def load(folder: Path | str) -> RunData:
    """Read a run folder back, complete or not; a last line cut short by a crash is left out.

    Raises:
        FileNotFoundError: no run there; says which folder and what a run folder holds.
    """
    folder = Path(folder)
    description = description_of(folder)
    if not description:
        raise FileNotFoundError(
            f"{folder}: not a run folder (no readable config.json); runs are under runs/<experiment>/<name>"
        )
    summary_path = folder / "summary.json"
    summary = json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.exists() else None
    experiment = description.get("experiment", folder.resolve().parent.name)
    return RunData(folder, description["config"], list(records_of(folder / "metrics.jsonl")), summary, experiment)


def description_of(folder: Path) -> dict[str, Any]:
    """What `config.json` says; nothing if there is none, or something else of that name."""
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    is_ours = isinstance(description, dict) and isinstance(description.get("config"), dict)
    return description if is_ours else {}


def records_of(path: Path) -> Iterator[dict[str, Any]]:
    """Every record of a `metrics.jsonl`, in order; none if there is no such file."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    # Every complete record ends with a newline, so what follows the last one is a write that was cut short.
    yield from (json.loads(line) for line in lines[:-1])
