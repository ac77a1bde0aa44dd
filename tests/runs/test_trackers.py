"""Modules with init, log and finish: trackio for real, read back from its database, and one like wandb made up here."""

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lopjax import runs
from lopjax.runs.trackers import ModuleWriter
from lopjax.runs.writers import TensorBoardWriter, writer_of


@dataclass(frozen=True)
class Config:
    rate: float = 0.5
    clip_norm: float = np.inf


RECORDS = [
    {"method": method, "seed": seed, "phase": "clone", "step": step, "loss": 0.5 * step + seed, "text": "x"}
    for step in (0, 10, 20)
    for method in ("sgd", "adam")
    for seed in (0, 1)
]


class Tracker(ModuleType):
    """What wandb is to a caller: runs by id, one step that only grows, and metrics with axes of their own."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.logged: dict[str, list[dict[str, float]]] = {}
        self.axes: dict[str, str | None] = {}
        self.calls: list[dict[str, Any]] = []
        self.current: str | None = None

    def init(self, project=None, name=None, id=None, config=None, resume=None, mode="online"):
        self.calls.append(
            {"project": project, "name": name, "id": id, "config": config, "resume": resume, "mode": mode}
        )
        if id not in self.logged or resume != "allow":
            self.logged[id] = []
        self.current = id
        return self

    def define_metric(self, name, step_metric=None):
        self.axes[name] = step_metric

    def log(self, data, step=None):
        assert step is None
        self.logged[self.current].append(data)

    def finish(self):
        self.current = None


@pytest.fixture
def tracker(monkeypatch) -> Tracker:
    made = Tracker("wandb_like")
    monkeypatch.setitem(sys.modules, "wandb_like", made)
    return made


def expected(records) -> list[dict[str, float]]:
    lanes = [f"{row['method']}/{row['seed']}/{row['phase']}" for row in records]
    return [{f"{lane}/step": row["step"], f"{lane}/loss": row["loss"]} for lane, row in zip(lanes, records)]


def opened(folder, **settings) -> runs.Run:
    run = runs.open_run(folder, Config(), resume=True, experiment="study")
    return run._replace(writers=(writer_of("wandb_like", run.folder, **settings),))


def test_a_resumed_run_goes_on_there_and_repeats_nothing(tmp_path, tracker):
    run = opened(tmp_path / "quick", mode="offline")
    run.restore(lambda step: {})
    run.append(*RECORDS[:4])
    run.checkpoint(1, {})
    run.append(*RECORDS[4:7])
    # Killed now: it records the same again, from the checkpoint on.
    again = opened(tmp_path / "quick", mode="offline")
    assert again.restore(lambda step: {}).step == 1
    again.append(*RECORDS[4:8])
    again.append(*RECORDS[8:])
    again.finish(None)
    (identity,) = tracker.logged
    assert tracker.logged[identity] == expected(RECORDS)
    assert tracker.axes["sgd/0/clone/*"] == "sgd/0/clone/step"
    assert len(tracker.calls) == 2
    for call in tracker.calls:
        assert call["config"] == {"rate": 0.5, "clip_norm": np.inf}
        assert (call["project"], call["resume"], call["mode"]) == ("study", "allow", "offline")
        assert call["id"] == identity
        assert call["name"] == f"quick-{identity[:6]}"


def test_another_destination_gets_everything_and_a_lost_checkpoint_repeats_nothing(tmp_path, tracker):
    run = opened(tmp_path / "quick")
    run.append(*RECORDS)
    run.close()
    again = opened(tmp_path / "quick")
    assert again.restore(lambda step: {}) is None  # from the start
    again.append(*RECORDS)
    again.close()
    assert list(tracker.logged.values()) == [expected(RECORDS)]
    other = opened(tmp_path / "quick", id="other")
    other.restore(lambda step: {})
    other.append(*RECORDS)
    assert tracker.logged["other"] == expected(RECORDS)


def test_a_module_gets_numbers_of_every_kind_and_records_without_a_lane_or_a_step(tmp_path, tracker):
    writer = ModuleWriter("wandb_like", id="alone")
    writer.write([{"loss": jnp.float32(0.5), "rank": np.array(3), "report": {"n": np.int64(2)}, "none": None}])
    writer.restart([{"loss": 0.5}, {"epoch": jnp.int32(3), "loss": 0.25}])
    writer.close()
    writer.close()
    assert tracker.logged["alone"] == [{"loss": 0.5, "rank": 3.0, "report/n": 2.0}, {"epoch": 3, "loss": 0.25}]


def test_what_is_missing_is_named(tmp_path, tracker, monkeypatch):
    for name, error, message in (
        (
            "no_such_tracker",
            ImportError,
            r"writer 'no_such_tracker': no module 'no_such_tracker' is installed; pip install",
        ),
        ("json", ValueError, r"writer 'json': this module has no init, log, finish; a tracker has init, log, finish"),
        ("", ValueError, r"writer '': must be 'tensorboard' or the name of a module"),
        ("../wandb", ValueError, r"writer '../wandb': must be 'tensorboard' or the name of a module"),
    ):
        with pytest.raises(error, match=message):
            writer_of(name, tmp_path)
    with pytest.raises(ValueError, match=r"wandb_like.init has no argument entity; it has \['config', 'id', 'mode'"):
        writer_of("wandb_like", tmp_path, entity="me")
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'lopjax\[tensorboard\]'"):
        writer_of("tensorboard", tmp_path)


def test_tensorboard_goes_into_the_run_folder(tmp_path):
    writer = writer_of("tensorboard", tmp_path)
    assert isinstance(writer, TensorBoardWriter)
    assert writer.folder == tmp_path / "tensorboard"


PROGRAM = """
import json, os, signal, socket, sys, warnings
warnings.simplefilter("ignore")
def refused(*args, **kwargs): raise AssertionError(f"tried the network: {args}")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refused
from dataclasses import dataclass
from lopjax import runs
from lopjax.runs.writers import writer_of
Config = dataclass(frozen=True)(type("Config", (), {"__annotations__": {"rate": float}, "rate": 0.5}))
folder, life = sys.argv[1], sys.argv[2]
records = json.loads(sys.stdin.read())
run = runs.open_run(folder, Config(), resume=True, experiment="study")
run = run._replace(writers=(writer_of("trackio", run.folder, auto_log_cpu=False, auto_log_gpu=False),))
run.restore(lambda step: {})
if life == "first":
    run.append(*records[:4])
    run.checkpoint(1, {})
    run.append(*records[4:7])
    run.writers[0].close()
    os.kill(os.getpid(), signal.SIGKILL)
run.append(*records[4:])
run.finish(None)
"""


@pytest.mark.slow
def test_trackio_offline_has_each_record_of_a_killed_and_resumed_run_once(tmp_path):
    pytest.importorskip("trackio")
    environment = {
        **os.environ,
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
        "JAX_PLATFORMS": "cpu",
    }
    for life, code in (("first", -9), ("second", 0)):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "quick"), life],
            input=json.dumps(RECORDS), env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "network" not in done.stderr
    found = {}
    with sqlite3.connect(tmp_path / "trackio" / "study.db") as database:
        for run, step, metrics in database.execute("SELECT run_name, step, metrics FROM metrics"):
            for name, value in json.loads(metrics).items():
                assert (run, name, step) not in found
                found[run, name, step] = value
    (name,) = {run for run, _, _ in found}
    assert name.startswith("quick-")
    assert found == {
        (name, f"{row['method']}/{row['seed']}/{row['phase']}/loss", row["step"]): row["loss"] for row in RECORDS
    }
