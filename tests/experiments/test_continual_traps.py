"""Distances to clones and radii of dead units along a run, against plain NumPy on a network with known ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.continual.traps import NEAR, trap_distances
from lopjax.models import mlp

MODEL = mlp((3,), (5, 4), 2, norm="none")
NORMED = mlp((3,), (4,), 2, norm="batch")
INPUTS = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
PROBE = jnp.asarray(INPUTS)
DISTANCES = jax.jit(lambda variables: trap_distances(MODEL, variables, PROBE, MODEL.apply(variables, PROBE).taps))


def network() -> dict:
    """In the first layer unit 3 is nearly twice unit 0, unit 4 dead by its bias; in the second nothing is."""
    random = np.random.default_rng(1)
    first, second = random.normal(size=(3, 5)), np.abs(random.normal(size=(5, 4)))
    first[:, 3] = 2 * first[:, 0] * (1 + 1e-3 * random.normal(size=3))
    params = {
        "hidden_0": {"kernel": first, "bias": np.array([0.1, 0.3, 0.2, 0.2, -50.0])},
        "hidden_1": {"kernel": second, "bias": np.ones(4)},
        "classes": {"kernel": random.normal(size=(4, 2)), "bias": np.zeros(2)},
    }
    return {"params": jax.tree.map(lambda leaf: leaf.astype(np.float32), params)}


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    return {name: float(value) for name, value in DISTANCES(network()).items()}


def test_the_nearest_clones_are_found_up_to_their_multiple(found):
    layer = network()["params"]["hidden_0"]
    h = np.maximum(INPUTS.astype(float) @ layer["kernel"] + layer["bias"], 0)
    # The nearest multiple of one row to the other: that of their lengths.
    unit = h / np.maximum(np.linalg.norm(h, axis=0), 1e-300)
    expected = np.linalg.norm(unit[:, 0] - unit[:, 3])
    assert expected < NEAR
    np.testing.assert_allclose(found["clones/nearest/hidden_0"], expected, rtol=1e-3)
    assert found["clones/near/hidden_0"] == pytest.approx(2 / 5)
    assert found["clones/nearest/hidden_1"] > NEAR
    assert found["clones/near/hidden_1"] == 0


def test_no_smaller_change_wakes_a_dead_unit_and_one_of_the_radius_does(found):
    assert (found["trapped/dead/hidden_0"], found["trapped/dead/hidden_1"]) == (1, 0)
    assert np.isinf(found["trapped/radius/hidden_1"])
    radius, layer = found["trapped/radius/hidden_0"], network()["params"]["hidden_0"]
    reads = np.concatenate([INPUTS, np.ones((20, 1))], axis=1).astype(float)
    weights = np.append(layer["kernel"][:, 4], layer["bias"][4]).astype(float)
    radii = -reads @ weights / np.linalg.norm(reads, axis=1)
    nearest = radii.argmin()
    np.testing.assert_allclose(radius, radii[nearest], rtol=1e-4)
    assert radius < radii[nearest]  # rounding counts against it
    change = reads[nearest] / np.linalg.norm(reads[nearest])
    assert (reads @ (weights + 0.999 * radius * change) < 0).all()
    assert (reads @ (weights + 1.001 * radius * change)).max() > 0


def test_a_unit_that_is_only_just_off_is_not_certified():
    variables = network()
    layer = variables["params"]["hidden_0"]
    highest = (INPUTS.astype(float) @ layer["kernel"][:, 4]).max()
    for gap, certified in ((1e-3, 1), (1e-8, 0)):  # below zero on every sample, by more and by less than rounding
        layer["bias"][4] = -highest - gap
        assert DISTANCES(variables)["trapped/dead/hidden_0"] == certified


def test_behind_a_norm_no_radius_is_claimed():
    variables = jax.jit(NORMED.init)(jax.random.key(0))
    found = jax.eval_shape(lambda v: trap_distances(NORMED, v, PROBE, NORMED.apply(v, PROBE).taps), variables)
    assert set(found) == {"clones/nearest/hidden_0", "clones/near/hidden_0"}
