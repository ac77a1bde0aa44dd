"""The monitor in loops that are not ours: it sees a unit die and two become one, and changes nothing."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopjax as lop
from lopjax.detection import Status, load_lives, save_lives
from lopjax.losses import mean_squared_error
from lopjax.recovery import life_table
from lopjax.recovery.monitor import _forecast


@jax.tree_util.register_dataclass
@dataclass
class Module:
    hidden_0: dict
    classes: dict


RANDOM = np.random.default_rng(2)
PROBE = RANDOM.normal(size=(20, 3)).astype(np.float32), RANDOM.normal(size=(20, 2)).astype(np.float32)
MODEL = lop.models.mlp((3,), (5,), 2, norm="none")


def params_at(step):
    """Unit 1 falls into unit 0 at e^(-0.01 t), unit 4 dies at step 60."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))["params"]
    params = jax.tree.map(lambda leaf: np.random.default_rng(3).normal(size=leaf.shape).astype(np.float32), shapes)
    kernel, bias = params["hidden_0"]["kernel"], params["hidden_0"]["bias"]
    bias[:], bias[4] = 0.5, 0.5 if step < 60 else -30
    kernel[:, 1] = kernel[:, 0] + np.exp(-0.01 * step) * kernel[:, 1]
    return params


def test_a_monitor_sees_deaths_and_forecasts_clones(tmp_path):
    watch = lop.monitor(MODEL, PROBE, loss=mean_squared_error, window=6, on={"dying": 0.2}, off={"dying": 0.1})
    state, reports = watch.init(params_at(0)), []
    for step in range(0, 421, 20):
        state, report = watch.update(state, params_at(step), step)
        reports.append(report)
    died = [int(report.step) for report in reports if report.events["died"]]
    assert died == [60]
    assert not reports[2].is_alarm
    assert reports[3].is_alarm
    assert "1 died" in str(reports[3])
    assert "dying since step 60" in str(reports[-1])
    # d = d0 e^(-0.01 t): to 1e-3 it takes ln(d / 1e-3) / 0.01 steps.
    distance = float(reports[-1].nearness["hidden_0"].activations.distance[1])
    forecast = reports[-1].forecast["hidden_0"]
    assert float(forecast.steps[1]) == pytest.approx(100 * np.log(distance / 1e-3), rel=0.1)
    assert np.isinf(forecast.steps[2])
    assert "hidden_0[0] is a clone of unit 1 in about" in str(reports[-1])
    # Far away the rate is as sure, but the law is not: no text promises anything.
    far = [one for one in reports if float(one.nearness["hidden_0"].activations.distance[1]) > 0.1]
    assert any(bool(one.forecast["hidden_0"].is_decided[1]) for one in far)
    assert not any("a clone of unit" in str(one) for one in far)
    table = load_lives(save_lives(life_table(reports), tmp_path / "lives.npz"))
    assert table.status["hidden_0"][:, 4].tolist() == [Status.ALIVE] * 3 + [Status.DEAD] * 19


def test_measurements_need_not_be_equally_spaced_and_few_promise_nothing():
    """d = e^(-0.01 t) at uneven steps; and noise around no trend, which three points often line up along."""
    steps = jnp.array([-1, 0, 10, 20, 400, 420])
    falling = jnp.exp(-0.01 * jnp.maximum(steps, 0.0)).at[0].set(jnp.nan)[:, None]
    found = _forecast(falling, jnp.zeros(falling.shape, int), steps)
    assert float(found.steps[0]) == pytest.approx(np.log(float(falling[-1, 0]) / 1e-3) / 0.01, rel=1e-3)
    assert bool(found.is_decided[0])
    random = np.random.default_rng(0)
    for known in (3, 5, 12):
        noise = np.exp(random.normal(size=(12, 4000)))
        noise[:-known] = np.nan
        one_pair = jnp.zeros(noise.shape, int)
        found = _forecast(jnp.asarray(noise, jnp.float32), one_pair, 10 * jnp.arange(12))
        share = float(jnp.mean(found.is_decided))
        assert 0.03 < share < 0.06  # beyond two standard errors by chance: 4.6 %


def test_a_forecast_is_of_the_pair_that_is_nearest_now():
    """Unit 0 was near 1, at e^(-0.02 t), and for the last four measurements is nearer to 2, at 0.05 e^(-0.005 t)."""
    steps = 10 * jnp.arange(12)
    former, present = jnp.exp(-0.02 * steps), 0.05 * jnp.exp(-0.005 * steps)
    is_present = jnp.arange(12) >= 8
    distances = jnp.where(is_present, present, former)[:, None]
    partners = jnp.where(is_present, 2, 1)[:, None]
    expected = np.log(float(present[-1]) / 1e-3) / 0.005
    assert float(_forecast(distances, partners, steps).steps[0]) == pytest.approx(expected, rel=1e-3)
    # As if it were one pair, the jump from one to the other would be a fall: surely, and much too soon.
    mixed = _forecast(distances, jnp.zeros_like(partners), steps)
    assert bool(mixed.is_decided[0])
    assert float(mixed.steps[0]) < expected / 3
    # The same unit as a mirror twin is another pair, of which two measurements are no rate.
    twin = _forecast(distances, jnp.where(jnp.arange(12) >= 10, -3, partners[:, 0])[:, None], steps)
    assert np.isnan(float(twin.steps[0]))
    assert not bool(twin.is_decided[0])


def test_a_monitor_reads_the_parameters_of_an_nnx_network():
    nnx = pytest.importorskip("flax.nnx", reason="NNX is not installed")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden_0, self.classes = nnx.Linear(3, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            return self.classes(jax.nn.relu(self.hidden_0(x)))

    net = Net(nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    watch = lop.monitor(MODEL, PROBE, loss=mean_squared_error)
    _, report = watch.update(watch.init(params), params, 0)
    assert float(report.loss) == pytest.approx(
        float(mean_squared_error(net(jnp.asarray(PROBE[0])), jnp.asarray(PROBE[1]))), rel=1e-5
    )


def test_parameters_of_another_network_and_bad_settings_are_refused(unchecked):
    watch = lop.monitor(MODEL, PROBE, loss=mean_squared_error)
    with pytest.raises(ValueError, match="hidden_1"):
        watch.init({**params_at(0), "hidden_1": {"kernel": np.zeros((5, 5))}})
    with pytest.raises(ValueError, match=r"params of type Module.*traced\.split\(params\)"):
        watch.init(Module(**params_at(0)))
    for settings, message in (
        ({"window": 3}, "window=3: must be an integer of at least 4"),
        ({"on": {"dying": 0.1}}, "off < on"),
        ({"clone_tolerance": -1.0}, "clone_tolerance=-1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            lop.monitor(MODEL, PROBE, **settings)
    with pytest.raises(ValueError, match="have no samples: give at least one"):
        lop.monitor(MODEL, (PROBE[0][:0], PROBE[1][:0]))
