"""Detectors on curves made by hand, the trend test against SciPy, forecasts against a simulation, scores by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import kendalltau

from lopjax.detection import (
    Multiples,
    Symptoms,
    UnitNearness,
    describe_warnings,
    measured_rate,
    nearest_units,
    pair_r2,
    score_indicator,
    start_warnings,
    thresholds,
    trap_forecast,
    trend,
    update_warnings,
)

RECORDS, WINDOW = 40, 8
TIME = np.arange(RECORDS)
NOISE = np.random.default_rng(0).normal(size=(5, RECORDS))


@jax.jit
def played(curves, limits):
    """All measurements of one run, in a scan: scores and which warnings are on, `(records, 4)`."""

    def one(state, record):
        state, warnings = update_warnings(state, record[0], record[1], limits)
        return state, warnings

    return jax.lax.scan(one, start_warnings(WINDOW), (curves, jnp.arange(RECORDS)))[1]


def run(**changed):
    """A healthy run, but for the curves given."""
    healthy = Symptoms(
        np.exp(-TIME / 10), np.exp(-TIME / 10) + 0.5, 30 + 0.3 * NOISE[0], np.full(RECORDS, 0.2), np.full(RECORDS, 0.05)
    )
    return jax.device_get(played(jax.tree.map(jnp.asarray, healthy._replace(**changed)), thresholds()))


def test_a_healthy_run_rings_no_alarm_and_each_signature_its_own():
    assert not run().is_on.any()
    signs = {
        "plateau": {"train_loss": 1 + 0.01 * NOISE[1], "validation_loss": 1 + TIME / 20},
        "rank_collapse": {"effective_rank": np.where(TIME < 15, 30.0, 12.0)},
        "cloning": {"clone_r2": np.minimum(0.2 + TIME / 30, 1.0)},
        "dying": {"dead_fraction": TIME / 60},
    }
    for place, (name, curves) in enumerate(signs.items()):
        found = run(**curves)
        assert [found.is_on[-1, other] for other in range(4)] == [other == place for other in range(4)], name
    # A validation loss that rises while the training loss still falls is overfitting, not a plateau.
    assert not run(validation_loss=1 + TIME / 20).is_on.any()
    # A rank that falls and comes back within the window is no collapse.
    dip = np.where((TIME >= 15) & (TIME < 15 + WINDOW - 1), 12.0, 30.0)
    assert not run(effective_rank=dip).is_on.any()


def test_between_the_thresholds_a_warning_stays_what_it_was():
    share = np.zeros(RECORDS)
    share[5:10], share[10:20], share[20:30], share[30:] = 0.25, 0.32, 0.25, 0.1  # on at 0.3, off below 0.2
    found = run(dead_fraction=share)
    np.testing.assert_array_equal(found.is_on[:, 3], (TIME >= 10) & (TIME < 30))
    np.testing.assert_array_equal(found.since[:, 3], np.where((TIME >= 10) & (TIME < 30), 10, -1))
    last = jax.tree.map(lambda leaf: leaf[25], found)
    assert describe_warnings(last) == ["dying since step 10 (score 0.25): units are dead"]


def test_missing_measurements_say_nothing():
    nothing = np.full(RECORDS, np.nan)
    found = run(**dict.fromkeys(Symptoms._fields, nothing))
    assert not found.is_on.any()
    assert np.isnan(found.scores).all()
    # A validation loss alone is no plateau: of the training loss nothing is known. With both it is one.
    rising = {"validation_loss": 1 + TIME / 20}
    assert not run(train_loss=nothing, **rising).is_on.any()
    assert run(train_loss=1 + 0.01 * NOISE[1], **rising).is_on[-1, 0]
    # Nor do they end a warning: the network of which nothing is known any more has not recovered.
    gone = {"train_loss": np.where(TIME < 20, 1 + 0.01 * NOISE[1], np.nan)}
    gone["validation_loss"] = np.where(TIME < 20, 1 + TIME / 20, np.inf)
    assert run(**gone).is_on[19:, 0].all()
    share, rank = np.where(TIME < 20, 0.4, np.nan), np.where(TIME < 5, 30.0, np.where(TIME < 20, 5.0, np.nan))
    found = run(dead_fraction=share, effective_rank=rank)
    assert found.is_on[19, [1, 3]].all()
    assert found.is_on[20:, [1, 3]].all()
    assert np.isnan(found.scores[20:, [1, 3]]).all()


def nearness(rows, is_dead):
    """What `pair_r2` reads of units that do these things, of any length."""
    nearest = nearest_units(jnp.asarray(rows), Multiples(positive=True, mirrored=False))
    nothing = jnp.zeros(len(rows))
    return UnitNearness(nearest, nearest, jnp.asarray(is_dead), nothing, nothing, nothing, nothing)


def test_the_r2_of_pairs_is_the_mean_cosine_of_living_units_and_their_nearest():
    random = np.random.default_rng(1)
    spaces, cosines = {}, []
    for name, size in (("a", 6), ("b", 3)):
        rows = random.normal(size=(size, 3)).astype(np.float32) * random.uniform(0.5, 2, (size, 1)).astype(np.float32)
        is_dead = np.arange(size) == 1
        spaces[name] = nearness(rows, is_dead)
        directions = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        nearest = np.max(directions @ directions.T - 3 * np.eye(size), axis=1)
        cosines += list(np.maximum(nearest[~is_dead], 0))
    assert 0.3 < np.mean(cosines) < 0.95
    np.testing.assert_allclose(pair_r2(spaces), np.mean(cosines), rtol=1e-5)
    assert np.isnan(pair_r2({"a": spaces["a"]._replace(is_dead=jnp.ones(6, bool))}))


def test_the_trend_test_is_kendalls(x64):
    values = np.stack([NOISE[0], NOISE[1] + TIME / 10, NOISE[2] - TIME / 10])[:, :20]
    for row, found in zip(values, zip(*map(np.asarray, jax.jit(jax.vmap(trend))(values)))):
        # SciPy has no continuity correction: S = tau n (n - 1) / 2 where there are no ties.
        s = kendalltau(np.arange(20), row).statistic * 190
        assert found[0] == pytest.approx((s - np.sign(s)) / np.sqrt(20 * 19 * 45 / 18))
        pairs = [(row[j] - row[i]) / (j - i) for i in range(20) for j in range(i + 1, 20)]
        assert found[1] == pytest.approx(np.median(pairs))


def test_a_forecast_from_the_first_half_of_a_run_is_borne_out_by_the_second(x64):
    random = np.random.default_rng(1)
    deviation, distances = np.array([0.3, -0.2]), []
    for _ in range(2000):  # v <- (1 - eta M) v with M of mean 1: the exponent is E ln(1 - eta M)
        deviation = (1 - 0.01 * (1 + 0.3 * random.normal())) * deviation
        distances.append(np.linalg.norm(deviation))
    first = jnp.asarray(distances[:400:10])
    rate = measured_rate(first, 10.0)
    assert float(rate.exponent) == pytest.approx(np.log(1 - 0.01), rel=0.05)
    uneven = np.array([0, 10, 20, 30, 90, 200, 210, 390])
    some = jnp.asarray(np.array(distances)[uneven])
    of_steps = measured_rate(some, steps=jnp.asarray(uneven))
    slope, _ = np.polyfit(uneven, np.log(np.array(distances)[uneven]), 1)
    assert float(of_steps.exponent) == pytest.approx(slope, rel=1e-9)
    forecast = trap_forecast(distances[399], rate.exponent, rate.standard_error, tolerance=1e-6)
    crossed = np.argmax(np.array(distances) < 1e-6) - 399
    assert float(forecast.steps) == pytest.approx(crossed, rel=0.05)
    assert float(forecast.earliest) < float(forecast.steps) < float(forecast.latest)
    assert bool(forecast.is_decided)
    away = trap_forecast(0.1, 0.02, 0.001)
    assert np.isinf(away.steps)
    assert bool(away.is_decided)
    open_end = trap_forecast(0.1, -0.001, 0.001)
    assert np.isinf(open_end.latest)
    assert not bool(open_end.is_decided)


def test_a_rate_needs_a_step_for_each_distance(unchecked):
    with pytest.raises(ValueError, match=r"steps of shape \(7,\): must be one for each of the 8 distances"):
        measured_rate(jnp.ones(8), steps=jnp.arange(7))


def test_lead_times_at_a_rate_of_false_alarms():
    steps = np.arange(6) * 10
    healthy = [[0, 1, 0, 2, 0, 0], [0, 3, 0, 0, 0, 0]]
    losing = [[0, 0, 4, 5, 6, 7], [0, 0, 0, 0, 0, 4], [0, 0, 0, 2, 2, 2]]
    onset = [np.inf, np.inf, 50, 40, 50]
    score = score_indicator(healthy + losing, steps, onset, 0.0)
    assert (score.threshold, score.false_alarms, score.lead) == (3.0, 0.0, 30.0)
    assert score.detected == pytest.approx(1 / 3)  # the second rings only after the loss
    loose = score_indicator(healthy + losing, steps, onset, 0.5)
    assert (loose.threshold, loose.false_alarms) == (2.0, 0.5)
    with pytest.raises(ValueError, match="0 of 1 runs are healthy"):
        score_indicator([[1.0]], [0], [5.0])


@pytest.mark.parametrize(
    ("on", "off", "message"),
    [
        ({"dying": 0.1}, {}, r"dying: on=0.1, off=0.2: a warning must end below where it begins"),
        ({"dead": 0.3}, {}, r"thresholds \['dead'\]: must be of \['plateau'"),
        ({"dying": 30}, {}, r"on\['dying'\]=30: must be in \[0, 1\]"),
        ({}, {"cloning": -0.1}, r"off\['cloning'\]=-0.1: must be in \[0, 1\]"),
    ],
)
def test_thresholds_out_of_range_or_in_the_wrong_order_are_refused(on, off, message, unchecked):
    with pytest.raises(ValueError, match=message):
        thresholds(on, off)
