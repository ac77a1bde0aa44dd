"""Writing to a run folder: records, state, variables, networks and the summary."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lopjax.model import Model
from lopjax.runs import checkpoints, locks
from lopjax.runs.checkpoints import same_bits
from lopjax.runs.errors import RunFolderError
from lopjax.runs.networks import recipe_of
from lopjax.runs.plain import plain, write_json
from lopjax.runs.provenance import config_hash, versions
from lopjax.runs.reading import checked_name
from lopjax.runs.records import append_records, read_records
from lopjax.runs.writers import Writer


class Run(NamedTuple):
    """A run folder.

    Attributes:
        folder: where it is.
        config: the config as plain JSON.
        is_complete: whether `summary.json` exists.
        is_writer: whether this process writes; of several that share a run only one does, and records, state and
            summaries of the others are not written.
        writers: other destinations of records (`lopjax.runs.writers`).
        lock: the lock that keeps other processes from writing; None for a run that is complete, was opened by another
            process of the same run, or was constructed directly.

    All methods that write raise RunFolderError if this process may no longer write to the folder.
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
        """Append records to `metrics.jsonl` and flush them to disk. Numbers that are not finite are stored as null."""
        if not self._may_write():
            return
        numbers = [plain(record, "record", not_finite=float) for record in records]
        append_records(self.metrics_path, [plain(record) for record in numbers])
        for writer in self._attached():
            writer.write(numbers)

    def checkpoint(self, step: int, state: Any, keep: int = 2) -> None:
        """Save the state after the records so far, and remove all but the newest `keep` checkpoints.

        Args:
            step: progress of the run; larger is later.
            state: a tree of arrays and random keys.
            keep: number of checkpoints to keep.
        """
        if not self._may_write():
            return
        size = self.metrics_path.stat().st_size if self.metrics_path.exists() else 0
        checkpoints.save(self.checkpoint_folder, step, state, {**self._identity(), "metrics_bytes": size}, keep)

    def restore(self, like: Callable[[int], Any]) -> checkpoints.Restored | None:
        """The newest usable checkpoint, with `metrics.jsonl` truncated to it; None, and no records, if there is none.

        Args:
            like: from a step to a tree with the structure, shapes and types of the state after it.

        Raises:
            CheckpointError: there are checkpoints and none can be used: damaged, of another config, version or model.
        """
        is_writer = self._may_write()
        checkpoint = checkpoints.restore(self.checkpoint_folder, like, self._identity())
        size = 0 if checkpoint is None else checkpoint.header["metrics_bytes"]
        if is_writer and self.metrics_path.exists():
            if self.metrics_path.stat().st_size < size:
                raise checkpoints.CheckpointError(
                    f"{self.metrics_path}: has fewer than the {size} bytes that belong to the checkpoint of step "
                    f"{checkpoint.step if checkpoint else 0}; records have been lost; start the run again"
                )
            os.truncate(self.metrics_path, size)
        for writer in self._attached() if is_writer else ():
            writer.restart(read_records(self.metrics_path)[0])
        return checkpoint

    def keep(self, name: str, variables: Mapping[str, Any]) -> None:
        """Save nested dictionaries of arrays, such as the final variables, as `variables/<name>.npz`."""
        if self._may_write():
            checkpoints.write(self.folder / "variables" / f"{name}.npz", dict(variables), self._identity())

    def record_network(
        self,
        name: str,
        model: Model,
        make: str | Callable[..., Model] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Record how a network is made, as `networks/<name>.json`, for `RunData.model`; may be repeated.

        Args:
            name: its name in this run.
            model: a model made by `lopjax.models` or by a function decorated with `lopjax.models.recorded` or, with
                `make`, any model; its numbers of units may have been changed, as by `lopjax.cloning.widen`.
            make: the function that makes it, or its name as `package.module:function`.
            arguments: arguments of `make`, by name.

        Raises:
            ValueError: the network does not record how it was made or cannot be rebuilt, or `name` is not a valid file
                name.
            RunFolderError: a different network is recorded under this name.
        """
        if not self._may_write():
            return
        path = self.folder / "networks" / f"{checked_name(name)}.json"
        recipe = recipe_of(model, make, arguments or {})
        if path.exists() and json.loads(path.read_bytes()) != recipe:
            raise RunFolderError(f"{path}: records another network of this name; give this one a name of its own")
        path.parent.mkdir(exist_ok=True)
        write_json(path, recipe)

    def record_probe(self, inputs: Any, labels: Any) -> None:
        """Record the batch on which measurements are made, as `probe.npz`, for `RunData.probe`.

        Args:
            inputs: `(batch, *input_shape)`, any type.
            labels: `(batch, ...)`, any type.

        Raises:
            ValueError: their lengths differ or are 0.
            RunFolderError: a different batch is recorded.
        """
        if not self._may_write():
            return
        path, batch = self.folder / "probe.npz", {"inputs": np.asarray(inputs), "labels": np.asarray(labels)}
        shapes = [array.shape for array in batch.values()]
        if any(shape[:1] in ((), (0,)) for shape in shapes) or shapes[0][0] != shapes[1][0]:
            raise ValueError(f"probe: inputs {shapes[0]} and labels {shapes[1]} must have as many rows, at least one")
        if path.exists():
            there = checkpoints.read(path)[0]
            if any(not same_bits(there[name], array) for name, array in batch.items()):
                raise RunFolderError(f"{path}: holds another probe batch; a run has one")
            return
        checkpoints.write(path, batch, self._identity())

    def finish(self, summary: Any) -> None:
        """Write `summary.json` atomically, which completes the run, and remove its checkpoints and lock."""
        if not self._may_write():
            return
        write_json(self.folder / "summary.json", summary)
        checkpoints.remove(self.checkpoint_folder)
        self.close()

    def close(self) -> None:
        """Close the writers and release the folder, complete or not, so that another process can open it.

        A process that ends, in whatever way, releases its folders.
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
        """The writers, attached to the folder; called repeatedly, because the fields of a run can be replaced."""
        for writer in self.writers:
            if (attach := getattr(writer, "attach", None)) is not None:
                attach(self.folder)
            yield writer

    def _may_write(self) -> bool:
        """Whether this process writes; raises RunFolderError if it is the writer but no longer may write."""
        if self.is_writer and self.is_complete:
            raise RunFolderError(f"run folder {self.folder}: holds a complete run; nothing more is written there")
        if self.is_writer and self.lock is not None:
            self.lock.check()
        return self.is_writer

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be used: only the same code and config give the same numbers."""
        return {"config": config_hash(self.config), "versions": versions()}
