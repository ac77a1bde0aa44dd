"""Event files read back as TFRecords, apart from the library that wrote them, against `metrics.jsonl`."""

import json
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
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


KINDS = {
    "python": 1.5,
    "integer": 2,
    "numpy_scalar": np.float32(1.5),
    "numpy_integer": np.int64(3),
    "numpy_0d": np.array(1.5),
    "jax_scalar": jnp.float32(1.5),
    "jax_integer": jnp.int32(4),
    "half": jnp.bfloat16(0.5),
    "nested": {"jax": jnp.float32(2.5)},
}
OTHERS = {"text": "x", "flag": jnp.bool_(True), "numpy_flag": np.bool_(True), "none": None, "vector": jnp.ones(1)}


class Listed:
    """A writer that keeps what it is told."""

    def __init__(self):
        self.records = []

    def restart(self, records):
        self.records = list(records)

    def write(self, records):
        self.records += records

    def close(self):
        pass


def test_every_number_that_is_recorded_reaches_every_writer(tmp_path):
    listed, events = Listed(), TensorBoardWriter(tmp_path / "events")
    run = runs.open_run(tmp_path / "run", Config())._replace(writers=(listed, events))
    run.append({"seed": jnp.int32(1), "step": jnp.int32(7), **KINDS, **OTHERS})
    run.close()
    expected = {name: float(value) for name, value in KINDS.items() if name != "nested"} | {"nested/jax": 2.5}
    assert scalars(tmp_path / "events") == {("1", name, 7): value for name, value in expected.items()}
    (record,) = listed.records
    assert json.loads(run.metrics_path.read_text()) == record
    assert {type(value) for value in record.values()} == {int, float, dict, str, bool, type(None), list}
    # Told directly, without a run, it is the same.
    alone = TensorBoardWriter(tmp_path / "alone")
    alone.write([{"seed": jnp.int32(1), "step": np.array(7), **KINDS, **OTHERS}])
    alone.close()
    assert scalars(tmp_path / "alone") == scalars(tmp_path / "events")


def test_infinities_and_nan_reach_a_writer_and_are_null_on_disk(tmp_path):
    listed = Listed()
    run = runs.open_run(tmp_path / "run", Config())._replace(writers=(listed,))
    run.append({"loss": jnp.inf, "rank": np.float32(np.nan)})
    np.testing.assert_equal(listed.records, [{"loss": np.inf, "rank": np.nan}])
    assert runs.load(run.folder).records == [{"loss": None, "rank": None}]


def test_of_a_shared_folder_a_run_removes_only_its_own_event_files(tmp_path):
    logdir = tmp_path / "tb"
    foreign = {
        "thesis.txt": "precious",
        "last_year/events.out.tfevents.1": "x",
        "adam/0/clone/events.out.tfevents.2": "y",
    }
    for name, content in foreign.items():
        (logdir / name).parent.mkdir(parents=True, exist_ok=True)
        (logdir / name).write_text(content)
    for name in ("first", "second"):
        run = runs.open_run(tmp_path / name, Config())._replace(writers=(TensorBoardWriter(logdir),))
        run.restore(lambda step: {})
        run.append({"method": name, "step": 0, "loss": 1.0}, {"step": 0, f"of_{name}": len(name)})
        run.checkpoint(1, {})
        run.append({"method": name, "step": 1, "loss": 0.5})
        run.close()
    # The first goes on, in another place by now; the second's files stay what they were.
    (tmp_path / "first").rename(tmp_path / "renamed")
    again = runs.open_run(tmp_path / "renamed", Config(), resume=True)._replace(writers=(TensorBoardWriter(logdir),))
    again.restore(lambda step: {})
    again.close()
    for name, content in foreign.items():
        assert (logdir / name).read_text() == content
        (logdir / name).unlink()
    found = scalars(logdir)
    assert [found.pop((".", f"of_{name}", 0)) for name in ("first", "second")] == [5.0, 6.0]
    assert found == {("first", "loss", 0): 1.0, ("second", "loss", 0): 1.0, ("second", "loss", 1): 0.5}


@pytest.mark.parametrize("folder", [".", "..", "", "/"])
def test_the_current_folder_is_no_place_for_event_files(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is the current folder or one above it"):
        TensorBoardWriter(folder)


@pytest.mark.parametrize("method", ["../../outside", "/etc", "..", "a/b"])
def test_no_name_of_a_lane_leads_out_of_the_folder(tmp_path, method):
    writer = TensorBoardWriter(tmp_path / "inner" / "events")
    writer.write([{"method": method, "loss": 1.0}])
    writer.close()
    assert len(scalars(tmp_path / "inner" / "events")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


def test_another_process_writes_nothing(tmp_path):
    runs.open_run(tmp_path / "run", Config()).append(*RECORDS)
    follower = runs.follow_run(tmp_path / "run", Config(), is_complete=False)
    before = sorted((path, path.stat().st_size) for path in tmp_path.rglob("*"))
    follower.append({"step": 1})
    follower.checkpoint(1, {})
    follower.keep("network", {})
    follower.finish({})
    assert sorted((path, path.stat().st_size) for path in tmp_path.rglob("*")) == before
