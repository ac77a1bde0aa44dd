"""A new experiment is one folder: it runs, resumes with the same bits, shows, sweeps, draws; nothing else changes.

It is the experiment of the tutorial, written outside the repository, and found by its name.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NOTEBOOK = (ROOT / "notebooks" / "your_own_experiment.py").read_text(encoding="utf-8")
NAME = "one_after_another"
(EXPERIMENT,) = re.findall(r"^EXPERIMENT = '{3}\n(.*?)'{3}", NOTEBOOK, re.S | re.M)
(MAIN,) = re.findall(r'^MAIN = "{3}\n(.*?)"{3}', NOTEBOOK, re.S | re.M)
KILLER = """
import sys
from lopjax.runs import Run
from experiments.kit.experiment import main
from experiments.one_after_another import EXPERIMENT
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
    package = folder / "experiments" / NAME
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(EXPERIMENT)
    (package / "__main__.py").write_text(MAIN)
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
    folder = home / "runs" / NAME / name
    return [(folder / "metrics.jsonl").read_bytes(), (folder / "variables" / "network.npz").read_bytes()]


def test_the_new_experiment_has_80_lines_as_the_formatter_leaves_them(home):
    files = [home / "experiments" / NAME / name for name in ("__init__.py", "__main__.py")]
    assert sum(len(file.read_text().splitlines()) for file in files) <= 80
    ruff = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", "--config", str(ROOT / "pyproject.toml"), *map(str, files)],
        capture_output=True,
        text=True,
    )
    assert ruff.returncode == 0, ruff.stdout + ruff.stderr


@pytest.mark.slow
def test_it_runs_resumes_shows_and_draws(home):
    printed = call(home, "-m", f"experiments.{NAME}").stdout
    assert "Online accuracy" in printed
    folder = home / "runs" / NAME / "quick"
    assert {"accuracy.png", "accuracy.pdf", "summary.json", "metrics.jsonl"} <= {path.name for path in folder.iterdir()}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(record["task"], record["seed"]) for record in records] == [(t, s) for t in range(6) for s in range(3)]
    # Killed at the first part or the last, it ends with the bits of the run that was not.
    (home / "kill.py").write_text(KILLER)
    for part in (1, 6):
        done = call(home, "kill.py", str(part), "--name", f"killed_{part}", check=False)
        assert done.returncode == -9
        assert not (home / "runs" / NAME / f"killed_{part}" / "summary.json").exists()
        call(home, "-m", f"experiments.{NAME}", "--name", f"killed_{part}", "--resume")
        assert left(home, f"killed_{part}") == left(home, "quick")
    assert "Online accuracy" in call(home, "-m", "experiments.show", f"runs/{NAME}/quick").stdout
    assert "killed_6" in call(home, "-m", "experiments.show", "runs").stdout
    refused = call(home, "-m", f"experiments.{NAME}", "--width", "0", check=False)
    assert refused.returncode == 2
    assert "--width=0: must be at least 1" in refused.stderr


@pytest.mark.slow
def test_it_sweeps(home):
    pytest.importorskip("submitit")
    command = ("-m", "experiments.sweep", NAME, "--grid", "width=2,16", "--name", "widths", "--", "--tasks", "2")
    call(home, *command)
    shown = call(home, "-m", "experiments.show", f"runs/{NAME}/widths").stdout
    assert "2 of 2 points complete" in shown
    scores = []
    for width in (2, 16):
        summary = home / "runs" / NAME / "widths" / f"width={width}" / "summary.json"
        scores.append([row["last"] for row in json.loads(summary.read_text())])
        assert all(str(score) in shown for score in scores[-1])
    assert scores[0] != scores[1]
    # Started again it finds everything done.
    call(home, *command)
