"""`experiments.show` on runs that are complete, interrupted, running, empty, or none at all."""

import json
import os
import time
from pathlib import Path

import pytest

from experiments.cloning.config import Config
from experiments.cloning.report import summarise
from experiments.show import main
from lopjax import runs
from lopjax.runs import Run, open_run

CONFIG = Config(
    methods=("sgd", "noisy_sgd"), seeds=(0, 1), unit="steps", base_length=10, clone_length=20, record_every=10
)


def records(method: str, escapes: bool) -> list[dict]:
    """What a lane of the cloning experiment records, seeds side by side; made up."""
    rows = []
    for phase, step in (("base", 10), ("clone", 0), ("clone", 10), ("clone", 20)):
        for seed in CONFIG.seeds:
            row = {"method": method, "seed": seed, "phase": phase, "step": step, "steps": float(step)}
            if phase == "clone":
                r2 = 1.0 - escapes * step / 40
                row |= {"clone/r2_forward/mean": r2, "clone/bc_residual": 1 - r2, "logit_difference": 0.0}
                row |= {f"{name}/{metric}": 2.0 for name in ("base", "clone") for metric in ("test_accuracy",)}
                row |= {f"{name}/effective_rank/mean": 7.0 for name in ("base", "clone")}
            if (phase, step) != ("clone", 0):
                row |= {f"{name}/train_loss": 3.0 for name in ("base", "clone")}
            rows.append(row)
    return rows


SGD, NOISY = records("sgd", False), records("noisy_sgd", True)


@pytest.fixture
def folder(tmp_path) -> Run:
    run = open_run(tmp_path / "cloning" / "mine", CONFIG, experiment="cloning")
    runs.write_json(run.folder / "schedule.json", {"steps": 120, "records": 16, "parts": []})  # as `play` does first
    return run


def shown(capsys, *arguments: str | Path) -> str:
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_a_complete_run(folder, capsys):
    folder.append(*SGD, *NOISY)
    folder.finish(summarise(runs.load(folder.folder)))
    text = shown(capsys, folder.folder)
    assert "complete, 16 records" in text
    assert text.count("escaped") == 3  # title, column, noisy SGD
    for name in ("cloning.png", "cloning.pdf", "summary.json"):
        assert str(folder.folder / name) in text.replace("\n", "")
        assert (folder.folder / name).stat().st_size > 0


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 9, 11, 16])
def test_a_run_that_is_not_complete_shows_what_there_is(folder, capsys, number):
    """Cut anywhere: in the base, with seeds a record apart, before the second method, with the last line half there."""
    folder.append(*(SGD + NOISY)[:number])
    with folder.metrics_path.open("a") as file:
        file.write('{"method": "sgd", "se')
    text = shown(capsys, folder.folder)
    assert f"not complete, {number} of 16 records" in text
    assert ("not started" in text) == (number <= 8)
    assert ("not cloned yet" in text) == (number <= 3 or 8 < number <= 11)
    assert (folder.folder / "cloning.png").exists()
    assert not (folder.folder / "summary.json").exists()


def test_a_run_without_records_says_so(folder, capsys):
    assert shown(capsys, folder.folder).strip() == f"{folder.folder}: not complete, none of 16 records yet"


def test_a_seed_that_is_not_finite_is_shown(folder, capsys):
    frozen = [{**row, "frozen_at": 7} for row in records("sgd", False)[:2]]
    folder.append(*frozen, *NOISY)
    folder.finish(summarise(runs.load(folder.folder)))
    text = shown(capsys, folder.folder)
    assert "diverged at 7" in text
    assert "escaped" in text


def test_runs_below_a_folder_are_listed(folder, capsys, tmp_path):
    folder.append(*SGD)
    other = open_run(tmp_path / "cloning" / "other", CONFIG)  # no name of an experiment: that of the folder above
    open_run(tmp_path / "elsewhere" / "third", CONFIG)
    text = shown(capsys, tmp_path)
    assert len([line for line in text.splitlines() if "complete" in line]) >= 1
    assert "8 of 16" in text
    assert other.folder.name in text
    assert "not started" in text
    assert "elsewhere" in text


def test_it_shows_again_until_the_run_is_complete(folder, capsys, monkeypatch):
    folder.append(*SGD)
    waits = []

    def wait(seconds):
        waits.append(seconds)
        folder.append(*NOISY) if len(waits) == 1 else folder.finish(summarise(runs.load(folder.folder)))

    monkeypatch.setattr(time, "sleep", wait)
    text = shown(capsys, folder.folder, "--every", "30")
    assert waits == [30, 30]
    assert [text.count(words) for words in ("8 of 16 records", "16 of 16 records", "complete, 16 records")] == [1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no folder given"),
        (("nothing",), "nothing: not a run folder"),
        ((".", "--every", "0"), "--every=0: must be a positive number"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_run_of_another_program_is_refused(tmp_path, capsys):
    folder = open_run(tmp_path / "cloning" / "mine", CONFIG, experiment="baking")
    assert json.loads((folder.folder / "config.json").read_text())["experiment"] == "baking"
    with pytest.raises(SystemExit):
        main([os.fspath(folder.folder)])
    assert "experiment='baking': there is no package experiments.baking with an EXPERIMENT" in capsys.readouterr().err
