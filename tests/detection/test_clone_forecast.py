"""When will a pair be on its manifold? The forecast from minibatches against training, with and without decay."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.detection import approach, clone_forecast, gradient_readiness
from lopjax.losses import mean_squared_error
from lopjax.models import mlp

MODEL = mlp((2,), (2,), 1, activation="tanh", norm="none")
RANDOM = np.random.default_rng(0)
INPUTS = RANDOM.normal(size=(64, 2))
TARGETS = 1.5 * np.tanh(INPUTS[:, :1] - 0.5 * INPUTS[:, 1:]) + 0.1 * RANDOM.normal(size=(64, 1))
RATE, STEPS = 0.2, 4000


def trained(params, decay, key):
    """Minibatches of eight, and by step the distance of both units of every lane."""

    def step(params, index):
        batch = jnp.asarray(INPUTS)[index], jnp.asarray(TARGETS)[index]
        gradient = jax.grad(lambda p: mean_squared_error(MODEL.apply({"params": p}, batch[0]).logits, batch[1]))(params)
        params = jax.tree.map(lambda p, g: p - RATE * (g + decay * p), params, gradient)
        hidden, out = params["hidden_0"], params["classes"]["kernel"]
        parts = (hidden["kernel"].T, hidden["bias"][:, None], out)
        return params, jnp.sqrt(sum(jnp.sum(jnp.square(part[0] - part[1])) for part in parts) / 2)

    return jax.lax.scan(step, params, jax.random.randint(key, (STEPS, 8), 0, 64))


@pytest.mark.slow
def test_a_pair_is_on_its_manifold_when_the_exponent_says_and_without_decay_it_leaves(x64):
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))["params"]
    params = jax.tree.map(lambda leaf: np.random.default_rng(7).normal(size=leaf.shape) * 0.5, shapes)
    for array in (params["hidden_0"]["kernel"].T, params["hidden_0"]["bias"], params["classes"]["kernel"]):
        array[1] = array[0]
    train = jax.jit(jax.vmap(trained, in_axes=(None, None, 0)))
    index = jax.random.randint(jax.random.key(2), (3000, 8), 0, 64)
    batches = jnp.asarray(INPUTS)[index], jnp.asarray(TARGETS)[index]
    found = {}
    for decay in (0.0, 0.03):
        settled = jax.tree.map(
            lambda leaf: np.array(leaf[0]), train(params, decay, jax.random.split(jax.random.key(1), 3))[0]
        )
        # Both units in opposite directions: what they have in common stays where training has settled.
        settled["hidden_0"]["kernel"] += np.outer([0.05, -0.02], [1, -1])
        settled["classes"]["kernel"] += np.outer([1, -1], [0.04])
        forecast = clone_forecast(
            MODEL, {"params": settled}, batches, "hidden_0", (0, 1), RATE, jax.random.key(3),
            weight_decay=decay, loss=mean_squared_error, burn_in=1000,
        )  # fmt: skip
        distances = np.asarray(train(settled, decay, jax.random.split(jax.random.key(4), 3))[1])
        relative = distances / distances[:, :1] * float(forecast.distance)
        found[decay] = forecast, relative
    forecast, relative = found[0.03]
    crossed = np.argmax(relative < 1e-3, axis=1)
    assert (crossed > 0).all()
    assert forecast.growth.exponent + 4 * forecast.growth.standard_error < 0
    assert float(forecast.forecast.steps) == pytest.approx(crossed.mean(), rel=0.15)
    assert "on the manifold in about" in str(forecast)
    forecast, relative = found[0.0]
    assert np.isinf(forecast.forecast.steps)
    assert bool(forecast.forecast.is_decided)
    assert (relative[:, -1] > 1.5 * relative[:, 0]).all()
    assert "repels" in str(forecast)


@pytest.mark.slow
def test_the_standard_error_knows_that_a_deviation_has_not_turned_yet(x64, monkeypatch):
    """Forty full batches, far too few: random starts agree within their errors, and those of one deviation do not."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))["params"]
    params = jax.tree.map(lambda leaf: np.random.default_rng(7).normal(size=leaf.shape) * 0.5, shapes)
    for array in (params["hidden_0"]["kernel"].T, params["hidden_0"]["bias"], params["classes"]["kernel"]):
        array[1] = array[0]
    batches = np.broadcast_to(INPUTS, (40, 64, 2)), np.broadcast_to(TARGETS, (40, 64, 1))

    def growth(seed):
        return clone_forecast(
            MODEL, {"params": params}, batches, "hidden_0", (0, 1), 0.02, jax.random.key(seed),
            weight_decay=0.03, loss=mean_squared_error, burn_in=20,
        ).growth  # fmt: skip

    def furthest():
        found = [growth(seed) for seed in range(3)]
        return max(
            abs(one.exponent - other.exponent) / np.hypot(one.standard_error, other.standard_error)
            for one, other in itertools.combinations(found, 2)
        )

    assert furthest() < 2
    monkeypatch.setattr(approach, "DIRECTIONS", 1)
    assert furthest() > 10


def test_a_pair_that_is_none_is_refused(unchecked):
    variables = {
        "params": jax.tree.map(lambda leaf: np.zeros(leaf.shape), jax.eval_shape(MODEL.init, jax.random.key(0)))
    }
    for pair, message in (((0, 0), "two different units"), ((0, 2), "which has 2"), ((0, -1), "two different units")):
        with pytest.raises(ValueError, match=message):
            clone_forecast(MODEL, variables, (INPUTS, TARGETS), "hidden_0", pair, 0.1, jax.random.key(0))


def test_strength_and_reliability_are_those_of_single_samples(x64):
    """Another road: gradients by hand of a linear map, sample by sample; groups only add noise of their own."""
    model = mlp((3,), (2,), 1, activation="identity", norm="none")
    random = np.random.default_rng(1)
    inputs, noise = random.normal(size=(4000, 3)), random.normal(size=(4000, 1))
    params = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape), jax.eval_shape(model.init, jax.random.key(0))["params"]
    )
    first, second = params["hidden_0"], params["classes"]
    hidden = inputs @ first["kernel"] + first["bias"]
    targets = hidden @ second["kernel"] + second["bias"] - 0.3 * noise - 0.2
    error = 0.3 * noise + 0.2
    into = error * second["kernel"].T
    parts = [inputs[:, :, None] * into[:, None], into, hidden[:, :, None] * error[:, None], error]
    rows = np.concatenate([part.reshape(len(inputs), -1) for part in parts], axis=1)
    strength, spread = np.sum(rows.mean(axis=0) ** 2), rows.var(axis=0).sum()
    found = gradient_readiness(model, {"params": params}, (inputs, targets), 16, loss=mean_squared_error)
    assert float(found.strength) == pytest.approx(strength, rel=0.05)
    assert float(found.reliability) == pytest.approx(strength / (strength + spread / 16), rel=0.1)
    # The control: a larger batch is more reliable, a fitted network has neither strength nor anything to rely on.
    large = gradient_readiness(model, {"params": params}, (inputs, targets), 1600, loss=mean_squared_error)
    assert float(large.reliability) > float(found.reliability) + 0.1
    fitted = gradient_readiness(model, {"params": params}, (inputs, targets + error), 16, loss=mean_squared_error)
    assert float(fitted.strength) < 1e-20
    with pytest.raises(ValueError, match="at least two samples"):
        gradient_readiness(model, {"params": params}, (inputs[:1], targets[:1]), 16)
