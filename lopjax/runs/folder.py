"""Run folders: the config, the measurements and the results of a run, in plain JSON that outlives the code.

    <folder>/config.json      the config, its hash, package versions and the git revision
    <folder>/metrics.jsonl    one record per line, flushed as it is measured
    <folder>/checkpoints/     state of the newest records (`lopjax.runs.checkpoints`), while the run is not complete
    <folder>/networks/        how each network is made (`RunData.model`)
    <folder>/probe.npz        the batch that measurements are taken on (`RunData.probe`)
    <folder>/variables/       what training ended with, one file per name (`RunData.variables`)
    <folder>/summary.json     written last: its presence says that the run is complete
    <folder>/run.lock         who writes there now (`lopjax.runs.locks`); readers need not ask

The rule for an existing folder: a complete run of the same config is shown, not repeated; an incomplete one of the same
config continues if `resume` is given; anything else is refused, unless `overwrite` is given, which moves the old
folder aside (`<folder>.1`, `.2`, ...). No run is ever deleted. An interrupted run keeps every record measured so
far; `load` reads it like any other.

Records are flushed before the checkpoint, which stores their number of bytes. Resuming truncates `metrics.jsonl` to
those bytes, so the records of a run do not depend on where it was interrupted.
"""

import dataclasses
import json
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lopjax.runs import locks
from lopjax.runs.errors import RunFolderError
from lopjax.runs.plain import plain, tagged, untagged, write_json
from lopjax.runs.provenance import canonical, config_hash, environment
from lopjax.runs.reading import description_of
from lopjax.runs.run import Run

_ABSENT = "absent"
_ASIDE = "choose another folder, or move this one aside with overwrite=True"


def open_run(
    folder: Path | str, config: Any, overwrite: bool = False, resume: bool = False, experiment: str | None = None
) -> Run:
    """Create a run folder, or open one that is complete or to be continued.

    Args:
        folder: the folder; parents are created.
        config: a dataclass of plain values that determine the result. Two configs are the same if their values and the
            types of their numbers agree: 1, 1.0 and True differ, as do 0.0 and -0.0, and inf, nan and None.
        overwrite: move an existing folder aside instead of refusing it.
        resume: continue an incomplete run of this config. A folder that does not exist is created in any case.
        experiment: name of the experiment, stored for the reader of the folder.

    Returns:
        The run; it is `is_complete` if the same config has already been run to the end in the folder.

    Raises:
        RunFolderError: the folder belongs to another config (the message lists the differing fields) or to an
            incomplete run of this one, is not a run folder, cannot be written, or is being written by another process.
    """
    folder = Path(folder)
    values = _values(folder, config)
    description = {"config": values, "hash": config_hash(values), **environment()}
    description |= {"id": secrets.token_hex(8)} | ({} if experiment is None else {"experiment": experiment})
    try:
        return _opened(folder, description, overwrite, resume)
    except OSError as error:
        raise RunFolderError(
            f"run folder {folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error


def follow_run(folder: Path | str, config: Any, is_complete: bool) -> Run:
    """A run folder that another process of the same run has opened with `open_run`; this process only reads.

    Args:
        folder: the folder, on a file system shared by both.
        config: as in `open_run`.
        is_complete: as found by the other process.
    """
    values = untagged(_values(Path(folder), config))
    return Run(Path(folder), values, is_complete, is_writer=False)


def _values(folder: Path, config: Any) -> dict[str, Any]:
    """The config as stored in `config.json`."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise RunFolderError(f"run folder {folder}: config={config!r} is not an instance of a dataclass")
    try:
        return plain(config, "config", not_finite=tagged)
    except ValueError as error:
        raise RunFolderError(f"run folder {folder}: {error}") from error


def _opened(folder: Path, description: dict[str, Any], overwrite: bool, resume: bool) -> Run:
    """`open_run` without the conversion of an OSError into an error that names the folder."""
    config = description["config"]
    if not overwrite and _is_used(folder):
        run = _existing(folder, config)
        if run.is_complete:
            return run
        if not resume:
            locks.check_free(folder)
            raise _incomplete(folder)
    if overwrite and _is_used(folder) and Path.cwd().is_relative_to(folder.resolve()):
        raise RunFolderError(f"run folder {folder}: is the current folder or one above it, which cannot be moved aside")
    folder.mkdir(parents=True, exist_ok=True)
    lock = locks.acquire(folder)
    try:
        if _is_used(folder) and not overwrite:
            # Checked again under the lock: the process that held it may have completed the run or created the folder.
            return _continued(_existing(folder, config), lock, resume)
        if _is_used(folder):
            lock = _moved_aside(folder, lock)
        write_json(folder / "config.json", description)
    except BaseException:
        lock.release()
        raise
    return Run(folder, untagged(config), is_complete=False, lock=lock)


def _continued(run: Run, lock: locks.Lock, resume: bool) -> Run:
    """An existing run, as this process may use it."""
    if run.is_complete:
        lock.release()
        return run
    if not resume:
        raise _incomplete(run.folder)
    return run._replace(lock=lock)


def _incomplete(folder: Path) -> RunFolderError:
    return RunFolderError(
        f"run folder {folder}: holds an incomplete run of this config; continue it with resume=True, {_ASIDE}"
    )


def _is_used(folder: Path) -> bool:
    """Whether the folder contains more than a crash while writing the config leaves behind."""
    nothing = ("config.json.partial", locks.FILE)
    return folder.exists() and any(path.name not in nothing for path in folder.iterdir())


def _moved_aside(folder: Path, lock: locks.Lock) -> locks.Lock:
    """Move aside a folder locked by this process, so that nobody is writing to it; returns the new folder's lock."""
    aside = _free_name(folder)
    folder.rename(aside)
    (aside / locks.FILE).unlink()
    lock.release()
    folder.mkdir()
    return locks.acquire(folder)


def _existing(folder: Path, config: dict[str, Any]) -> Run:
    """The run of this config that a folder holds; raises RunFolderError if it holds anything else."""
    recorded = description_of(folder).get("config")
    if recorded is None:
        raise RunFolderError(f"run folder {folder}: exists and is not a run (no readable config.json); {_ASIDE}")
    if canonical(recorded) != canonical(config):
        stored, now = dict(_flat(untagged(recorded))), dict(_flat(untagged(config)))
        fields = [name for name in {**stored, **now} if stored.get(name, _ABSENT) != now.get(name, _ABSENT)]
        changes = "; ".join(_change(name, stored.get(name, _ABSENT), now.get(name, _ABSENT)) for name in fields)
        raise RunFolderError(f"run folder {folder}: belongs to another config ({changes}); {_ASIDE}")
    return Run(folder, untagged(config), is_complete=(folder / "summary.json").exists())


def _change(name: str, there: str, now: str) -> str:
    is_ambiguous = there == "null" and now.lstrip("-") in ("Infinity", "NaN")
    note = " (older versions wrote null for it, and for None)" if is_ambiguous else ""
    return f"{name}: {there} there, {now} now{note}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every field by its dotted name, as JSON: `("net.widths", "[32, 32]")`."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, json.dumps(value)


def _free_name(folder: Path) -> Path:
    number = 1
    while (candidate := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return candidate
