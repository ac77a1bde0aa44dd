"""Run folders: what a run was asked to do, what it measured, and what came out. Plain JSON that outlives the code.

    <folder>/config.json      the config, its hash, package versions and the git revision
    <folder>/metrics.jsonl    one record a line, flushed as it is measured
    <folder>/checkpoints/     state of the newest records (`lopjax.runs.checkpoints`), while the run is not complete
    <folder>/variables/       what training ended with, one file a name (`RunData.variables`)
    <folder>/summary.json     written last: its presence says that the run is complete
    <folder>/run.lock         who writes there now (`lopjax.runs.locks`); readers need not ask

The rule for a folder that exists: a complete run of the same config is shown, not repeated; an incomplete one of the
same config goes on if `resume` is given; anything else is refused, unless `overwrite` is given, which moves the old
folder aside (`<folder>.1`, `.2`, ...). No run is ever deleted. One that was interrupted keeps every record it had
measured; `load` reads it like any other.

Records are flushed before the checkpoint that knows how many bytes of them there are. Resuming cuts `metrics.jsonl`
back to those bytes, so what a run records does not depend on where it was interrupted.
"""

import dataclasses
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lopjax.runs import checkpoints, locks
from lopjax.runs.errors import RunFolderError
from lopjax.runs.plain import plain, tagged, untagged, write_json
from lopjax.runs.provenance import canonical, config_hash, environment, versions
from lopjax.runs.reading import description_of
from lopjax.runs.records import append_records, read_records
from lopjax.runs.writers import Writer

_ABSENT = "absent"
_ASIDE = "choose another folder, or move this one aside with overwrite=True"


class Run(NamedTuple):
    """A run folder.

    Attributes:
        folder: where it is.
        config: the config as plain JSON.
        is_complete: whether `summary.json` is there.
        is_writer: whether this process writes; of several that share a run, one does, and nothing that the others
            record, save or conclude is written.
        writers: other places that records are shown in (`lopjax.runs.writers`).
        lock: what keeps other processes from writing there meanwhile; None in a run that is complete, that another
            process of the same run has opened, or that was made by hand.

    Whatever writes raises RunFolderError if the folder is no longer this process's to write into.
    """

    folder: Path
    config: dict[str, Any]
    is_complete: bool
    is_writer: bool = True
    writers: tuple[Writer, ...] = ()
    lock: locks.Lock | None = None

    @property
    def metrics_path(self) -> Path:
        """`metrics.jsonl`."""
        return self.folder / "metrics.jsonl"

    def append(self, *records: Mapping[str, Any]) -> None:
        """Append records to `metrics.jsonl` and flush them to disk. Numbers that are not finite are kept as null."""
        if not self._may_write():
            return
        numbers = [plain(record, "record", not_finite=float) for record in records]
        append_records(self.metrics_path, [plain(record) for record in numbers])
        for writer in self._attached():
            writer.write(numbers)

    def checkpoint(self, step: int, state: Any, keep: int = 2) -> None:
        """Save the state that belongs to the records so far, and remove all but the newest `keep` checkpoints.

        Args:
            step: how far the run is; larger is later.
            state: a tree of arrays and random keys.
            keep: how many checkpoints to keep.
        """
        if not self._may_write():
            return
        size = self.metrics_path.stat().st_size if self.metrics_path.exists() else 0
        checkpoints.save(self.checkpoint_folder, step, state, {**self._identity(), "metrics_bytes": size}, keep)

    def restore(self, like: Callable[[int], Any]) -> checkpoints.Restored | None:
        """The newest usable checkpoint, with `metrics.jsonl` cut back to it; None, and no records, if there is none.

        Args:
            like: step to a tree of the structure, shapes and types of the state there.

        Raises:
            CheckpointError: there are checkpoints and none can be used: damaged, of another config, version or model.
        """
        is_writer = self._may_write()
        found = checkpoints.restore(self.checkpoint_folder, like, self._identity())
        size = 0 if found is None else found.header["metrics_bytes"]
        if is_writer and self.metrics_path.exists():
            if self.metrics_path.stat().st_size < size:
                raise checkpoints.CheckpointError(
                    f"{self.metrics_path}: has fewer than the {size} bytes that belong to the checkpoint of step "
                    f"{found.step if found else 0}; records have been lost, start again"
                )
            os.truncate(self.metrics_path, size)
        for writer in self._attached() if is_writer else ():
            writer.restart(read_records(self.metrics_path)[0])
        return found

    def keep(self, name: str, variables: Mapping[str, Any]) -> None:
        """Keep nested dictionaries of arrays, such as the variables training ended with, as `variables/<name>.npz`."""
        if self._may_write():
            checkpoints.write(self.folder / "variables" / f"{name}.npz", dict(variables), self._identity())

    def finish(self, summary: Any) -> None:
        """Write `summary.json`, atomically: the run is complete, its checkpoints and lock are of no more use."""
        if not self._may_write():
            return
        write_json(self.folder / "summary.json", summary)
        checkpoints.remove(self.checkpoint_folder)
        self.close()

    def close(self) -> None:
        """Close the writers and give up the folder, complete or not, so that another process can open it.

        A process that ends, in whatever way, gives its folders up by itself.
        """
        try:
            for writer in self.writers:
                writer.close()
        finally:
            if self.lock is not None:
                self.lock.release()

    @property
    def checkpoint_folder(self) -> Path:
        """`checkpoints`."""
        return self.folder / "checkpoints"

    def _attached(self) -> Iterator[Writer]:
        """The writers, each told the folder; no matter how often, as the fields of a run can be replaced."""
        for writer in self.writers:
            if (attach := getattr(writer, "attach", None)) is not None:
                attach(self.folder)
            yield writer

    def _may_write(self) -> bool:
        """Whether this process writes; raises RunFolderError if it is meant to and must not."""
        if self.is_writer and self.is_complete:
            raise RunFolderError(f"run folder {self.folder}: holds a complete run; nothing more is written there")
        if self.is_writer and self.lock is not None:
            self.lock.check()
        return self.is_writer

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be used: the same numbers follow only from the same code and config."""
        return {"config": config_hash(self.config), "versions": versions()}


def open_run(
    folder: Path | str, config: Any, overwrite: bool = False, resume: bool = False, experiment: str | None = None
) -> Run:
    """Create a run folder, or recognise a complete one, or one that is to go on.

    Args:
        folder: where; parents are created.
        config: a dataclass of plain values: all that decides the result. Two configs are the same if their values
            and the types of their numbers are: 1, 1.0 and True differ, as do 0.0 and -0.0, and inf, nan and None.
        overwrite: move an existing folder aside instead of refusing it.
        resume: let an incomplete run of this config go on. A folder that does not exist is created all the same.
        experiment: whose run it is, for those who find the folder.

    Returns:
        The run; `is_complete` if the same config has already been run to the end there.

    Raises:
        RunFolderError: the folder belongs to another config (the differing fields are listed), to an incomplete run of
            this one, is not a run folder, cannot be written, or another process is writing there.
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
    """A run folder that another process of the same run has opened with `open_run`; this one reads and never writes.

    Args:
        folder: where, on a file system that both see.
        config: as there.
        is_complete: what the other process found.
    """
    values = untagged(_values(Path(folder), config))
    return Run(Path(folder), values, is_complete, is_writer=False)


def _values(folder: Path, config: Any) -> dict[str, Any]:
    """The config as `config.json` has it."""
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise RunFolderError(f"run folder {folder}: config={config!r} is not an instance of a dataclass")
    try:
        return plain(config, "config", not_finite=tagged)
    except ValueError as error:
        raise RunFolderError(f"run folder {folder}: {error}") from error


def _opened(folder: Path, description: dict[str, Any], overwrite: bool, resume: bool) -> Run:
    """As `open_run`, which turns an OSError into one that names the folder."""
    config = description["config"]
    if not overwrite and _is_used(folder):
        found = _existing(folder, config)
        if found.is_complete:
            return found
        if not resume:
            locks.check_free(folder)
            raise _incomplete(folder)
    if overwrite and _is_used(folder) and Path.cwd().is_relative_to(folder.resolve()):
        raise RunFolderError(f"run folder {folder}: is the current folder or one above it, which cannot be moved aside")
    folder.mkdir(parents=True, exist_ok=True)
    lock = locks.acquire(folder)
    try:
        if _is_used(folder) and not overwrite:
            # Looked at again under the lock: the process that had it may have completed the run, or made the folder.
            return _continued(_existing(folder, config), lock, resume)
        if _is_used(folder):
            lock = _moved_aside(folder, lock)
        write_json(folder / "config.json", description)
    except BaseException:
        lock.release()
        raise
    return Run(folder, untagged(config), is_complete=False, lock=lock)


def _continued(run: Run, lock: locks.Lock, resume: bool) -> Run:
    """A run that was there, as this process may use it."""
    if run.is_complete:
        lock.release()
        return run
    if not resume:
        raise _incomplete(run.folder)
    return run._replace(lock=lock)


def _incomplete(folder: Path) -> RunFolderError:
    return RunFolderError(
        f"run folder {folder}: holds an incomplete run of this config; let it go on with resume=True, {_ASIDE}"
    )


def _is_used(folder: Path) -> bool:
    """Whether there is anything but what a crash leaves while the config is being written: nothing yet."""
    nothing = ("config.json.partial", locks.FILE)
    return folder.exists() and any(path.name not in nothing for path in folder.iterdir())


def _moved_aside(folder: Path, lock: locks.Lock) -> locks.Lock:
    """Move a folder aside that this process has locked, so that nobody is writing there; the lock of the new one."""
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
        there, now = dict(_flat(untagged(recorded))), dict(_flat(untagged(config)))
        fields = [name for name in {**there, **now} if there.get(name, _ABSENT) != now.get(name, _ABSENT)]
        changes = "; ".join(_change(name, there.get(name, _ABSENT), now.get(name, _ABSENT)) for name in fields)
        raise RunFolderError(f"run folder {folder}: belongs to another config ({changes}); {_ASIDE}")
    return Run(folder, untagged(config), is_complete=(folder / "summary.json").exists())


def _change(name: str, there: str, now: str) -> str:
    is_ambiguous = there == "null" and now.lstrip("-") in ("Infinity", "NaN")
    note = " (older versions wrote null for it, and for None)" if is_ambiguous else ""
    return f"{name}: {there} there, {now} now{note}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every field under its dotted name, as JSON: `("net.widths", "[32, 32]")`."""
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
