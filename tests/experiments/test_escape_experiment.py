"""The escape experiment: survival statistics against closed forms, its report on known records, and a short run."""

import dataclasses
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats

from experiments.escape.config import AXES, PRESETS, points_of
from experiments.escape.figures import figures
from experiments.escape.parts import parts
from experiments.escape.prediction import calibration, ever_reached, said_of_linear
from experiments.escape.report import comparisons, summarise, table
from experiments.escape.setup import build
from experiments.escape.survival import Escapes, escapes_of, kaplan_meier, log_rank, probability, quantile
from experiments.kit.networks import MLP
from lopjax.runs import RunData

QUICK = PRESETS["mlp"]["quick"]


def test_survival_curves_count_the_censored_for_as_long_as_they_were_seen():
    steps, is_escaped = np.array([10.0, 20, 20, 30, 40]), np.array([True, True, True, False, False])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curve = kaplan_meier(steps, is_escaped)
        none = kaplan_meier(steps, np.zeros(5, bool))
        all_at_once = kaplan_meier(np.full(5, 10.0), np.ones(5, bool))
    np.testing.assert_allclose(curve.share, [1, 0.8, 0.4, 0.4, 0.4])
    assert quantile(curve)[:2] == (20, 10)
    assert np.isinf(quantile(curve).high)
    assert np.isinf(quantile(none).value)
    assert quantile(all_at_once) == (10, 10, 10)
    # Greenwood's formula on the scale of log(-log S), at the second step: d / (n (n - d)) summed.
    variance = (1 / (5 * 4) + 2 / (4 * 2)) / np.log(0.4) ** 2
    z = scipy.stats.norm.isf(0.025)
    np.testing.assert_allclose(curve.low[2], 0.4 ** np.exp(z * variance**0.5), rtol=1e-6)


def test_the_share_has_wilsons_interval():
    z, n, p = scipy.stats.norm.isf(0.025), 20, 0.3
    middle, half = (p + z**2 / (2 * n)), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    np.testing.assert_allclose(probability(6, 20), (p, *((middle + s * half) / (1 + z**2 / n) for s in (-1, 1))))


def test_log_rank_says_which_is_later_and_nothing_where_nothing_happens():
    early = Escapes(np.arange(10.0, 30), np.ones(20, bool), np.ones(20, bool))
    late = early._replace(steps=early.steps + 15)
    statistic, p = log_rank(late, early)
    assert statistic > 0
    assert p < 0.01
    np.testing.assert_allclose(log_rank(early, late), (-statistic, p))
    none = late._replace(is_escaped=np.zeros(20, bool))
    assert log_rank(none, none) == (0.0, 1.0)


def test_escape_is_for_good_and_a_lane_that_comes_back_is_censored():
    steps = [np.array([0, 10, 20, 30])] * 3
    found = escapes_of(
        steps, [np.array([1, 0.9, 0.9, 0.9]), np.array([1, 0.9, 0.96, 0.94]), np.array([1, 0.9, 0.9, 1.0])]
    )
    assert found.steps.tolist() == [10, 30, 30]
    assert found.is_escaped.tolist() == [True, True, False]


def test_points_without_noise_come_once():
    points = points_of(QUICK)
    assert len(points) == len(set(points)) == (1 + 2 * 2) * 2 * 2 * 2
    assert points == points_of(dataclasses.asdict(QUICK))


# --- The report on records whose answer is known --------------------

SMALL = dataclasses.replace(
    QUICK, noise_scales=(0.0, 0.05), noise_decays=(1.0,), dropouts=(0.0,), learning_rates=(0.05, 0.15), momenta=(0.0,),
    clone_steps=100, record_every=25, linear=True,
)  # fmt: skip


def run_of(linear_factor=1.0):
    """Noise escapes after 75 steps at the large rate, never at the small one; in linear theory sooner by a factor."""
    records = []
    for kind in ("clone", "linear"):
        for point in map(dict, points_of(SMALL)):
            for seed in SMALL.seeds:
                for step in range(0, 101, 25):
                    speed = point["noise_scale"] * point["learning_rate"] * (linear_factor if kind == "linear" else 1)
                    frozen = {"frozen_at": 60} if kind == "clone" and seed == 0 and step > 60 else {}
                    lost = min(0.4, 0.049 * speed * step / 0.375)
                    where = {"method": kind, **point, "seed": seed, "phase": "clone", "step": step}
                    records.append({**where, "r2": 1 - lost, "loss": 1.0, **frozen})
    return RunData(Path(), dataclasses.asdict(SMALL), records, None, "escape")


def test_the_report_on_a_run_whose_escapes_are_known():
    data = run_of()
    rows = [row for row in summarise(data) if row["kind"] == "clone"]
    found = {(row["noise_scale"], row["learning_rate"]): row for row in rows}
    assert found[0.0, 0.15]["probability"][0] == 0
    assert found[0.0, 0.15]["median"] == [None] * 3
    assert found[0.05, 0.15]["median"][0] == 75
    assert found[0.05, 0.15]["num_frozen"] == 1
    # The lane that diverged at step 60 was last seen at 50, before it could escape.
    assert sorted(found[0.05, 0.15]["steps"])[:2] == [50, 75]
    assert found[0.05, 0.15]["probability"][0] == 0.95
    assert comparisons(rows, "learning_rate") == [(0.05, 0.15, 2, 1, 0)]
    assert comparisons(rows, "noise_scale") == [(0.0, 0.05, 2, 1, 0)]
    assert "0.95 [0.76, 0.99] 75 [75, 75]" in {cell for row in table(data).rows for cell in row}
    assert set(figures(data)) == {"escape_probability", "survival", "calibration"}


def test_linear_theory_that_is_right_does_not_differ_and_one_that_is_fast_does():
    alike, fast = (calibration(summarise(run_of(factor)), 0.05) for factor in (1.0, 3.0))
    assert not any(pair.p < 0.01 for pair in alike)
    assert any(pair.p < 0.01 for pair in fast)
    assert "2 of 2 settings differ" in said_of_linear(summarise(run_of(3.0)))[-1]
    assert said_of_linear([row for row in summarise(run_of()) if row["kind"] == "clone"]) == []


def test_the_chance_of_ever_leaving_is_compared_where_noise_dies_away_only():
    def row(kind: str, num: int, **changes: float) -> dict:
        setting = {**dict.fromkeys(AXES, 0.0), "noise_scale": 0.1, "noise_decay": 0.9, "learning_rate": 0.1, **changes}
        reached = [index < num for index in range(20)]
        return {"kind": kind, **setting, "passages": {"0.05": [list(range(20)), reached]}}

    rows = [row("clone", 5), row("linear", 19)]
    rows += [
        row(kind, 20, **other) for kind in ("clone", "linear") for other in ({"noise_decay": 1.0}, {"dropout": 0.1})
    ]
    (one,) = ever_reached(rows, 0.05)
    assert one[1:4] == (5, 19, 20)
    assert one.p == pytest.approx(scipy.stats.fisher_exact([[5, 15], [19, 1]])[1])
    (alike,) = ever_reached([row("clone", 5), row("linear", 6)], 0.05)
    assert alike.p > 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_decays": (1.1,)}, {"learning_rates": (0.0,)}, {"momenta": (1.0,)}, {"noise_scales": ()},
        {"clone_steps": 110}, {"factor": 1}, {"dropouts": (0.1, 0.1)}, {"seeds": (-1,)},
        {"linear": True, "net": MLP(widths=(3,), norm="batch")},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        build(dataclasses.replace(QUICK, **changes))


# --- Runs --------------------


@pytest.mark.slow
def test_clones_stay_without_noise_leave_with_it_and_linear_theory_agrees_near_the_manifold():
    config = dataclasses.replace(
        SMALL, net=MLP(widths=(4,), activation="tanh", norm="none"), seeds=(0, 1), learning_rates=(0.15,),
        base_steps=20, clone_steps=20, record_every=10, noise_scales=(0.0, 0.01), probe_samples=50,
    )  # fmt: skip
    setup = build(config)
    planned, state, records = parts(config, setup), None, []
    for part in planned:
        state, found = part.do(state)
        assert len(found) == part.num_records
        assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, part.like())
        records += found
    data = RunData(Path(), dataclasses.asdict(config), records, None, "escape")

    def lost(kind, scale):
        return np.array([1 - data.column("r2", method=kind, noise_scale=scale, seed=seed) for seed in config.seeds])

    assert lost("clone", 0.0).max() == 0
    assert lost("clone", 0.01)[:, 1:].min() > 1e-6
    assert lost("linear", 0.0).max() == 0
    # Other noise, of the same size: they agree to a factor; a rate ten times as large would not.
    ratio = lost("linear", 0.01)[:, -1] / lost("clone", 0.01)[:, -1]
    assert (np.abs(np.log(ratio)) < np.log(3)).all()
    base = [record for record in records if record["phase"] == "base"]
    assert len(base) == 4
    assert {name for name in records[-1] if name in AXES} == set(AXES)
