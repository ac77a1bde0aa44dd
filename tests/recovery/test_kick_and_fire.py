"""FIRE cannot part exact clones; after a free kick, which changes no output, it can."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax.interventions import Setting, fire, split_clones
from lopjax.losses import mean_squared_error
from lopjax.models import mlp
from lopjax.optim import muon
from lopjax.signals import observe
from lopjax.training import init_state

MODEL = mlp((3,), (4, 5), 2, activation="tanh", norm="none")
RANDOM = np.random.default_rng(0)
INPUTS, TARGETS = RANDOM.normal(size=(30, 3)), RANDOM.normal(size=(30, 2))


def clones():
    """Units 0 and 1 of the first layer are exact clones."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape), shapes)["params"]
    for array in (params["hidden_0"]["kernel"], params["hidden_0"]["bias"][None]):
        array[:, 1] = array[:, 0]
    params["hidden_1"]["kernel"][1] = params["hidden_1"]["kernel"][0]
    return {"params": jax.tree.map(jnp.asarray, params)}


@pytest.mark.slow
def test_fire_keeps_exact_clones_and_magnifies_what_a_free_kick_has_parted(x64):
    optimizer, orthogonal = optax.sgd(0.1), muon(0.1, MODEL.wiring)
    setting, batch = Setting(MODEL, optimizer, mean_squared_error), (jnp.asarray(INPUTS), jnp.asarray(TARGETS))

    @jax.jit
    def acted(variables, kick, fires):
        state = init_state(variables, optimizer)
        seen = observe(MODEL, variables, batch, loss=mean_squared_error)
        kicked = split_clones(1e-6, 1, size=0.05, spaces=["hidden_0"]).apply(
            setting, (), state, seen, jax.random.key(0), 0
        )
        state = jax.tree.map(lambda a, b: jnp.where(kick, a, b), kicked[0], state)
        burnt = fire(every=1).apply(setting, (), state, seen, jax.random.key(1), 0)[0]
        state = jax.tree.map(lambda a, b: jnp.where(fires, a, b), burnt, state)
        params, logits = state.variables["params"], MODEL.apply(state.variables, batch[0]).logits
        gradient = observe(MODEL, state.variables, batch, loss=mean_squared_error).gradient
        step = orthogonal.update(gradient, orthogonal.init(params), params)[0]["hidden_0"]["kernel"]
        return params["hidden_1"]["kernel"], logits, gradient["hidden_0"]["kernel"], step

    def apart(rows):
        return float(np.linalg.norm(rows[0] - rows[1]) / np.linalg.norm(rows[0] + rows[1]))

    found = {
        name: jax.device_get(acted(clones(), *flags))
        for name, flags in {
            "none": (False, False),
            "fire": (False, True),
            "kick": (True, False),
            "both": (True, True),
        }.items()
    }
    outgoing = {name: apart(one[0]) for name, one in found.items()}
    gradients = {name: apart(one[2].T) for name, one in found.items()}
    # Muon's step is U V' of the gradient, whose columns are equal for clones, and differ after the kick.
    steps = {name: apart(one[3].T) for name, one in found.items()}
    left, _, right = np.linalg.svd(np.asarray(found["kick"][2]), full_matrices=False)
    assert max(steps["none"], steps["fire"]) < 1e-12
    assert steps["kick"] == pytest.approx(apart((left @ right).T), rel=0.5)
    assert min(steps["kick"], steps["both"]) > 0.1
    assert outgoing["fire"] < 1e-14
    assert gradients["fire"] < 1e-13  # trapped still
    np.testing.assert_allclose(found["kick"][1], found["none"][1], rtol=0, atol=1e-13)  # no jump of any output
    assert 0.01 < outgoing["kick"] < 0.2
    assert gradients["kick"] > 1e-4
    assert outgoing["both"] > 4 * outgoing["kick"]
    assert gradients["both"] > 1e-2  # and free, as the kick alone would have made them
