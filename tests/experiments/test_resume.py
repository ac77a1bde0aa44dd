"""A run that is killed and resumed ends with the bits of one that was not: in-process at every part, and by SIGKILL."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import cache

import jax
import numpy as np
import pytest

from experiments.cloning import EXPERIMENT
from experiments.cloning.__main__ import main
from experiments.cloning.config import Config
from experiments.cloning.parts import parts
from experiments.cloning.setup import build
from experiments.kit.flags import parse
from experiments.kit.networks import MLP
from experiments.kit.session import kept_records
from lopjax import runs
from lopjax.runs import checkpoints, open_run
from lopjax.runs.schedule import play

CONFIG = Config(
    dataset="digits", augment=False, net=MLP(widths=(4,)), label_noise=0.5, seeds=(0, 1),
    methods=("noisy_sgd", "adam"), unit="steps", base_length=8, clone_length=16, record_every=8,
    batch_size=16, learning_rate=0.3, noise_scale=0.1, probe_samples=40,
)  # fmt: skip
FLAGS = [
    *("--net.widths", "4", "--batch-size", "16", "--learning-rate", "0.3", "--noise-scale", "0.1"),
    *("--methods", "noisy_sgd", "adam", "--base-length", "8", "--clone-length", "160", "--record-every", "8"),
    *("--probe-samples", "40", "--name", "tiny"),
]


@cache
def compiled_parts():
    """They hold no state, so most runs here share them and what they have compiled."""
    return parts(CONFIG, build(CONFIG))


def play_all(folder, progress=lambda description, steps: None, own_parts=None) -> list[str]:
    """The whole run, or the rest of it; what is said of checkpoints."""
    said = []
    play(own_parts or compiled_parts(), None, folder, progress=progress, say=said.append)
    return said


class Killed(BaseException):
    """Ends a run as suddenly as a signal, from inside."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run leaves."""
    folder = open_run(tmp_path_factory.mktemp("whole") / "run", CONFIG)
    assert play_all(folder) == []
    return left_by(folder)


def left_by(folder) -> tuple[bytes, list[bytes], dict[str, list[bytes]]]:
    """Records, and the bits of the last checkpoint's arrays and of the variables that are kept."""
    newest = max(folder.checkpoint_folder.iterdir(), key=lambda path: int(path.stem.split("_")[1]))
    with np.load(newest) as archive:
        state = [archive[name].tobytes() for name in sorted(archive.files) if name != checkpoints.HEADER]
    data = runs.load(folder.folder)
    variables = {
        method: [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(data.variables(method))]
        for method in CONFIG.methods
    }
    return folder.metrics_path.read_bytes(), state, variables


def killed_before(number: int, folder, monkeypatch, during: str) -> None:
    """Run until just before something is done for the `number`-th time, in a way that leaves no time to clean up."""
    done = 0
    with monkeypatch.context() as patch:
        targets = {"append": (type(folder), "append"), "replace": (os, "replace"), "fsync": (os, "fsync")}
        target, name = targets[during]
        error = OSError(errno.ENOSPC, "No space left on device") if during == "fsync" else Killed()
        original = getattr(target, name)

        def counting(*args, **kwargs):
            nonlocal done
            done += 1
            if done == number:
                raise error
            return original(*args, **kwargs)

        patch.setattr(target, name, counting)
        with pytest.raises(type(error)):
            play_all(folder)


@pytest.mark.parametrize("during", [pytest.param("append", marks=pytest.mark.slow), "replace"])
def test_a_run_resumed_after_every_part_ends_with_the_same_bits(whole, tmp_path, monkeypatch, during):
    """Killed at each part in turn: before its records are there, or with its checkpoint written and not in place."""
    folder = open_run(tmp_path / "run", CONFIG)
    for _ in range(3):
        killed_before(2, folder, monkeypatch, during)
        folder = open_run(folder.folder, CONFIG, resume=True)
    steps = []
    # The last life is built anew, as by a new process.
    own_parts = parts(CONFIG, build(CONFIG)) if during == "append" else None
    assert play_all(folder, lambda description, steps_done: steps.append(steps_done), own_parts) == []
    assert left_by(folder) == whole
    assert sum(steps) == sum(part.steps for part in compiled_parts())


def test_what_stands_after_the_checkpoint_is_cut_off(whole, tmp_path, monkeypatch):
    folder = open_run(tmp_path / "run", CONFIG)
    killed_before(3, folder, monkeypatch, "replace")
    with folder.metrics_path.open("ab") as file:
        file.write(b'{"method": "noisy_sgd", "half a rec')
    play_all(folder)
    assert folder.metrics_path.read_bytes() == whole[0]


def test_a_damaged_checkpoint_is_passed_over_and_that_is_said(whole, tmp_path, monkeypatch):
    folder = open_run(tmp_path / "run", CONFIG)
    killed_before(5, folder, monkeypatch, "replace")
    path = folder.checkpoint_folder / "step_3.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    (reason,) = play_all(folder)
    assert "step_3.npz: damaged" in reason
    assert folder.metrics_path.read_bytes() == whole[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [5, 6])
def test_a_full_disk_loses_nothing_that_was_recorded(whole, tmp_path, monkeypatch, number):
    """While records are written, or a checkpoint: what is there can be read, and the run goes on from it."""
    folder = open_run(tmp_path / "run", CONFIG)
    killed_before(number, folder, monkeypatch, "fsync")
    records = runs.load(folder.folder).records
    assert len(records) == {5: 2, 6: 4}[number]  # those of a write that failed are cut off again
    assert records == [json.loads(line) for line in whole[0].splitlines()[: len(records)]]
    assert not list(folder.folder.rglob("*.partial"))
    play_all(folder)
    assert left_by(folder) == whole


def test_a_full_disk_is_said(tmp_path, capsys):
    folder = open_run(tmp_path / "run", CONFIG)
    with pytest.raises(SystemExit) as stop, kept_records("cloning", folder):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert stop.value.code == 2
    assert f"No space left on device; what was recorded is kept in {folder.folder}" in capsys.readouterr().err


def test_without_a_usable_checkpoint_the_command_says_why(tmp_path, monkeypatch, capsys):
    run = open_run(tmp_path / "cloning" / "tiny", build_config())
    run.append({"step": 1})
    run.checkpoint_folder.mkdir()
    (run.checkpoint_folder / "step_1.npz").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as stop:
        main(["--root", str(tmp_path), *FLAGS, "--resume"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "no checkpoint can be used" in error
    assert "step_1.npz: damaged" in error
    assert len(run.metrics_path.read_text().splitlines()) == 1


def build_config() -> Config:
    return parse(EXPERIMENT, FLAGS)[0]


KILLS = int(os.environ.get("LOPJAX_TEST_KILLS", "4"))


@pytest.mark.slow
def test_a_process_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    """SIGKILL, and now and then SIGTERM, to a real process, wherever it is; the last life is let live."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}

    def command(name: str) -> list[str]:
        return [sys.executable, "-m", "experiments.cloning", "--root", str(tmp_path / name), *FLAGS, "--resume"]

    def left(name: str) -> list[bytes]:
        folder = tmp_path / name / "cloning" / "tiny"
        return [path.read_bytes() for path in (folder / "metrics.jsonl", *sorted(folder.glob("variables/*.npz")))]

    subprocess.run(command("cold"), env=environment, check=True, capture_output=True)
    start = time.monotonic()
    subprocess.run(command("whole"), env=environment, check=True, capture_output=True)
    duration = time.monotonic() - start
    generator, killed, summary = random.Random(0), 0, tmp_path / "killed" / "cloning" / "tiny" / "summary.json"
    while killed < KILLS:
        process = subprocess.Popen(
            command("killed"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(generator.uniform(0.2, 0.9) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM if killed % 4 == 0 else signal.SIGKILL)
            killed += 1
        process.wait()
        if (summary.parent / "config.json").exists():
            runs.load(summary.parent)  # whatever it was doing, what it has recorded can be read
        if summary.exists():  # it came to its end between two kills: the next one starts anew
            assert left("killed") == left("whole")
            (tmp_path / "killed").rename(tmp_path / f"complete_{len(list(tmp_path.iterdir()))}")
    subprocess.run(command("killed"), env=environment, check=True, capture_output=True)
    assert left("killed") == left("whole")
    assert len(left("whole")) == 3
    assert not (summary.parent / "checkpoints").exists()
    jax.clear_caches()
