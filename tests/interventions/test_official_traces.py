"""Continual backprop as in the official code, against traces of that code, whose redrawn weights are injected."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import drawn_at_once
from oracles.reference import REFERENCE, requires_reference

from lopjax import models
from lopjax.interventions import Setting, continual_backprop, intervene, start_intervention
from lopjax.optim import adam_per_weight
from lopjax.training import init_state, train_step

LAYERS = {"hidden_0": "layers.0", "hidden_1": "layers.2", "classes": "layers.4"}
HIDDEN = ("hidden_0", "hidden_1")
MODEL = drawn_at_once(models.mlp((6,), (8, 8), 3))
CASES = {
    "contribution_sgd": (optax.sgd(0.02), "contribution"),
    "adaptable_sgd": (optax.sgd(0.02), "adaptable_contribution"),
    "contribution_momentum": (optax.sgd(0.02, 0.9), "contribution"),
    "contribution_adam": (adam_per_weight(0.002, variant="official"), "contribution"),
}


def squared_error(outputs, targets):
    """As `torch.nn.functional.mse_loss`: the mean over samples and outputs."""
    return jnp.mean(jnp.square(outputs - targets))


def params_of(trace, when, step=None):
    """Their parameters as ours: kernels are `(in, out)`."""
    pick = (lambda name: trace[f"{when}/{name}"]) if step is None else (lambda name: trace[f"{when}/{name}"][step])
    return {n: {"kernel": pick(f"{o}.weight").T.copy(), "bias": pick(f"{o}.bias").copy()} for n, o in LAYERS.items()}


def injected(params, theirs, replaced):
    """Incoming weights of replaced units as the official code has drawn them."""
    params = jax.tree.map(np.array, params)
    for layer, name in enumerate(HIDDEN):
        kernel, units = params[name]["kernel"], replaced[layer]
        kernel[:, units] = theirs[name]["kernel"][:, units]
    return params


@requires_reference
@pytest.mark.parametrize("case", CASES)
def test_every_step_of_the_official_code(case, x64):
    optimizer, utility = CASES[case]
    with np.load(REFERENCE / "continual_backprop_official.npz") as file:
        trace = {name.removeprefix(f"{case}/"): file[name] for name in file.files if name.startswith(f"{case}/")}
    setting = Setting(MODEL, optimizer, squared_error)
    method = continual_backprop(0.02, 0.9, 5, utility=utility, variant="official")
    step = jax.jit(lambda state, batch: train_step(MODEL, optimizer, state, batch, loss=squared_error))
    acts = jax.jit(lambda state, seen, key, t: intervene(method, setting, state, seen, key, t))
    variables = {"params": jax.tree.map(jnp.asarray, params_of(trace, "initial"))}
    state = start_intervention(method, setting, init_state(variables, optimizer))
    for t, (x, y) in enumerate(zip(trace["inputs"], trace["targets"], strict=True)):
        state, seen = step(state, (x, y))
        np.testing.assert_allclose(seen.loss, trace["loss"][t], rtol=1e-10)
        state, report = acts(state, seen, jax.random.key(t), jnp.int32(t))
        replaced, theirs = trace["replaced"][t], params_of(trace, "after", t)
        for layer, name in enumerate(HIDDEN):
            np.testing.assert_array_equal(report.touched[name], replaced[layer], err_msg=f"step {t}, {name}")
            np.testing.assert_allclose(state.own.utility[name], trace["util"][t, layer], rtol=1e-9, atol=1e-13)
            np.testing.assert_allclose(state.own.mean[name], trace["mean_act"][t, layer], rtol=1e-9, atol=1e-13)
            np.testing.assert_array_equal(state.own.age[name], trace["ages"][t, layer])
            np.testing.assert_array_equal(np.asarray(state.variables["params"][name]["bias"])[replaced[layer]], 0)
        params = injected(state.variables["params"], theirs, replaced)
        for ours, official in zip(jax.tree.leaves(params), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(ours, official, rtol=1e-9, atol=1e-11, err_msg=f"step {t}")
        state = state._replace(variables={"params": params})
    assert trace["replaced"].sum() > 30
