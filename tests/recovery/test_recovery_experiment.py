"""The report of the recovery experiment on records made by hand, its checks; a run of two tasks, slow."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from experiments.recovery import report
from experiments.recovery.config import PRESETS, Config
from lopjax.runs.reading import RunData

CONFIG = replace(PRESETS["quick"], num_tasks=6, seeds=(0, 1, 2))
LANES = (("nothing", 0.0), ("fresh", 0.0), ("noise", 0.1), ("controller", 0.0))


def run():
    """Nothing loses 0.2 from task 4 on, its rank falls two tasks before; noise loses nothing, the controller little."""
    records = []
    for method, strength in LANES:
        for seed in CONFIG.seeds:
            for task in range(6):
                lost = {"nothing": 0.2 * (task >= 3), "controller": 0.01}.get(method, 0.0) + 0.001 * seed
                online = 0.9 - (0.0 if method == "fresh" else lost)
                rank = 20.0 - 12.0 * (method == "nothing" and task >= 1)
                record = {"method": method, "strength": strength, "seed": seed, "task": task}
                record |= {"online_accuracy": online, "rank": rank, "actions": 2, "change": 0.5, "jump": 0.1}
                record |= dict.fromkeys(("dead", "saturated", "near_clones", "within_ten_percent", "pair_r2"), 0.1)
                record["step"] = (task + 1) * CONFIG.steps
                records.append({**record, "weight_norm": 1.0, "probe_loss": 1.0, "online_loss": 0.3})
    return RunData(Path("x"), asdict(CONFIG), records, None, "recovery")


def test_differences_are_paired_and_the_best_single_method_is_marked():
    rows = {row["method"]: row for row in report.summarise(run())}
    assert rows["nothing"]["less_fresh"] == pytest.approx(-0.201)
    assert rows["nothing"]["less_fresh_half"] == pytest.approx(0.001 * 4.3027 / 3**0.5, rel=1e-3)
    assert rows["controller"]["over_nothing"] == pytest.approx(0.19)
    assert "less_fresh" not in rows["fresh"]
    shown = report.table(run())
    assert [row[0] for row in shown.rows] == ["nothing", "fresh", "noise 0.1 *", "controller"]
    assert shown.rows[0][2] == "-0.201 ± 0.002"


def test_a_symptom_that_falls_first_leads_and_one_that_says_nothing_finds_nothing():
    assert report.onsets(run())["nothing", 0.0].tolist() == [4.0 * CONFIG.steps] * 3
    scores = report.warning_scores(run())
    assert scores["fall of the rank"].detected == 1
    assert scores["fall of the rank"].lead == 2 * CONFIG.steps
    assert scores["weight norm"].detected == 0
    assert "| fall of the rank | 0 | 0 % | 100 % | 300 |" in report.texts(run())["tables.md"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rank_on": 0.1}, "rank_on=0.1, rank_off=0.15: must be 0 <= off < on <= 1"),
        ({"shrink": (1.5,)}, r"shrink=\(1.5,\): must be in \[0, 1\]"),
        ({"num_tasks": 0}, "num_tasks=0: must be at least 1"),
        ({"seeds": (0, 0)}, "must be distinct"),
    ],
)
def test_a_config_out_of_range_is_refused(changed, message):
    from experiments.recovery.parts import build

    with pytest.raises(ValueError, match=message):
        build(replace(Config(), **changed))


@pytest.mark.slow
def test_two_tasks_run_and_all_lanes_of_a_seed_see_the_same(tmp_path, monkeypatch):
    from experiments.recovery.__main__ import main
    from lopjax.runs import load

    monkeypatch.chdir(tmp_path)
    small = ["--num-tasks", "2", "--steps", "20", "--seeds", "0", "--net.widths", "4", "--noise", "0.01"]
    main([*small, "--shrink", "0.5", "--look-every", "5", "--probe-samples", "50", "--name", "small"])
    data = load(tmp_path / "runs" / "recovery" / "small")
    assert data.is_complete
    first = {row["method"]: row["online_loss"] for row in data.select(task=0)}
    assert first["fresh"] == first["nothing"]  # before a second task there is nothing fresh
    assert first["noise"] != first["nothing"]
    second = {row["method"]: row["online_loss"] for row in data.select(task=1)}
    assert second["fresh"] != second["nothing"]
    assert np.isfinite(list(second.values())).all()
    assert len(data.select(method="controller log")) == 1
