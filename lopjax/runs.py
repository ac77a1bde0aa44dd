"""Run folders: what a run was asked to do, what it measured, and what came out. Plain JSON that outlives the code.

    <folder>/config.json      the config, its hash, package versions and the git revision
    <folder>/metrics.jsonl    one record a line, flushed as it is measured
    <folder>/summary.json     written last: its presence says that the run is complete

The rule for a folder that exists: a complete run of the same config is shown, not repeated; anything else is refused,
unless `overwrite` is given, which moves the old folder aside (`<folder>.1`, `.2`, ...). Nothing is ever deleted.
"""

import dataclasses
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PACKAGES = ("lopjax", "jax", "jaxlib", "flax", "optax", "numpy", "matfree")


class RunFolderError(ValueError):
    """A run folder that cannot be used: it belongs to another config, is incomplete, or cannot be written."""


class Run(NamedTuple):
    """A run folder.

    Attributes:
        folder: where it is.
        config: the config as plain JSON.
        is_complete: whether `summary.json` is there.
    """

    folder: Path
    config: dict[str, Any]
    is_complete: bool

    @property
    def metrics_path(self) -> Path:
        """`metrics.jsonl`."""
        return self.folder / "metrics.jsonl"

    def append(self, *records: Mapping[str, Any]) -> None:
        """Append records to `metrics.jsonl` and flush them to disk. Numbers that are not finite are kept as null."""
        lines = "".join(json.dumps(_plain(record), allow_nan=False) + "\n" for record in records)
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())

    def finish(self, summary: Any) -> None:
        """Write `summary.json`, atomically: the run is complete."""
        write_json(self.folder / "summary.json", summary)


class RunData(NamedTuple):
    """A run read back, for notebooks and figures.

    Attributes:
        folder: where it is.
        config: the config as plain JSON.
        records: every record of `metrics.jsonl`, in order.
        summary: what the run concluded; None while it is incomplete.
    """

    folder: Path
    config: dict[str, Any]
    records: list[dict[str, Any]]
    summary: Any

    def column(self, name: str, **where: Any) -> np.ndarray:
        """One value of every record that has it and matches `where`, as float64 (missing values are NaN).

        Example: `run.column("clone/r2_forward/mean", kind="noisy_sgd", seed=0)`.

        Raises:
            KeyError: no matching record has it; the message lists the names there are.
        """
        rows = [row for row in self.records if all(row.get(key) == value for key, value in where.items())]
        values = [row[name] for row in rows if name in row]
        if not values:
            raise KeyError(f"no record with {name!r} where {where}; names are {sorted({k for r in rows for k in r})}")
        return np.array([math.nan if value is None else value for value in values], np.float64)


def open_run(folder: Path | str, config: Any, overwrite: bool = False) -> Run:
    """Create a run folder, or recognise a complete one.

    Args:
        folder: where; parents are created.
        config: a dataclass of plain values: all that decides the result.
        overwrite: move an existing folder aside instead of refusing it.

    Returns:
        The run; `is_complete` if the same config has already been run to the end there.

    Raises:
        RunFolderError: the folder belongs to another config (the differing fields are listed), to an incomplete run of
            this one, is not a run folder, or cannot be written.
    """
    folder = Path(folder)
    plain = _plain(dataclasses.asdict(config))
    try:
        if folder.exists() and any(folder.iterdir()):
            if not overwrite:
                return _existing(folder, plain)
            folder.rename(_free_name(folder))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", {"config": plain, "hash": config_hash(plain), **_environment()})
    except OSError as error:
        raise RunFolderError(
            f"run folder {folder}: cannot be written ({error.strerror}); choose another --root"
        ) from error
    return Run(folder, plain, is_complete=False)


def _existing(folder: Path, config: dict[str, Any]) -> Run:
    path = folder / "config.json"
    if not path.exists():
        raise RunFolderError(f"run folder {folder}: exists and is not a run; choose another --name")
    recorded = json.loads(path.read_text(encoding="utf-8"))["config"]
    if recorded != config:
        fields = [key for key in {**recorded, **config} if recorded.get(key) != config.get(key)]
        changes = "; ".join(f"{key}: {recorded.get(key)!r} there, {config.get(key)!r} now" for key in fields)
        raise RunFolderError(
            f"run folder {folder}: belongs to another config ({changes}); "
            "choose another --name, or --overwrite to move it aside"
        )
    if not (folder / "summary.json").exists():
        raise RunFolderError(
            f"run folder {folder}: holds an incomplete run of this config; "
            "choose another --name, or --overwrite to move it aside and start again"
        )
    return Run(folder, config, is_complete=True)


def _free_name(folder: Path) -> Path:
    number = 1
    while (candidate := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return candidate


def load(folder: Path | str) -> RunData:
    """Read a run folder back, complete or not; a last line cut short by a crash is left out.

    Raises:
        FileNotFoundError: no run there; says which folder and what a run folder holds.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder}: not a run folder (no config.json); runs are under runs/<experiment>/<name>")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
    summary_path = folder / "summary.json"
    summary = json.loads(summary_path.read_text(encoding="utf-8")) if summary_path.exists() else None
    return RunData(folder, config, list(_records(folder / "metrics.jsonl")), summary)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    # Every complete record ends with a newline, so what follows the last one is a write that was cut short.
    yield from (json.loads(line) for line in lines[:-1])


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name and move it into place: a reader sees the old file or the new, never a part."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(_plain(value), file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of the config's canonical JSON: equal configs, equal hash."""
    return hashlib.sha256(json.dumps(_plain(config), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """The same value in JSON's own types; arrays of one element become numbers, non-finite numbers null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _environment() -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {"python": sys.version.split()[0], "versions": versions, "git": _git_revision()}


def _git_revision() -> str | None:
    """Commit of the checkout this file is in, `-dirty` if tracked files differ; None outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
