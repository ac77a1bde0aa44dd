"""The cloning experiment from command to files, in seconds: what methods do to clones; what may not change a result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import experiments.kit.experiment
from experiments.cloning.__main__ import main
from experiments.cloning.config import PRESETS, Config
from experiments.cloning.parts import parts
from experiments.cloning.report import fate, summarise, table
from experiments.cloning.setup import build
from experiments.kit.networks import MLP
from lopjax.runs import RunData, load, open_run
from lopjax.runs.schedule import play

ARGUMENTS = [
    "--fused",
    *("--net.widths", "4", "--net.norm", "none", "--batch-size", "16", "--learning-rate", "0.3", "--name", "tiny"),
    *("--base-length", "8", "--clone-length", "24", "--record-every", "8", "--probe-samples", "40"),
    *("--noise-scale", "0.1", "--dropout", "0.3"),
]
METHODS, SEEDS = ("sgd", "noisy_sgd", "dropout", "adam"), (0, 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def recorded(root) -> RunData:
    main(["--root", str(root), *ARGUMENTS])
    return load(root / "cloning" / "tiny")


# --- From the command to its files --------------------


def test_every_method_and_seed_is_recorded_at_every_length(recorded):
    for method in METHODS:
        for seed in SEEDS:
            steps = {
                phase: recorded.column("step", method=method, seed=seed, phase=phase) for phase in ("base", "clone")
            }
            np.testing.assert_array_equal(steps["base"], [8])
            np.testing.assert_array_equal(steps["clone"], [0, 8, 16, 24])
    assert len(recorded.records) == len(METHODS) * len(SEEDS) * 5
    names = {name for record in recorded.records for name in record}
    for network in ("base", "clone"):
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "effective_rank/mean",
                     "dead_fraction/hidden_0", "duplicate_fraction/mean"):  # fmt: skip
            assert f"{network}/{name}" in names
    for name in (
        "r2_forward/mean",
        "r2_backward/mean",
        "re_residual",
        "ce_residual",
        "bc_residual",
        "tangency_residual",
    ):
        assert f"clone/{name}" in names


def test_at_cloning_the_clone_is_the_base(recorded):
    for method in METHODS:
        where = {"method": method, "phase": "clone", "step": 0}
        np.testing.assert_array_equal(recorded.column("clone/r2_forward/mean", **where), 1)
        np.testing.assert_array_equal(recorded.column("clone/bc_residual", **where), 0)
        np.testing.assert_allclose(recorded.column("logit_difference", **where), 0, atol=1e-5)
        for name in ("test_loss", "test_accuracy"):
            base, clone = (recorded.column(f"{network}/{name}", **where) for network in ("base", "clone"))
            np.testing.assert_allclose(base, clone, rtol=1e-5)


@pytest.mark.parametrize("method", ["sgd", "adam"])
def test_sgd_and_adam_keep_exact_clones(recorded, method):
    where = {"method": method, "phase": "clone"}
    np.testing.assert_array_equal(recorded.column("clone/r2_forward/mean", **where), 1)
    np.testing.assert_array_equal(recorded.column("clone/bc_residual", **where), 0)
    assert recorded.column("clone/tangency_residual", **where).max() < 1e-6
    # They have trained: the clone is no longer the base, whose steps are of another size.
    assert recorded.column("logit_difference", **where, step=24).min() > 1e-4


@pytest.mark.parametrize("method", ["noisy_sgd", "dropout"])
def test_noise_and_dropout_break_clones(recorded, method):
    where = {"method": method, "phase": "clone", "step": 24}
    assert recorded.column("clone/r2_forward/mean", **where).max() < 0.999
    for residual in ("re", "ce", "bc", "tangency"):
        assert recorded.column(f"clone/{residual}_residual", **where).min() > 1e-4


def test_methods_see_the_same_network_and_the_same_batches(recorded):
    """Noise acts on the clone alone, so the bases of SGD and noisy SGD are one; seeds differ."""
    bases = {method: recorded.column("base/test_loss", method=method) for method in METHODS}
    np.testing.assert_array_equal(bases["sgd"], bases["noisy_sgd"])
    assert (bases["sgd"] != bases["dropout"]).all()
    assert (recorded.column("base/test_loss", seed=0) != recorded.column("base/test_loss", seed=1)).all()


def test_the_folder_holds_what_the_run_was_and_what_came_out(recorded):
    assert sorted(path.name for path in recorded.folder.iterdir()) == [
        *("cloning.pdf", "cloning.png", "config.json", "metrics.jsonl", "networks", "probe.npz", "schedule.json"),
        *("summary.json", "variables"),
    ]
    assert recorded.config["net"]["widths"] == [4]
    # What was trained can be run again from the folder alone.
    inputs, labels = recorded.probe()
    for method in METHODS:
        variables = recorded.variables(method)
        for name in ("base", "clone"):
            of_seed = jax.tree.map(lambda leaf: leaf[1], variables[name])
            logits = recorded.model(name).apply(of_seed, inputs).logits
            assert logits.shape == (40, 10) == (len(labels), 10)
    assert [(row["method"], row["seed"]) for row in recorded.summary] == [(m, s) for m in METHODS for s in SEEDS]
    assert json.loads(json.dumps(summarise(recorded), default=float)) == recorded.summary


def test_a_second_call_shows_the_run_without_training(root, recorded, monkeypatch, capsys):
    monkeypatch.setattr(experiments.kit.experiment, "run", lambda *args: pytest.fail("training began"))
    before = (recorded.folder / "metrics.jsonl").read_bytes()
    main(["--root", str(root), *ARGUMENTS])
    captured = capsys.readouterr()
    assert "this config has been run; --overwrite runs it again" in captured.err
    for word in ("sgd", "noisy_sgd", "dropout", "adam", "stayed, exactly", "cloning.png", "At cloning: R² ≥ 1.0000000"):
        assert word in captured.out
    assert (recorded.folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_neither_order_nor_company_changes_what_a_lane_does(recorded, tmp_path):
    """One program for all methods, or one for each, in another order, with the seeds in another order."""
    config = Config(
        dataset="digits", augment=False, net=MLP(widths=(4,), norm="none"), label_noise=0.5, seeds=(1, 0),
        methods=("dropout", "noisy_sgd"), unit="steps", base_length=8, clone_length=24, record_every=8,
        batch_size=16, learning_rate=0.3, noise_scale=0.1, dropout=0.3, probe_samples=40, fused=False,
    )  # fmt: skip
    setup = build(config)
    assert len(setup.groups) == 2
    run, done, planned = open_run(tmp_path / "other", config), [], parts(config, setup)
    play(planned, None, run, progress=lambda description, steps: done.append(steps))
    assert sum(done) == sum(part.steps for part in planned) == 2 * 2 * 32
    other = load(run.folder)
    for method in config.methods:
        for seed in config.seeds:
            where = {"method": method, "seed": seed, "phase": "clone"}
            for name in ("clone/train_loss", "base/train_loss", "clone/r2_forward/mean", "clone/bc_residual"):
                ours, theirs = (data.column(name, **where) for data in (other, recorded))
                np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-6, err_msg=f"{name} {where}")
    # The control: lanes are told apart at this tolerance.
    losses = [other.column("clone/train_loss", method=method, seed=0) for method in config.methods]
    assert np.abs(losses[0] - losses[1]).max() > 1e-3


# --- Verdicts --------------------


@pytest.mark.parametrize(
    ("r2", "verdict", "left", "escaped"),
    [
        ([1, 1, 1, 1], "stayed", None, None),
        ([1, 0.9995, 0.9991, 0.9995], "stayed", None, None),  # inside 1e-3
        ([1, 0.998, 0.998, 0.998], "left", 10, None),
        ([1, 0.998, 1.0, 0.998], "stayed", None, None),  # two records are needed, and this is one
        ([1, 0.5, 0.998, 0.998], "left", 10, None),  # below 0.95, but not for good
        ([1, 0.998, 0.998, 1.0], "stayed", None, None),  # came back
        ([1, 0.998, 0.96, 0.94], "escaped", 10, 30),
        ([1, 0.94, 0.96, 0.94], "escaped", 10, 30),
        ([1, 1, 1, 0.5], "escaped", None, 30),
        ([0.5, 0.5, 0.5, 0.5], "escaped", 0, 0),
        ([1, 1, np.nan, np.nan], "diverged", None, None),
        ([1, np.nan, 0.9, 0.9], "escaped", 20, 20),
        ([1, 0.95, 0.95, 0.95], "left", 10, None),  # escaped is strictly below
    ],
)
def test_fate_of_clones(r2, verdict, left, escaped):
    decided = fate([0, 10, 20, 30], np.array(r2, float))
    assert (decided.verdict, decided.left, decided.escaped) == (verdict, left, escaped)
    assert decided.rounding == np.nanmax(1 - np.array(r2, float))


def row(method: str, seed: int, **changes) -> dict:
    values = {"method": method, "seed": seed, "verdict": "stayed", "left": None, "escaped": None, "rounding": 0.0}
    values |= {"r2_at_cloning": 1.0, "r2_final": 1.0, "rank_at_cloning": 10.0, "rank_final": 12.0}
    values |= {"logit_difference_at_cloning": 1e-6, "leaf_residual": 0.0, "phase": "clone"}
    values |= {f"{name}_{what}": 0.5 for name in ("base", "clone") for what in ("train_loss", "test_accuracy")}
    return values | changes


def shown(*rows: dict) -> dict[str, str]:
    """The table's row of the one method in `rows`."""
    config = {"methods": [rows[0]["method"]], "seeds": [row["seed"] for row in rows]}
    drawn = table(RunData("folder", config, [], list(rows), "cloning"))
    return dict(zip(drawn.columns, drawn.rows[0], strict=True)) | {"title": drawn.title}


def test_the_table_tells_exact_clones_from_rounding():
    assert shown(row("sgd", 0), row("sgd", 1))["clones"] == "stayed, exactly"
    rounded = shown(row("sgd", 0), row("sgd", 1, leaf_residual=3e-7))
    assert rounded["clones"] == "stayed to 3e-07"
    assert shown(row("sgd", 0, leaf_residual=3e-7, rounding=4e-5))["clones"] == "stayed to 4e-05"
    assert rounded["left"] == rounded["escaped"] == "never"


def test_the_table_counts_seeds_and_takes_medians():
    cells = shown(
        row("noisy_sgd", 0, verdict="escaped", left=100, escaped=1000, r2_final=0.5),
        row("noisy_sgd", 1, verdict="left", left=300, r2_final=0.9),
    )
    assert cells["clones"] == "escaped / left"
    assert cells["left"] == "200"
    assert cells["escaped"] == "1,000 (1/2)"
    assert cells["R²"] == "0.7000"
    assert cells["rank"] == "10 → 12"
    assert "means of 2 seeds" in cells["title"]


def test_the_table_shows_a_seed_that_diverged():
    cells = shown(
        row("sgd", 0), row("sgd", 1, verdict="diverged", r2_final=None, clone_train_loss=None, rank_final=None)
    )
    assert cells["clones"] == "diverged / stayed"
    assert cells["R²"] == cells["clone"] == "-"
    assert cells["base"] == "0.500"


@pytest.mark.slow
def test_the_quick_preset_shows_the_effect(tmp_path):
    """The bare command: SGD and Adam stay, noise and dropout escape and the rank rises.

    With `LOPJAX_README_RUN=runs` it looks at what the command has left in that folder before, and runs nothing: CI has
    run it as the README says.
    """
    root = Path(os.environ.get("LOPJAX_README_RUN", tmp_path))
    if root == tmp_path:
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        command = [sys.executable, "-m", "experiments.cloning", "--root", str(root)]
        done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    rows = load(root / "cloning" / "quick").summary
    assert len(rows) == len(PRESETS["mlp"]["quick"].methods) * len(PRESETS["mlp"]["quick"].seeds)
    for each in rows:
        assert each["r2_at_cloning"] > 1 - 1e-6
        assert each["logit_difference_at_cloning"] < 1e-4
        if each["method"] in ("sgd", "adam"):
            assert each["verdict"] == "stayed"
            assert each["r2_final"] > 0.9999
        else:
            assert each["verdict"] == "escaped"
            assert each["rank_final"] > each["rank_at_cloning"] + 5


# --- The other architectures --------------------

SMALL = {
    "cnn": ("--net.channels", "3", "4", "--net.dense", "5"),
    "resnet18": ("--net.width", "2", "--net.blocks", "1"),
    "vit": ("--net.patch", "4", "--net.width", "8", "--net.depth", "1", "--net.heads", "2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", SMALL)
def test_the_same_command_clones_every_architecture(model, tmp_path, capsys):
    lengths = ("--base-length", "8", "--clone-length", "16", "--record-every", "8", "--probe-samples", "40")
    flags = ("--methods", "sgd", "noisy_sgd", "--noise-scale", "0.1", "--seeds", "0", "--name", "tiny")
    main(["--model", model, "--root", str(tmp_path), *SMALL[model], *lengths, *flags])
    data = load(tmp_path / "cloning" / "tiny")
    for method in ("sgd", "noisy_sgd"):
        start = {"method": method, "phase": "clone", "step": 0}
        np.testing.assert_allclose(data.column("clone/r2_forward/mean", **start), 1, atol=1e-6)
        np.testing.assert_allclose(data.column("logit_difference", **start), 0, atol=1e-4)
        np.testing.assert_array_equal(data.column("clone/bc_residual", **start), 0)
    stayed, left = (data.column("clone/bc_residual", method=method, phase="clone") for method in ("sgd", "noisy_sgd"))
    assert stayed.max() < 1e-5
    assert left[-1] > 1e-3
    assert data.column("clone/tangency_residual", method="sgd", phase="clone").max() < 1e-5
    assert data.variables("sgd")["clone"]["params"].keys() == data.variables("sgd")["base"]["params"].keys()
    assert "noisy_sgd" in capsys.readouterr().out
