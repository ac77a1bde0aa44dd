"""Methods against slow NumPy written from the papers, step by step: every weight, and which unit is replaced when."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import drawn_at_once
from oracles import resets as slow_numpy

from lopjax import models
from lopjax.interventions import (
    Setting,
    continual_backprop,
    intervene,
    redo,
    self_normalized_resets,
    start_intervention,
)
from lopjax.losses import mean_squared_error
from lopjax.training import init_state, train_step

SIZES, STEPS, RATE = [5, 6], 60, 0.05
LAYERS = ("hidden_0", "hidden_1", "classes")
MODEL = drawn_at_once(models.mlp((3,), SIZES, 2))
OPTIMIZER = optax.sgd(RATE)
SETTING = Setting(MODEL, OPTIMIZER, mean_squared_error)


@pytest.fixture(scope="module")
def stream():
    """Inputs whose scale and offset change, so that units fall silent and wake; and the draws of every step."""
    random = np.random.default_rng(3)
    offsets = np.repeat(random.normal(size=(STEPS // 4, 1, 3)) * 1.5, 4, axis=0)
    inputs, targets = random.normal(size=(STEPS, 2, 3)) * 0.3 + offsets, random.normal(size=(STEPS, 2, 2))
    with jax.enable_x64(True):
        keys = jax.vmap(lambda t: jax.random.fold_in(jax.random.key(5), t))(jnp.arange(STEPS))
        draws = jax.device_get(jax.jit(jax.vmap(MODEL.init))(keys))
        step = jax.jit(lambda state, batch: train_step(MODEL, OPTIMIZER, state, batch, loss=mean_squared_error))
    return inputs, targets, keys, draws, step


def layers_of(variables, index=None):
    """`[(kernel, bias)]`, of one of many networks if `index` says which."""
    params = variables["params"]
    pick = (lambda leaf: np.asarray(leaf)) if index is None else (lambda leaf: np.asarray(leaf[index]))
    return [(pick(params[name]["kernel"]), pick(params[name]["bias"])) for name in LAYERS]


def run(intervention, oracle_act, stream, check_own=lambda own: None):
    """Both side by side; returns which units were replaced at each step, by layer."""
    inputs, targets, keys, draws, step = stream
    acts = jax.jit(lambda *args: intervene(intervention, SETTING, *args))
    initial = {"params": jax.tree.map(lambda leaf: leaf[0], draws["params"])}
    state = start_intervention(intervention, SETTING, init_state(initial, OPTIMIZER))
    network, history = slow_numpy.Network(layers_of(initial), RATE), []
    for t in range(STEPS):
        state, seen = step(state, (inputs[t], targets[t]))
        state, report = acts(state, seen, keys[t], jnp.int32(t))
        network.step(inputs[t], targets[t])
        touched = oracle_act(network, layers_of(draws, t), t)
        for layer, name in enumerate(LAYERS[:-1]):
            np.testing.assert_array_equal(report.touched[name], touched[layer], err_msg=f"step {t}, {name}")
        for layer, (kernel, bias) in enumerate(layers_of(state.variables)):
            np.testing.assert_allclose(kernel, network.kernels[layer], rtol=1e-12, atol=1e-12, err_msg=f"step {t}")
            np.testing.assert_allclose(bias, network.biases[layer], rtol=1e-12, atol=1e-12, err_msg=f"step {t}")
        check_own(state.own)
        history.append(np.concatenate(touched))
    return np.array(history)


@pytest.mark.parametrize("utility", ["contribution", "adaptable_contribution"])
def test_continual_backprop(utility, stream, x64):
    oracle = slow_numpy.ContinualBackprop(SIZES, 0.03, 0.9, 5, utility)

    def same(own):
        for layer, name in enumerate(LAYERS[:-1]):
            np.testing.assert_allclose(own.utility[name], oracle.utility[layer], rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(own.mean[name], oracle.mean[layer], rtol=1e-12, atol=1e-14)
            np.testing.assert_array_equal(own.age[name], oracle.age[layer])

    method = continual_backprop(0.03, 0.9, 5, utility=utility)
    history = run(method, lambda network, fresh, t: oracle.act(network, fresh), stream, same)
    assert 8 <= history.sum() <= 24
    assert (history[:, :5].any(axis=1) & history[:, 5:].any(axis=1)).any()  # both layers at one step, the hard case


def test_redo(stream, x64):
    def act(network, fresh, t):
        nothing = [np.zeros(size, bool) for size in SIZES]
        return slow_numpy.redo(network, fresh, 0.2) if (t + 1) % 3 == 0 else nothing

    history = run(redo(0.2, 3), act, stream)
    assert history.sum() > 8
    assert not history[(np.arange(STEPS) + 1) % 3 > 0].any()


def test_self_normalized_resets(stream, x64):
    oracle = slow_numpy.SelfNormalizedResets(SIZES, 0.7, 6)
    history = run(self_normalized_resets(0.7, 6), lambda network, fresh, t: oracle.act(network, fresh), stream)
    assert history.sum() > 3
    assert any(record for layer in oracle.ended for record in layer)  # and thresholds of units' own were in use


def test_the_oracle_notices_another_law(stream, x64):
    """The control: one number of the method is another."""
    oracle = slow_numpy.ContinualBackprop(SIZES, 0.03, 0.9, 5, "contribution")
    with pytest.raises(AssertionError, match="step"):
        run(continual_backprop(0.03, 0.9, 6), lambda network, fresh, t: oracle.act(network, fresh), stream)
