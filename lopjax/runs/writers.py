"""Other destinations of a run's records while it is in progress. `metrics.jsonl` remains the source of truth.

A writer is any object with the three methods of `Writer`; `Run.writers` holds those of a run. If it has a method
`attach(folder)`, this is called with the run folder before anything else.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lopjax.runs.curves import LANE, STEP, Record, lane_of, numbers_of, step_of
from lopjax.runs.reading import run_id
from lopjax.runs.trackers import ModuleWriter

__all__ = ["ModuleWriter", "Record", "TensorBoardWriter", "Writer", "writer_of"]


@runtime_checkable
class Writer(Protocol):
    """Receives the records of a run: plain JSON, except that numbers may be infinite or NaN."""

    def restart(self, records: Iterable[Record]) -> None:
        """Discard everything written and write these records: a run starts, or resumes from its truncated records."""
        ...

    def write(self, records: Iterable[Record]) -> None:
        """Write records that have been appended to `metrics.jsonl`."""
        ...

    def close(self) -> None:
        """Write anything still buffered, since the run is complete. Further records may follow all the same."""
        ...


def writer_of(name: str, run_folder: Path | str, **settings: Any) -> Writer:
    """The writer with a given name, for one run.

    Args:
        name: `"tensorboard"`, whose event files are in the run's folder `tensorboard`; or a module with `init`, `log`
            and `finish`, such as `"wandb"` or `"trackio"`.
        run_folder: the run's.
        settings: arguments of `TensorBoardWriter` (another `folder`, for instance) or of the module's `init`.

    Raises:
        ImportError: it is not installed; the message says how to install it.
        ValueError: the name or a setting cannot
            be used; the message says what is missing.
    """
    folder = Path(run_folder)
    writer = (
        TensorBoardWriter(**{"folder": folder / "tensorboard", **settings})
        if name == "tensorboard"
        else ModuleWriter(name, **settings)
    )
    writer.attach(folder)
    return writer


class TensorBoardWriter:
    """TensorBoard event files, through tensorboardX: `tensorboard --logdir <folder>`.

    Every number of a record becomes a scalar under its own name, nested ones under `a/b`; strings, lists and missing
    numbers are left out. Records that agree in the lane fields share a curve.

    The folder may be shared with other runs and anything else. Event files contain the id of the run that wrote them,
    and only those of the same run are ever removed.

    Attributes:
        folder: where the event files go, one folder per lane: `noisy_sgd/0/clone`.
    """

    def __init__(self, folder: Path | str, lane: Sequence[str] = LANE, step: Sequence[str] = STEP) -> None:
        """Prepare for writing; nothing is written before the first record.

        Args:
            folder: where.
            lane: fields whose values name the curve; missing ones are left out.
            step: fields that count steps; the first one in a record is the horizontal axis.

        Raises:
            ImportError: tensorboardX is not installed; the message says how to install it.
            ValueError: the folder is
                the current one, or above it.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard files need tensorboardX: pip install 'lopjax[tensorboard]'") from error
        self.folder = Path(folder)
        if Path.cwd().is_relative_to(self.folder.resolve()):
            raise ValueError(
                f"folder={str(folder)!r}: is the current folder or one above it; name one below, 'tensorboard'"
            )
        self._make, self._lane, self._step = SummaryWriter, tuple(lane), tuple(step)
        self._open: dict[str, Any] = {}
        self._made = 0  # two files from the same second would have the same name
        self._owner = "none"

    def attach(self, folder: Path) -> None:
        """Attach to a run folder: event files of its run, and no others, are removed when it starts or resumes."""
        self._owner = hashlib.sha256(run_id(folder).encode()).hexdigest()[:12]

    def restart(self, records: Iterable[Record]) -> None:
        """As in `Writer`; only the event files of this run are removed and written anew."""
        self.close()
        ours = re.compile(rf"events\.out\.tfevents\..*\.lopjax-{self._owner}-\d+")
        for path in self.folder.rglob("events.out.tfevents.*"):
            if ours.fullmatch(path.name) and path.is_file():
                path.unlink()
        self.write(records)

    def write(self, records: Iterable[Record]) -> None:
        """As in `Writer`; TensorBoard sees them within a second."""
        for record in records:
            name = lane_of(record, self._lane)
            if name not in self._open:
                suffix = f".lopjax-{self._owner}-{self._made}"
                self._open[name] = self._make(str(self.folder / name), flush_secs=1, filename_suffix=suffix)
                self._made += 1
            step = step_of(record, self._step)
            for tag, value in numbers_of(record, (*self._lane, *self._step)):
                self._open[name].add_scalar(tag, value, step)

    def close(self) -> None:
        """As in `Writer`."""
        for writer in self._open.values():
            writer.close()
        self._open.clear()
