"""Event files read back as TFRecords, apart from the library that wrote them, against `metrics.jsonl`."""

import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from lopjax import runs
from lopjax.runs.writers import TensorBoardWriter


@dataclass(frozen=True)
class Config:
    rate: float = 0.5


RECORDS = [
    {"method": method, "seed": seed, "phase": "clone", "step": step, "loss": 0.5 * step + seed, "rank": 3.0}
    for step in (0, 10, 20)
    for method in ("sgd", "adam")
    for seed in (0, 1)
]


def scalars(folder: Path) -> dict[tuple[str, str, int], float]:
    """`{(lane, tag, step): value}` of all event files below a folder; a value that is there twice is an error."""
    found = {}
    for path in folder.rglob("events.out.*"):
        content, position = path.read_bytes(), 0
        while position < len(content):
            (length,) = struct.unpack_from("<Q", content, position)
            event = Event.FromString(content[position + 12 : position + 12 + length])
            position += 16 + length
            for value in event.summary.value:
                key = (str(path.parent.relative_to(folder)), value.tag, event.step)
                assert key not in found
                found[key] = value.simple_value
    return found


def expected(records) -> dict[tuple[str, str, int], float]:
    return {
        (f"{row['method']}/{row['seed']}/{row['phase']}", tag, row["step"]): row[tag]
        for row in records
        for tag in ("loss", "rank")
    }


def test_what_is_recorded_is_written_and_a_resumed_run_repeats_nothing(tmp_path):
    folder = runs.open_run(tmp_path / "run", Config())
    folder = folder._replace(writers=(TensorBoardWriter(folder.folder / "tensorboard"),))
    assert folder.restore(lambda step: {}) is None
    folder.append(*RECORDS[:4])
    folder.checkpoint(1, {})
    folder.append(*RECORDS[4:])
    folder.writers[0].close()
    assert scalars(folder.folder / "tensorboard") == expected(RECORDS)
    # Killed now, it goes on from the checkpoint, whose records are all that is left.
    again = runs.open_run(tmp_path / "run", Config(), resume=True)
    again = again._replace(writers=(TensorBoardWriter(again.folder / "tensorboard"),))
    assert again.restore(lambda step: {}).step == 1
    again.writers[0].close()
    assert scalars(folder.folder / "tensorboard") == expected(RECORDS[:4])
    again.append(*RECORDS[4:])
    again.finish(None)
    assert scalars(folder.folder / "tensorboard") == expected(RECORDS)


def test_nested_numbers_are_written_and_all_else_is_left_out(tmp_path):
    writer = TensorBoardWriter(tmp_path / "events")
    record = {
        "task": 1,
        "epoch": 3,
        "report": {"verdict": "SADDLE", "n_plus": 4},
        "units": [1.0],
        "ok": True,
        "x": None,
    }
    writer.write([record])
    writer.close()
    assert scalars(tmp_path / "events") == {("1", "report/n_plus", 3): 4.0}


def test_without_tensorboardx_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'lopjax\[tensorboard\]'"):
        TensorBoardWriter(tmp_path)


def test_another_process_writes_nothing(tmp_path):
    runs.open_run(tmp_path / "run", Config()).append(*RECORDS)
    follower = runs.follow_run(tmp_path / "run", Config(), is_complete=False)
    before = sorted((path, path.stat().st_size) for path in tmp_path.rglob("*"))
    follower.append({"step": 1})
    follower.checkpoint(1, {})
    follower.keep("network", {})
    follower.finish({})
    assert sorted((path, path.stat().st_size) for path in tmp_path.rglob("*")) == before
