"""Indicators scored on a run whose losses and symptoms are known."""

import math
from pathlib import Path

import numpy as np
import pytest

from experiments.continual.indicators import INDICATORS, autocorrelation, fallen, markdown, onset, score_run
from lopjax.runs import RunData

TASKS, SEEDS = 30, (0, 1, 2, 3)
# The online accuracy of Adam falls at task 20 (that of weight decay never), its rank at 15, its weights grow from 5.
LOSS, RANK, GROWTH = 20, 15, 5


def run_of(fresh=True):
    random = np.random.default_rng(0)
    records = []
    for method in ("fresh_adam", "adam", "weight_decay"):
        for seed in SEEDS:
            for task in range(1, TASKS + 1):
                is_sick = method == "adam"
                rank = 10 - (5 if is_sick and task >= RANK else 0) + 0.1 * random.normal()
                loses = 0.3 if is_sick and task >= LOSS else 0.0
                values = {
                    "online_accuracy": 0.9 - loses + 0.01 * random.normal(),
                    "online_loss": random.normal(),
                    "plasticity": 0.3,
                    "probe/effective_rank/mean": rank,
                    "probe/effective_rank/hidden_0": rank,
                    "probe/dead_fraction/mean": 0.1,
                    "weight_norm": 1 + (0.1 * max(task - GROWTH, 0) if is_sick else 0.0),
                }
                where = {"method": method, "seed": seed, "task": task - 1, "is_end": True}
                records.append({**where, **values})
    config = {"methods": ["adam", "weight_decay"], "seeds": list(SEEDS), "fresh": fresh}
    return RunData(Path(), config, records, None, "continual")


def test_indicators_are_ranked_by_how_early_they_ring():
    rows = {row.name: row for row in score_run(run_of(), 0.1, 0.1)}
    assert {row.healthy for row in rows.values()} == {8}
    assert {row.lost for row in rows.values()} == {4}
    rank, growth = rows["effective rank, fall of the mean"].score, rows["weights, growth"].score
    assert rank.leads.tolist() == [LOSS + 1 - RANK] * 4 or rank.leads.tolist() == [LOSS - RANK] * 4
    assert (growth.leads > rank.leads).all()
    assert rank.false_alarms <= 0.1
    assert next(iter(rows)).startswith("weights")
    assert rows["dead units"].score.detected == 0  # the same everywhere: it tells nothing
    assert rows["random numbers (control)"].score.detected < 1
    assert "saturated units" not in rows  # not recorded
    said = markdown(list(rows.values()), 0.1, 0.1)
    assert "| dead units | 0.1 | 0 of 4 | 0.00-0.49 | - |" in said
    assert "4 lanes, 8 never" in said


def test_nobody_loses_plasticity_without_fresh_networks_or_below_the_level():
    with pytest.raises(ValueError, match="no fresh networks"):
        score_run(run_of(fresh=False), 0.1, 0.1)
    with pytest.raises(ValueError, match="12 of 12 runs are healthy"):
        score_run(run_of(), 0.5, 0.1)
    assert onset(run_of(), "adam", 0, 0.1) in (LOSS, LOSS + 1)
    assert math.isinf(onset(run_of(), "weight_decay", 0, 0.1))


def test_curves_by_hand():
    np.testing.assert_allclose(fallen(np.array([2.0, 4.0, 1.0, 5.0])), [0, 0, 0.75, 0])
    slow = autocorrelation(np.sin(np.arange(40) / 5))
    fast = autocorrelation(np.cos(np.pi * np.arange(40)))
    assert np.isnan(slow[:9]).all()
    assert np.nanmin(slow) > 0.4
    np.testing.assert_allclose(fast[9:], -0.9)
    trends = INDICATORS["effective rank, trend"](run_of(), "adam", 0)
    assert np.isnan(trends[:4]).all()
    assert trends[RANK : RANK + 3].max() > trends[5:12].min()
