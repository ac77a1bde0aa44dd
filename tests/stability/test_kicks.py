"""Kicks of outgoing weights: the next gradient, the escape, and the rank they can give back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracles.critical_clones import BASE, PARTITION, WIDE, critical_clones

from lopjax.cloning import clone_variables, uniform_partition
from lopjax.losses import mse
from lopjax.models import mlp
from lopjax.stability import escape_time, free_kick, rank_ceiling


def numpy_coupling(base, batch, unit):
    """`B_j = sum_x f'(z_j) phi delta'` of a tanh unit before the outputs, delta = (y - t) / N."""
    inputs, targets = (np.asarray(part) for part in batch)
    layers = [jax.tree.map(np.asarray, layer) for layer in base["params"].values()]
    hidden, head = sorted(layers, key=lambda layer: layer["kernel"].shape)  # (2, 3) and (3, 2)
    activation = np.tanh(inputs @ hidden["kernel"] + hidden["bias"])
    delta = (activation @ head["kernel"] + head["bias"] - targets) / len(inputs)
    phi = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    return (phi * (1 - activation[:, [unit]] ** 2)).T @ delta


@pytest.mark.parametrize("unit", [0, 2])
def test_a_free_kick_changes_no_output_until_the_next_gradient(x64, unit):
    batch, base, wide = critical_clones()
    loss = mse(WIDE, wide, batch)
    kick = free_kick(loss, wide["params"], WIDE.wiring, PARTITION, "hidden_0", unit)
    np.testing.assert_allclose(kick.gain, np.linalg.svd(numpy_coupling(base, batch, unit))[1][0], rtol=1e-10)
    np.testing.assert_allclose(jnp.linalg.norm(ravel_pytree(kick.direction)[0]), 1, rtol=1e-12)
    kicked = jax.tree.map(lambda leaf, step: leaf + 0.7 * step, wide["params"], kick.direction)

    def logits(params):
        return WIDE.apply({**wide, "params": params}, batch[0]).logits

    np.testing.assert_allclose(logits(kicked), logits(wide["params"]), atol=1e-12)
    # The gradient by a unit's incoming weights is linear in its outgoing ones: B_j r appears whatever the length.
    change = jax.tree.map(jnp.subtract, jax.grad(loss)(kicked), jax.grad(loss)(wide["params"]))
    expected = 0.7 * ravel_pytree(kick.response)[0]
    np.testing.assert_allclose(ravel_pytree(change)[0], expected, atol=1e-12)
    assert np.abs(expected).max() > 1e-3
    # Control: the same change with equal signs on both clones is seen in the outputs at once.
    equal = jax.tree.map(lambda leaf, step: leaf + 0.7 * jnp.abs(step), wide["params"], kick.direction)
    assert np.abs(logits(equal) - logits(wide["params"])).max() > 1e-3


def test_free_kick_refuses_points_off_bc_and_units_without_clones(unchecked):
    wide = clone_variables(BASE.init(jax.random.key(0)), BASE.wiring, 2)
    batch = jnp.ones((4, 2)), jnp.zeros((4, 2))
    loss = mse(WIDE, wide, batch)
    arguments = wide["params"], WIDE.wiring, PARTITION
    with pytest.raises(ValueError, match="has no clones"):
        free_kick(loss, *arguments, "input", 0)
    with pytest.raises(ValueError, match="unit=3"):
        free_kick(loss, *arguments, "hidden_0", 3)
    with pytest.raises(ValueError, match="no clone"):
        free_kick(loss, wide["params"], WIDE.wiring, {"hidden_0": (0, 0, 1, 2, 3, 4)}, "hidden_0", 1)
    unequal = WIDE.init(jax.random.key(1))["params"]
    with pytest.raises(ValueError, match="not block constant"):
        free_kick(loss, unequal, WIDE.wiring, PARTITION, "hidden_0", 0)


@pytest.mark.slow
def test_the_kick_aimed_at_escape_is_the_first_to_escape(x64):
    # Three outputs: the coupling has rank 2 at a critical point, so that directions differ; dense modes are the oracle.
    rng, model = np.random.default_rng(2), mlp((2,), (2,), 3, activation="tanh")
    base = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), model.init(jax.random.key(0)))
    batch = jnp.asarray(rng.normal(size=(16, 2))), jnp.asarray(rng.normal(size=(16, 3)))
    wide, wide_model = clone_variables(base, model.wiring, 2), mlp((2,), (4,), 3, activation="tanh")
    loss, partition = mse(wide_model, wide, batch), uniform_partition(wide_model.wiring, 2)
    kicks = {
        aim: free_kick(loss, wide["params"], wide_model.wiring, partition, "hidden_0", 0, aim=aim)
        for aim in ("next gradient", "escape")
    }
    flat, unravel = ravel_pytree(wide["params"])
    hessian = np.asarray(jax.jit(jax.hessian(lambda vector: loss(unravel(vector))))(flat))
    # The patterns (+, -)/sqrt(2) on the first two units: kernel columns, bias and rows.
    names = [("hidden_0", "kernel", (slice(None), slice(0, 2))), ("hidden_0", "bias", slice(0, 2))]
    rows = []
    for layer, name, where in [*names, ("classes", "kernel", slice(0, 2))]:
        shape = wide["params"][layer][name].shape
        mask = np.zeros(shape)
        mask[where] = 1
        axis = 0 if layer == "classes" else len(shape) - 1
        sign = np.array([1, -1, 0, 0]).reshape([-1 if index == axis else 1 for index in range(len(shape))])
        for other in range(mask.size // shape[axis]):
            one = np.moveaxis(np.zeros(shape), axis, 0).reshape(shape[axis], -1)
            one[:2, other] = [0.5**0.5, -(0.5**0.5)]
            full = np.moveaxis(one.reshape([shape[axis], *np.delete(shape, axis)]), 0, axis)
            tree = jax.tree.map(np.zeros_like, wide["params"])
            tree[layer][name] = full * (sign != 0)
            rows.append(ravel_pytree(tree)[0])
    rows = np.array(rows)
    values, vectors = np.linalg.eigh(rows @ hessian @ rows.T)
    outgoing = np.where(np.arange(len(values)) < 3, 0, vectors[:, 0])
    outgoing /= np.linalg.norm(outgoing)
    directions = {aim: rows @ ravel_pytree(kick.direction)[0] for aim, kick in kicks.items()}
    np.testing.assert_allclose(abs(directions["escape"] @ outgoing), 1, rtol=1e-9)
    np.testing.assert_allclose(kicks["escape"].rate, -values[0], rtol=1e-9)
    assert kicks["next gradient"].gain >= kicks["escape"].gain
    times = {aim: float(escape_time(values, vectors.T @ (1e-6 * row), 0.1, 0.05)) for aim, row in directions.items()}
    assert times["escape"] <= times["next gradient"]
    # Control: the two are not the same direction here.
    assert abs(directions["escape"] @ directions["next gradient"]) < 0.999


@pytest.mark.slow
def test_rank_ceiling_counts_the_couplings_of_numpy(x64):
    batch, base, wide = critical_clones()
    arguments = WIDE.wiring, PARTITION, "hidden_0"
    found = rank_ceiling(mse(WIDE, wide, batch), wide["params"], *arguments)
    expected = [np.linalg.svd(numpy_coupling(base, batch, unit))[1] for unit in range(3)]
    np.testing.assert_allclose(found.singular_values, expected, atol=1e-12)
    # One less than outputs at a critical point, as many as outputs beside it.
    assert found.coupling_ranks.tolist() == [1, 1, 1]
    assert found.ceiling == 3
    moved = {**base, "params": jax.tree.map(lambda leaf: leaf + 0.1, base["params"])}
    beside = clone_variables(moved, BASE.wiring, 2)
    off = rank_ceiling(mse(WIDE, beside, batch), beside["params"], *arguments)
    assert off.coupling_ranks.tolist() == [2, 2, 2]
    assert off.ceiling == 3  # two clones have one pattern each


def test_kicks_refuse(unchecked):
    wide = clone_variables(BASE.init(jax.random.key(0)), BASE.wiring, 2)
    loss = mse(WIDE, wide, (jnp.ones((4, 2)), jnp.zeros((4, 2))))
    with pytest.raises(ValueError, match="aim='up'"):
        free_kick(loss, wide["params"], WIDE.wiring, PARTITION, "hidden_0", 0, aim="up")
    with pytest.raises(ValueError, match="zero_level=1"):
        rank_ceiling(loss, wide["params"], WIDE.wiring, PARTITION, "hidden_0", zero_level=1.0)
    with pytest.raises(ValueError, match="has no clones"):
        rank_ceiling(loss, wide["params"], WIDE.wiring, PARTITION, "input")
