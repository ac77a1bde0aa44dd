"""Other places that the records of a run are shown in while it goes on. `metrics.jsonl` stays what is true.

A writer is anything with the three methods of `Writer`; `Run.writers` holds those of a run. One that has a method
`attach(folder)` is told the run folder before anything else.
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
    """Told of the records of a run: plain JSON, but that numbers may be infinite or NaN."""

    def restart(self, records: Iterable[Record]) -> None:
        """Forget all that was written, and write these: a run begins, or goes on from where it was cut back to."""
        ...

    def write(self, records: Iterable[Record]) -> None:
        """Records that have been appended to `metrics.jsonl`."""
        ...

    def close(self) -> None:
        """Write what is still held back: the run is complete. More may follow all the same."""
        ...


def writer_of(name: str, run_folder: Path | str, **settings: Any) -> Writer:
    """The writer of a name, for one run.

    Args:
        name: `"tensorboard"`, whose event files go into the folder `tensorboard` of the run; or a module with `init`,
            `log` and `finish`, such as `"wandb"` or `"trackio"`.
        run_folder: the run's.
        settings: arguments of `TensorBoardWriter` (another `folder`, for instance) or of the module's `init`.

    Raises:
        ImportError: it is not installed; says how to install it.
        ValueError: the name or a setting cannot be used; says what is missing.
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

    The folder may be shared: with other runs, and with anything else. Event files carry the id of the run that wrote
    them, and only those of the same run are ever removed.

    Attributes:
        folder: where the event files go, one folder per lane: `noisy_sgd/0/clone`.
    """

    def __init__(self, folder: Path | str, lane: Sequence[str] = LANE, step: Sequence[str] = STEP) -> None:
        """Prepare to write; nothing is written before the first record.

        Args:
            folder: where.
            lane: fields whose values name the curve; those that a record lacks are left out.
            step: fields that count; the first that a record has is the horizontal axis.

        Raises:
            ImportError: tensorboardX is not installed; says how to install it.
            ValueError: the folder is the current one, or above it.
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
        self._made = 0  # two files of one second would have one name
        self._owner = "none"

    def attach(self, folder: Path) -> None:
        """Belong to a run folder: event files of its run, and no others, are removed when it begins or goes on."""
        self._owner = hashlib.sha256(run_id(folder).encode()).hexdigest()[:12]

    def restart(self, records: Iterable[Record]) -> None:
        """As in `Writer`; the event files of this run are removed and written anew, and nothing else is touched."""
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
