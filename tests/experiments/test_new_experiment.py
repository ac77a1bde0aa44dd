"""A new experiment is one folder: it runs, resumes with the same bits, shows, sweeps, draws; nothing else changes.

The folder is written here, outside the repository, and found by its name.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]

TOY = '''"""Regression on an online stream: how fast does a tanh network learn a rotating plane wave?"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from experiments.kit.experiment import Experiment
from experiments.kit.terminal import Table
from lopjax.losses import mean_squared_error
from lopjax.models import mlp
from lopjax.plotting import band, new_figure
from lopjax.runs.schedule import Part
from lopjax.training import init_state, logs_of, make_chunk, online, over_lanes, start_lanes, train_step


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    width: int = 8
    """Hidden units."""
    rate: float = 0.05
    """Learning rate."""
    steps: int = 60
    """Steps of training, recorded every 20."""
    seeds: tuple[int, ...] = (0, 1)
    """One run each."""


def build(config, resources):
    if config.width < 1:
        raise ValueError(f"width={config.width}: must be at least 1")
    return mlp((2,), (config.width,), 1, activation="tanh")


def parts(config, model):
    optimizer = optax.sgd(config.rate)

    def draw(key, index):
        inputs = jax.random.normal(key, (16, 2))
        return inputs, jnp.sin(inputs @ jnp.array([[1.0], [0.5]]) + 0.01 * index)

    def step(state, drawn, key, index):
        state, seen = train_step(model, optimizer, state, drawn.batch, loss=mean_squared_error)
        return state, logs_of(seen, "loss")

    stream = online(draw)
    chunk, keys = make_chunk(step, stream), jax.vmap(jax.random.key)(jnp.array(config.seeds))
    start = lambda: start_lanes(over_lanes(lambda key: init_state(model.init(key), optimizer), 1)(keys))

    def train(number, lanes):
        lanes, logs = chunk(start() if number == 0 else lanes, keys, 20 * number, 20, stream.data)
        where = [{"seed": seed, "step": 20 * (number + 1)} for seed in config.seeds]
        return lanes, [{**here, "loss": float(loss)} for here, loss in zip(where, logs["loss"])]

    like, count = lambda: jax.eval_shape(start), len(config.seeds)
    made = [Part("train", 20 * count, partial(train, n), like, count, n == 0) for n in range(config.steps // 20)]
    return [*made[:-1], made[-1]._replace(keep=lambda lanes: {"network": lanes.state.variables})]


def summary(run):
    return [{"seed": seed, "loss": run.column("loss", seed=seed)[-1]} for seed in run.config["seeds"]]


def table(run):
    return Table("Regression", ("seed", "loss"), [(str(row["seed"]), f"{row['loss']:.4f}") for row in summary(run)])


def figures(run):
    figure, (axes,) = new_figure(1)
    band(axes, run.column("step", seed=0), [run.column("loss", seed=seed) for seed in run.config["seeds"]], "C0")
    return {"loss": figure}


EXPERIMENT = Experiment("toy", str(__doc__), {"quick": Config()}, build, parts, summary, table, figures)
'''
MAIN = "from experiments.kit.experiment import main\nfrom experiments.toy import EXPERIMENT\n\nmain(EXPERIMENT)\n"
KILLER = """
import sys
from lopjax.runs import Run
from experiments.kit.experiment import main
from experiments.toy import EXPERIMENT
number, done, checkpoint = int(sys.argv.pop(1)), 0, Run.checkpoint
def dying(self, *given, **named):
    global done
    done += 1
    if done == number:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    return checkpoint(self, *given, **named)
Run.checkpoint = dying
main(EXPERIMENT)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    (folder / "experiments" / "toy").mkdir(parents=True)
    (folder / "experiments" / "toy" / "__init__.py").write_text(TOY)
    (folder / "experiments" / "toy" / "__main__.py").write_text(MAIN)
    return folder


def call(home: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{home}{os.pathsep}{ROOT}",
        "JAX_COMPILATION_CACHE_DIR": str(home / "cache"),
    }
    done = subprocess.run([sys.executable, *arguments], cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr
    return done


def left(home: Path, name: str) -> list[bytes]:
    folder = home / "runs" / "toy" / name
    return [(folder / "metrics.jsonl").read_bytes(), (folder / "variables" / "network.npz").read_bytes()]


def test_the_new_experiment_is_small():
    assert len((TOY + MAIN).splitlines()) <= 80 + 8  # the paragraph of blank lines between functions is the formatter's
    assert sum(bool(line.strip()) for line in (TOY + MAIN).splitlines()) <= 80


@pytest.mark.slow
def test_it_runs_resumes_shows_and_draws(home):
    printed = call(home, "-m", "experiments.toy").stdout
    assert "Regression" in printed
    folder = home / "runs" / "toy" / "quick"
    assert {"loss.png", "loss.pdf", "summary.json", "metrics.jsonl"} <= {path.name for path in folder.iterdir()}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [20, 20, 40, 40, 60, 60]
    # Killed at every part, it ends with the bits of the run that was not.
    (home / "kill.py").write_text(KILLER)
    for part in (1, 3):
        done = call(home, "kill.py", str(part), "--name", f"killed_{part}", check=False)
        assert done.returncode == -9
        assert not (home / "runs" / "toy" / f"killed_{part}" / "summary.json").exists()
        call(home, "-m", "experiments.toy", "--name", f"killed_{part}", "--resume")
        assert left(home, f"killed_{part}") == left(home, "quick")
    assert "Regression" in call(home, "-m", "experiments.show", "runs/toy/quick").stdout
    assert "killed_3" in call(home, "-m", "experiments.show", "runs").stdout
    refused = call(home, "-m", "experiments.toy", "--width", "0", check=False)
    assert refused.returncode == 2
    assert "--width=0: must be at least 1" in refused.stderr


@pytest.mark.slow
def test_it_sweeps(home):
    pytest.importorskip("submitit")
    command = ("-m", "experiments.sweep", "toy", "--grid", "width=2,16", "--grid", "rate=0.05", "--name", "widths")
    call(home, *command)
    shown = call(home, "-m", "experiments.show", "runs/toy/widths").stdout
    assert "2 of 2 points complete" in shown
    losses = {}
    for width in (2, 16):
        for rate in ("0.05",):
            folder = home / "runs" / "toy" / "widths" / f"width={width},rate={rate}"
            losses[width, rate] = [row["loss"] for row in json.loads((folder / "summary.json").read_text())]
            for loss in losses[width, rate]:
                assert f"{loss:.4f}" in shown
    assert len({tuple(loss) for loss in losses.values()}) == 2
    assert np.isfinite(list(losses.values())).all()
    # Started again it shows what is there.
    again = call(
        home, "-m", "experiments.sweep", "toy", "--grid", "width=2,16", "--grid", "rate=0.05", "--name", "widths"
    )
    assert again.returncode == 0
