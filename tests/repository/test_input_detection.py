"""Types, scales, empty axes, NaN and infinity for detection, recovery, the doctor, tracing and manifolds of multiples.

Right, or one sentence. Nothing that is not finite may be counted as alive, as cured, or as nought.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax import certificates, manifolds, recovery, stability
from lopjax.detection import (
    Status,
    dead_on_batch,
    gradient_readiness,
    measured_rate,
    pair_r2,
    score_indicator,
    start_lives,
    start_warnings,
    symptoms_of,
    thresholds,
    trap_forecast,
    trend,
    unit_nearness,
    unit_status,
    update_lives,
    update_warnings,
)
from lopjax.doctor import diagnose
from lopjax.interventions import reset_units
from lopjax.losses import mean_cross_entropy
from lopjax.metrics import dead_units
from lopjax.model import Tap
from lopjax.models import mlp
from lopjax.recovery.controller import symptom_scores
from lopjax.signals import observe
from lopjax.stability import UnitBlocks
from lopjax.tracing import trace_model
from lopjax.training import Setting, init_state, intervene, start_intervention

MODEL = mlp((3,), (5,), 2, activation="relu")
INPUTS = np.array([[1.0, 2, -1], [0.5, -1, 2], [-2, 0.25, 1], [1, -0.5, 0.25]], np.float32)
BATCH = jnp.asarray(INPUTS), jnp.array([0, 1, 1, 0])
KINDS = [Status.NEAR_CLONE, Status.NEAR_CLONE, Status.DEAD, Status.ALIVE, Status.ALIVE]


def variables(dtype="float32", scale=1.0):
    """Unit 1 is twice unit 0, unit 2 is dead; few binary digits, so that every type holds them."""
    kernel = np.array([[1, 2, 0.5, -1, 0.25], [-0.5, -1, 1, 0.5, 2], [0.5, 1, -1, 1.5, -0.5]])
    bias, head = np.array([0.5, 1, -64, 0.25, 0.5]), np.array([[1, -1], [0.5, 1], [1, 2], [-1, 0.5], [2, -0.5]])
    arrays = {"hidden_0": (kernel * scale, bias * scale), "classes": (head / scale, np.zeros(2))}
    return {
        "params": {k: {"kernel": jnp.asarray(w, dtype), "bias": jnp.asarray(b, dtype)} for k, (w, b) in arrays.items()}
    }


@jax.jit
def watched(given, batch):
    """Everything that is measured of a network, twice in a row: one program for all tests."""
    nearness = unit_nearness(MODEL, given, batch)
    status = {space: unit_status(one) for space, one in nearness.items()}
    lives, events = update_lives(start_lives(status), status, 1)
    symptoms = symptoms_of(MODEL, given, nearness, batch[0], 1.0, 1.0)
    ill = start_warnings(4)._replace(is_on=jnp.array([False, False, True, True]))
    warnings = update_warnings(ill, symptoms, 2, thresholds())[1]
    shares = symptom_scores(Setting(MODEL, optax.sgd(0.1), mean_cross_entropy), given, batch, 0.01)[0]
    return nearness["hidden_0"], status["hidden_0"], lives, events, symptoms, warnings, shares


@pytest.mark.parametrize(
    ("dtype", "scale"), [("bfloat16", 1.0), ("float32", 1.0), ("float32", 2.0**80), ("float32", 2.0**-80)]
)
def test_units_are_measured_in_every_type_and_scale(dtype, scale):
    """Scaling what a ReLU unit reads, and its outgoing weights the other way, changes no distance and no status."""
    nearness, status, lives, events, symptoms, warnings, shares = watched(variables(dtype, scale), BATCH)
    assert status.tolist() == KINDS
    assert nearness.activations.distance[:2].tolist() == [0, 0]
    assert nearness.parameters.distance[:2].tolist() == [0, 0]
    assert nearness.activations.multiple[:2].tolist() == [0.5, 2]
    assert nearness.slope.tolist() == [1, 1, 0, 1, 1]
    assert lives.since["hidden_0"].tolist() == [0] * 5
    assert not any(int(count) for count in events.values())
    assert float(symptoms.dead_fraction) == pytest.approx(0.2)
    np.testing.assert_allclose(shares, [0.4, 0.2, 0], rtol=1e-6)
    assert np.isnan(warnings.scores[1])  # not measured often enough
    # What the radius is: the least change of (w, b) that wakes the unit, in the unit's own scale.
    rows = np.concatenate([INPUTS, np.ones((4, 1))], axis=1)
    pre = INPUTS @ np.array([0.5, 1, -1]) - 64
    assert float(nearness.death_radius[2]) == pytest.approx(
        scale * np.min(-pre / np.linalg.norm(rows, axis=1)), rel=4 * float(jnp.finfo(dtype).eps)
    )


def test_time_scales_of_vanishing_gradients_are_finite():
    """Gradients of 1e-25, whose squares single precision takes for 0."""
    times = [np.asarray(watched(variables(scale=scale), BATCH)[0].time_scale) for scale in (1.0, 2.0**40)]
    np.testing.assert_allclose(times[1][[0, 1, 3, 4]] / 2.0**80, times[0][[0, 1, 3, 4]], rtol=1e-4)
    assert np.isinf(times[0][2])


def test_readiness_in_every_type_and_scale_and_of_a_network_that_has_left_the_numbers():
    # One class throughout: the samples' gradients agree, and their mean is not lost in their spread.
    alike = BATCH[0], jnp.zeros_like(BATCH[1])
    ready = jax.jit(lambda given: gradient_readiness(MODEL, given, alike, 2))
    strength, reliability = ready(variables())
    assert 0 < float(reliability) < 1
    assert float(ready(variables("bfloat16")).reliability) == pytest.approx(float(reliability), rel=0.1)
    # Almost all of the gradient is that of the outgoing weights, which is 2^30 times as large.
    assert float(ready(variables(scale=2.0**30)).strength) > 2.0**50 * float(strength)
    assert 0 < float(ready(variables(scale=2.0**80)).reliability) < 1
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, variables())
    assert all(np.isnan(number) for number in ready(broken))
    with pytest.raises(ValueError, match="batch_size=0: must be a positive integer"):
        gradient_readiness(MODEL, variables(), BATCH, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_units_that_are_not_finite_are_unknown_and_cure_nothing(bad):
    one = variables()
    one["params"]["hidden_0"]["kernel"] = one["params"]["hidden_0"]["kernel"].at[0, 3].set(bad)
    nearness, status, _, _, symptoms, warnings, shares = watched(one, BATCH)
    assert status.tolist() == [*KINDS[:3], Status.UNKNOWN, KINDS[4]]
    assert np.isnan(nearness.activations.distance[3])
    for number in (symptoms.dead_fraction, symptoms.clone_r2, symptoms.effective_rank, *shares):
        assert np.isnan(number)
    assert warnings.is_on.tolist() == [False, False, True, True]
    # The control: of a network that has recovered both end.
    healthy = variables()
    hidden = healthy["params"]["hidden_0"]
    healthy["params"]["hidden_0"] = {**hidden, "bias": hidden["bias"].at[1].add(2.0).at[2].set(4.0)}
    assert not watched(healthy, BATCH)[5].is_on.any()


def test_single_samples_and_none(unchecked):
    """Of a single sample every unit is constant; only those that carry 0 are dead on it."""
    status = watched(variables(), (BATCH[0][3:], BATCH[1][3:]))[1]
    posts = np.maximum(
        BATCH[0][3:] @ variables()["params"]["hidden_0"]["kernel"] + variables()["params"]["hidden_0"]["bias"], 0
    )
    np.testing.assert_array_equal(np.asarray(status) == Status.DEAD, posts[0] == 0)
    assert not (posts == 0).all()
    np.testing.assert_array_equal(watched(variables(), (BATCH[0][3:].repeat(4, axis=0), BATCH[1]))[1], status)
    nothing = BATCH[0][:0], BATCH[1][:0]
    with pytest.raises(ValueError, match="no samples"):
        unit_nearness(MODEL, variables(), nothing)
    assert np.isnan(symptoms_of(MODEL, variables(), {}, BATCH[0]).dead_fraction)  # a network without units


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64", "int32"])
def test_units_that_carry_nothing_in_every_type(x64, unchecked, dtype):
    posts = jnp.asarray([[0, 1, 2, 0], [0, 1, 3, 0], [0, 1, 1, 0]], dtype)
    taps = [Tap("hidden", posts, posts, "relu")]
    assert dead_on_batch(taps).tolist() == [True, True, False, True]
    assert dead_on_batch(taps * 2).tolist() == [True, False, False, True]
    assert dead_units(posts).tolist() == [True, False, False, True]
    if dtype != "int32":
        broken = posts.at[1, 0].set(np.nan)
        assert not dead_on_batch([Tap("hidden", posts, broken, "relu")])[0]
        assert not dead_units(broken)[0]
    for nothing in (posts[:0], posts[:, :0]):
        with pytest.raises(ValueError, match="at least 1"):
            dead_units(nothing)


def test_pairs_explain_nothing_where_nothing_lives_or_is_known():
    nearness = watched(variables(), BATCH)[0]
    distance = np.asarray(nearness.activations.distance)
    living = np.isfinite(distance)
    expected = np.mean(np.maximum(1 - distance[living] ** 2 / 2, 0))
    assert float(pair_r2({"h": nearness})) == pytest.approx(expected)

    def with_distance(value):
        changed = nearness.activations._replace(distance=nearness.activations.distance.at[3].set(value))
        return float(pair_r2({"h": nearness._replace(activations=changed)}))

    assert np.isnan(with_distance(np.nan))
    assert with_distance(np.inf) != pytest.approx(expected)  # a dead unit is left out
    assert np.isnan(pair_r2({}))
    assert np.isnan(pair_r2({"h": nearness._replace(is_dead=jnp.ones(5, bool))}))


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_fresh_units_are_finite_whatever_they_were(x64, dtype):
    setting, given = Setting(MODEL, optax.sgd(0.1), mean_cross_entropy), variables(dtype)
    broken = jax.tree.map(lambda leaf: leaf, given)
    broken["params"]["hidden_0"]["kernel"] = given["params"]["hidden_0"]["kernel"].at[:, 3].set(np.nan)
    broken["params"]["classes"]["kernel"] = given["params"]["classes"]["kernel"].at[3].set(np.inf)
    state, chosen = init_state(broken, setting.optimizer), {"hidden_0": jnp.arange(5) == 3}
    params = reset_units(setting, state, chosen, jax.random.key(0)).variables["params"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {dtype}
    assert np.isfinite(flat(params)).all()
    assert not np.asarray(params["classes"]["kernel"][3]).any()
    for name in ("kernel", "bias"):
        kept = [np.delete(np.asarray(each["hidden_0"][name], float), 3, axis=-1) for each in (params, given["params"])]
        np.testing.assert_array_equal(*kept)


# --- Curves ----------------------------------------------------------------------------------------------------------

RISING = np.array([1, 2, 2, 4, 8, 16])
# Of a curve: the trend, the rate of its logarithm, and a forecast.
CURVES = {
    "trend": jax.jit(lambda values: trend(values)),
    "measured_rate": jax.jit(lambda values: measured_rate(values, 2)),
    "trap_forecast": jax.jit(lambda values: jax.vmap(trap_forecast)(values, -1 / values)),
}


def flat(result):
    return np.concatenate([np.ravel(np.asarray(leaf)).astype(np.float64) for leaf in jax.tree.leaves(result)])


@pytest.mark.parametrize("name", CURVES)
def test_curves_of_every_type_agree(x64, unchecked, name):
    expected = flat(CURVES[name](jnp.asarray(RISING, float)))
    for dtype in ("bfloat16", "float16", "float32", "int32"):
        np.testing.assert_allclose(flat(CURVES[name](jnp.asarray(RISING, dtype))), expected, rtol=2e-3)
    assert np.isfinite(expected).all()


TREND, RATE, FORECAST = jax.jit(trend), jax.jit(measured_rate), jax.jit(trap_forecast)


def test_curves_at_any_scale():
    for scale in (1e-30, 1e30):
        found = TREND(jnp.asarray(RISING * scale, jnp.float32))
        assert float(found.z) == pytest.approx(float(TREND(jnp.asarray(RISING, float)).z))
        assert float(found.slope) == pytest.approx(scale * 2.0, rel=1e-5)
        rates = [RATE(jnp.asarray(RISING * s, jnp.float32), s) for s in (1.0, scale)]
        np.testing.assert_allclose(rates[1].exponent * scale, rates[0].exponent, rtol=1e-4)
    assert float(FORECAST(1e30, -0.5, 0.0, 1e-30).steps) == pytest.approx(120 * np.log(10), rel=1e-5)


def test_curves_that_are_not_finite_or_empty():
    diverged = TREND(jnp.array([1.0, 2, 3, np.inf, np.inf, np.inf]))
    assert float(diverged.z) > 1.645
    assert np.isnan(TREND(jnp.array([1.0, np.nan])).slope)
    for nothing in (jnp.zeros(0), jnp.ones(1)):
        assert float(TREND(nothing).z) == 0
        assert np.isnan(TREND(nothing).slope)
        assert np.isnan(RATE(nothing).exponent)
    assert np.isnan(RATE(jnp.array([1.0, np.nan, 2.0, np.inf])).exponent)
    for unknown in ((np.nan, -1.0), (0.1, np.nan), (np.nan, 1.0)):
        forecast = FORECAST(*unknown)
        assert np.isnan(forecast.steps)
        assert not bool(forecast.is_decided)
    assert np.isinf(FORECAST(0.1, 1.0).steps)  # it grows: that is known
    for value in (np.nan, 0.0, -1.0):
        with pytest.raises(ValueError, match="tolerance"):
            trap_forecast(0.1, -1.0, tolerance=value)
    with pytest.raises(ValueError, match=r"on\['dying'\]"):
        thresholds({"dying": np.nan})


def test_scores_of_every_type_and_of_what_is_not_known():
    curves, steps, onset = [[0, 1, 2], [0, 5, 9], [0, 0, 9]], [10, 20, 30], [np.inf, 30, 20]
    expected = score_indicator(curves, steps, onset)
    for dtype in (np.float16, np.float32, np.int64, jnp.bfloat16):
        found = score_indicator(np.asarray(curves, dtype), np.asarray(steps, np.int32), np.asarray(onset, np.float32))
        np.testing.assert_equal(tuple(found), tuple(expected))
    assert score_indicator([[0.0], [np.inf]], [1], [np.inf, 2]).detected == 1
    # 29 of 100 are no more than 0.29 of them, though 0.29 x 100 is 28.999999999999996.
    many = score_indicator([*[[float(i)] for i in range(100)], [0.0]], [1], [np.inf] * 100 + [2], 0.29)
    assert (many.threshold, many.false_alarms) == (70.0, 0.29)
    for changed, message in (
        ({"onset": [np.inf, np.nan, 20]}, "onset"),
        ({"onset": [-np.inf, 30, 20]}, "onset"),
        ({"steps": [10, np.nan, 30]}, "steps"),
        ({"steps": [10, 10, 30]}, "steps"),
        ({"curves": [[np.nan] * 3, *curves[1:]]}, "no value that is known"),
        ({"curves": np.zeros((3, 0)), "steps": []}, "no value that is known"),
    ):
        with pytest.raises(ValueError, match=message):
            score_indicator(**{"curves": curves, "steps": steps, "onset": onset, **changed})


# --- Recovery, the doctor, tracing ------------------------------------------------------------------------------------


def test_methods_of_recovery_keep_types_and_touch_nothing_unknown(x64):
    made = {"kick_clones": recovery.kick_clones(0.5, every=2), "pull_to_start": recovery.pull_to_start(0.75, every=2),
            "recovery_controller": recovery.recovery_controller(("noise", "wake_dead_units"), every=2)}  # fmt: skip
    setting = Setting(MODEL, optax.sgd(0.1), mean_cross_entropy)

    def acted(method, given, step):
        state = start_intervention(method, setting, init_state(given, setting.optimizer))
        seen = observe(MODEL, given, jax.tree.map(jnp.asarray, BATCH))
        return state, *intervene(method, setting, state, seen, jax.random.key(1), step)

    for name, method in made.items():
        for dtype in ("bfloat16", "float64"):
            before, after, _ = jax.eval_shape(partial(acted, method), variables(dtype), jnp.int32(1))
            types = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)] for state in (before, after)]
            assert types[0] == types[1], name
    kick = jax.jit(partial(acted, made["kick_clones"]))
    kernel = variables()["params"]["hidden_0"]["kernel"]
    for bad, touched in ((1.0, [True, True, False, False, False]), (np.nan, [False] * 5)):
        given = variables()
        given["params"]["hidden_0"]["kernel"] = kernel.at[0, :2].multiply(bad)
        report = kick(given, jnp.int32(1))[2]
        assert report.touched["hidden_0"].tolist() == touched
    pulled = jax.jit(partial(acted, made["pull_to_start"]))(variables("bfloat16"), jnp.int32(1))[1]
    fresh = MODEL.init(jax.random.key(1))["params"]["hidden_0"]["kernel"]
    expected = 0.75 * np.asarray(kernel) + 0.25 * np.asarray(fresh)
    np.testing.assert_allclose(pulled.variables["params"]["hidden_0"]["kernel"].astype(float), expected, rtol=1e-2)


def test_a_monitor_says_that_a_network_has_left_the_numbers():
    watch = recovery.monitor(MODEL, BATCH, window=4)
    seen, healthy = watch.update(watch.init(variables()["params"]), variables()["params"], 0)
    assert "2 units within 1 % of a clone, 1 dead, 0 saturated, of 5" in str(healthy)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, variables()["params"])
    _, report = watch.update(seen, broken, 1)
    assert "unknown: not finite" in str(report)
    assert report.status["hidden_0"].tolist() == [Status.UNKNOWN] * 5
    assert np.isnan(report.loss)
    with pytest.raises(ValueError, match="no sample"):
        recovery.monitor(MODEL, (BATCH[0][:0], BATCH[1][:0]))


def test_the_doctor_refuses_what_is_not_finite_and_nobody(unchecked):
    nothing, broken = (BATCH[0][:0], BATCH[1][:0]), (BATCH[0] * np.nan, BATCH[1])
    for batch, given in (
        (nothing, variables()),
        (broken, variables()),
        (BATCH, jax.tree.map(lambda leaf: leaf * np.nan, variables())),
    ):
        with pytest.raises(ValueError, match=r"at least one|finite"):
            diagnose(MODEL, given, batch)
    for copies in (1, 4):  # of one sample: every unit is constant on them, and none is dead for it
        with pytest.raises(ValueError, match="inputs are the same"):
            diagnose(MODEL, variables(), (BATCH[0][3:].repeat(copies, axis=0), BATCH[1][3:].repeat(copies)))
    for number in (np.nan, np.inf, 0.0):
        with pytest.raises(ValueError, match="learning_rate"):
            diagnose(MODEL, variables(), BATCH, learning_rate=number)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_tracing_reads_shapes_and_types_alone(x64, unchecked, dtype):
    def apply(params, x):
        return jax.nn.relu(x @ params["w"] + params["b"]) @ params["head"]

    params = {"w": jnp.full((3, 4), np.nan, dtype), "b": jnp.zeros(4, dtype), "head": jnp.ones((4, 2), dtype)}
    trace = partial(trace_model, apply, check=False)
    assert trace(params, jnp.ones((2, 3), dtype)).model.wiring.cloneable == ("w",)
    if dtype != "float32":
        return
    for wrong, inputs in (
        ({**params, "w": jnp.ones((3, 4), int)}, jnp.ones((2, 3))),
        (params, jnp.ones((1, 3))),
        (params, jnp.ones((0, 3))),
        ({}, jnp.ones((2, 3))),
    ):
        with pytest.raises(ValueError, match=r"floating|batch|two or more|no arrays|params"):
            trace(wrong, inputs)


def test_numbers_that_are_not_finite_have_no_rates_and_no_noise(x64, unchecked):
    for wrong in (np.nan, np.inf, 0, 1.5, True, "3"):
        with pytest.raises(ValueError, match="q="):
            stability.noise_exponent(3, wrong)
    assert stability.noise_exponent(np.int64(4), 4) == 1
    for wrong in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match="weight_decay"):
            stability.decayed_clones(MODEL, variables("float64"), BATCH, 2, wrong)
    for wrong in ([0.1, np.nan], [0.1, np.inf], []):
        with pytest.raises(ValueError, match="decays"):
            stability.weight_decay_threshold(MODEL, variables("float64"), BATCH, 2, decays=wrong)
    broken = jnp.zeros((6, 2, 2)).at[3].set(jnp.nan)
    estimate = stability.transverse_lyapunov(jnp.matmul, jnp.zeros(2), broken, 0.5, jax.random.key(0))
    assert np.isnan(estimate.exponent)
    line = manifolds.Manifold(jnp.zeros(2), lambda v: v * jnp.array([1.0, 0]), is_affine=True)
    along = partial(stability.escape_time_along, lambda p: p[0] - 0.5 * p[1] ** 2, jnp.zeros(2), line)
    for kick, radius, rate in (([0.0, np.nan], 0.1, 0.1), ([0.0, 0.1], np.nan, 0.1), ([0.0, 0.1], 0.1, np.nan)):
        with pytest.raises(ValueError, match=r"normal|positive"):
            along(jnp.array(kick), radius, rate, 10)
    for rate in (np.nan, np.inf):
        with pytest.raises(ValueError, match="learning_rate"):
            recovery.critical_noise(UnitBlocks({}, None), 0.1, 10, rate)


# --- Manifolds of multiples and symmetries ----------------------------------------------------------------------------

PARTITION, MULTIPLES = {"hidden_0": (0, 0, 1, 2, 3)}, {"hidden_0": (1.0, 2.0, 1.0, 1.0, 1.0)}


def swapped(params):
    """The fourth and fifth unit change places: a symmetry of every loss."""
    order = jnp.array([0, 1, 2, 4, 3])
    hidden, classes = params["hidden_0"], params["classes"]
    return {
        "hidden_0": {"kernel": hidden["kernel"][:, order], "bias": hidden["bias"][order]},
        "classes": {**classes, "kernel": classes["kernel"][order]},
    }


@cache
def made(dtype):
    params = variables(dtype)["params"]
    fixed = jax.tree.map(lambda a, b: (a + b) / 2, params, swapped(params))
    at = partial(manifolds.weighted_manifold, wiring=MODEL.wiring, partition=PARTITION, multiples=MULTIPLES)
    return {
        "weighted_manifold": at(params),
        "isometric_manifold": manifolds.isometric_manifold(params, swapped, at),
        "fixed_point_manifold": manifolds.fixed_point_manifold(fixed, swapped),
    }


@pytest.mark.parametrize("name", ["weighted_manifold", "isometric_manifold", "fixed_point_manifold"])
def test_projectors_of_every_type_scale_and_of_what_is_not_finite(x64, name):
    vector = jax.tree.map(
        lambda leaf: jnp.round(4 * jnp.sin(1.0 + jnp.arange(leaf.size))).reshape(leaf.shape), variables()["params"]
    )
    expected = flat(made("float64")[name].project(vector))
    assert np.linalg.norm(expected) < 0.999 * np.linalg.norm(flat(vector))
    for dtype in ("bfloat16", "float32"):
        cast = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), vector)
        found = made(dtype)[name].project(cast)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {dtype}
        np.testing.assert_allclose(
            flat(found), expected, rtol=8 * float(jnp.finfo(dtype).eps), atol=8 * float(jnp.finfo(dtype).eps)
        )
    large = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) * 2.0**100, vector)
    np.testing.assert_allclose(flat(made("float32")[name].project(large)) / 2.0**100, expected, rtol=1e-5, atol=1e-5)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, vector)
    assert np.isnan(flat(made("float64")[name].project(broken))).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_manifolds_through_points_that_are_not_finite_are_refused_or_not_certified(x64, bad):
    broken = variables("float64")
    broken["params"]["hidden_0"]["kernel"] = broken["params"]["hidden_0"]["kernel"].at[0, 0].set(bad)
    for refused in (
        lambda: manifolds.isometric_manifold(
            broken["params"], swapped, lambda there: made("float64")["weighted_manifold"]
        ),
        lambda: manifolds.fixed_point_manifold(broken["params"], swapped),
        lambda: manifolds.weighted_manifold(broken["params"], MODEL.wiring, PARTITION, {"hidden_0": (bad,) * 5}),
        lambda: certificates.certify_weighted(MODEL, broken, BATCH, PARTITION, MULTIPLES),
        lambda: certificates.certify_weighted(MODEL, variables(), (BATCH[0][:0], BATCH[1][:0]), PARTITION, MULTIPLES),
    ):
        with pytest.raises(ValueError, match=r"finite|not affine|not fixed|at least one"):
            refused()
    unjudged = certificates.certify_weighted(MODEL, broken, None, PARTITION, MULTIPLES)
    assert unjudged.verdict is certificates.WeightedVerdict.UNDECIDED
    bad_inputs = jnp.where(BATCH[0] == 2, bad, BATCH[0])
    assert certificates.leaves_loss_unchanged(MODEL, variables("float64"), (bad_inputs, BATCH[1]), swapped) is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_multiples_and_symmetries_are_certified_in_every_type(x64, dtype):
    """Outgoing weights of units 0 and 1 made multiples as well; then a control that is none."""
    given = variables(dtype)
    kernel = given["params"]["classes"]["kernel"]
    given["params"]["classes"]["kernel"] = kernel.at[1].set(2 * kernel[0])
    assert (
        certificates.certify_weighted(MODEL, given, BATCH, PARTITION).verdict is certificates.WeightedVerdict.WEIGHTED
    )
    other = {"params": {**given["params"], "classes": {**given["params"]["classes"], "kernel": kernel}}}
    found = certificates.certify_weighted(MODEL, other, BATCH, PARTITION)
    assert found.verdict is not certificates.WeightedVerdict.WEIGHTED
    assert certificates.leaves_loss_unchanged(MODEL, given, BATCH, swapped) is True

    def halfway(params):
        return jax.tree.map(lambda a, b: (a + b) / 2, params, swapped(params))

    assert certificates.leaves_loss_unchanged(MODEL, given, BATCH, halfway) is False
