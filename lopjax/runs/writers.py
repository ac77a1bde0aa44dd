"""Other places that the records of a run are shown in while it goes on. `metrics.jsonl` stays what is true.

A writer is anything with the three methods of `Writer`; `Run.writers` holds those of a run. One for Weights & Biases is
ten lines around `wandb.log`, and belongs to whoever has an account there.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

Record = Mapping[str, Any]


class Writer(Protocol):
    """Told of the records of a run."""

    def restart(self, records: Iterable[Record]) -> None:
        """Forget all that was written, and write these: a run begins, or goes on from where it was cut back to."""
        ...

    def write(self, records: Iterable[Record]) -> None:
        """Records that have been appended to `metrics.jsonl`."""
        ...

    def close(self) -> None:
        """Write what is still held back: the run is complete. More may follow all the same."""
        ...


class TensorBoardWriter:
    """TensorBoard event files, through tensorboardX: `tensorboard --logdir <folder>`.

    Every number of a record becomes a scalar under its own name, nested ones under `a/b`; strings, lists and missing
    numbers are left out. Records that agree in the lane fields share a curve.

    Attributes:
        folder: where the event files go, one folder a lane: `noisy_sgd/0/clone`.
    """

    def __init__(
        self,
        folder: Path | str,
        lane: Sequence[str] = ("method", "seed", "phase", "task"),
        step: Sequence[str] = ("step", "epoch"),
    ) -> None:
        """Prepare to write; nothing is written before the first record.

        Args:
            folder: where.
            lane: fields whose values name the curve; those that a record lacks are left out.
            step: fields that count; the first that a record has is the horizontal axis.

        Raises:
            ImportError: tensorboardX is not installed; says how to install it.
        """
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard files need tensorboardX: pip install 'lopjax[tensorboard]'") from error
        self.folder = Path(folder)
        self._make, self._lane, self._step = SummaryWriter, tuple(lane), tuple(step)
        self._open: dict[str, Any] = {}
        self._made = 0  # two files of one second would have one name

    def restart(self, records: Iterable[Record]) -> None:
        """As in `Writer`; the event files there are removed and written anew."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.write(records)

    def write(self, records: Iterable[Record]) -> None:
        """As in `Writer`; TensorBoard sees them within a second."""
        for record in records:
            name = "/".join(str(record[field]) for field in self._lane if field in record)
            if name not in self._open:
                self._open[name] = self._make(str(self.folder / name), flush_secs=1, filename_suffix=f".{self._made}")
                self._made += 1
            step = next((int(record[field]) for field in self._step if field in record), None)
            for tag, value in _numbers(record):
                if tag not in self._lane and tag not in self._step:
                    self._open[name].add_scalar(tag, value, step)

    def close(self) -> None:
        """As in `Writer`."""
        for writer in self._open.values():
            writer.close()
        self._open.clear()


def _numbers(record: Record, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every finite or infinite number of a record under its name; truth values are none."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, Real) and not isinstance(value, bool):
            yield prefix + name, float(value)
