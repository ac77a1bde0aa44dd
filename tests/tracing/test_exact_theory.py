"""The exact theory on networks of other libraries and random programs: against dense Hessians, and by optimisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from traced_networks import EXAMPLES

from lopjax.certificates import FrozenVerdict, certify_frozen
from lopjax.cloning import clone_variables
from lopjax.cloning.clone import widen
from lopjax.losses import mean_squared_error
from lopjax.stability import unit_blocks
from lopjax.tracing import trace_model


def drawn(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), tree)


def eigenvalues_of_differences(model, variables, batch, space, n):
    """Those of the dense Hessian where the clones of units of one space differ and their mean stays, in all arrays."""
    wide, clones = widen(model, {space: n}), clone_variables(variables, model.wiring, {space: n})
    flat, unflatten = jax.flatten_util.ravel_pytree(clones)
    hessian = jax.hessian(lambda w: mean_squared_error(wide.apply(unflatten(w), batch[0]).logits, batch[1]))(flat)
    labels = dict(model.wiring.labels)

    def differences(flat):
        def moved(path, array):
            mean = array
            for axis in labels[tuple(key.key for key in path)].unit_axes((space,)):
                grouped = mean.reshape(*array.shape[: axis.index], -1, n, *array.shape[axis.index + 1 :])
                mean = jnp.broadcast_to(grouped.mean(axis.index + 1, keepdims=True), grouped.shape).reshape(array.shape)
            return array - mean

        return jax.flatten_util.ravel_pytree(jax.tree_util.tree_map_with_path(moved, unflatten(flat)))[0]

    project = np.asarray(jax.jacobian(differences)(flat))
    return np.linalg.eigvalsh(project @ hessian @ project.T)


def equinox_network():
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    net = eqx.nn.MLP(2, 1, 3, 2, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_inexact_array)
    return lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, "closed form"


def haiku_network():
    hk = pytest.importorskip("haiku", reason="dm-haiku is not installed")

    def net(x):
        h = hk.LayerNorm(-1, True, True)(jnp.tanh(hk.Linear(3)(x)))
        return hk.Linear(1)(h * jax.nn.sigmoid(hk.Linear(3)(x)))

    pair = hk.without_apply_rng(hk.transform(net))
    return pair.apply, jax.eval_shape(pair.init, jax.random.key(0), jnp.ones((2, 2))), "batched hvp"


def experts():
    shapes = dict(gate=(2, 2), w1=(2, 2, 2), w2=(2, 2, 1))
    return EXAMPLES["soft_mixture"]().apply, {k: jnp.zeros(v) for k, v in shapes.items()}, "batched hvp"


@pytest.mark.slow
@pytest.mark.parametrize("make", [equinox_network, haiku_network, experts])
def test_blocks_of_clones_are_those_of_the_dense_hessian(make, x64):
    apply, shapes, method = make()
    params, rng = drawn(shapes), np.random.default_rng(1)
    batch = jnp.asarray(rng.normal(size=(9, 2))), jnp.asarray(rng.normal(size=(9, 1)))
    traced = trace_model(apply, params, batch[0], check=False)
    model, variables = traced.model, traced.split(params)
    space = "gate" if make is experts else model.wiring.cloneable[0]
    found = unit_blocks(model, variables, batch, {space: 3}, loss=mean_squared_error, method=method, num_steps=40)
    own = eigenvalues_of_differences(model, variables, batch, space, 3)
    ends = np.array([[each.min_eigenvalue, each.max_eigenvalue] for each in found.spaces[space].reports])
    np.testing.assert_allclose([ends.min(), ends.max()], own[[0, -1]], rtol=1e-6, atol=1e-10)
    # The control: with two clones of each unit, the eigenvalues are others.
    other = eigenvalues_of_differences(model, variables, batch, space, 2)
    assert abs(other[0] - own[0]) > 1e-3 * abs(own[0])


@pytest.mark.slow
def test_no_change_within_the_radius_wakes_a_dead_unit_of_an_equinox_network(x64):
    eqx = pytest.importorskip("equinox", reason="equinox is not installed")
    net = eqx.nn.MLP(3, 2, 4, 2, activation=jax.nn.relu, key=jax.random.key(0))
    net = eqx.tree_at(lambda net: net.layers[1].bias, net, net.layers[1].bias.at[2].set(-3.0))
    params, static = eqx.partition(net, eqx.is_inexact_array)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)))
    traced = trace_model(lambda p, x: jax.vmap(eqx.combine(p, static))(x), params, x, check=False)
    (site,) = [name for name, _ in traced.model.wiring.sites if "1" in name]
    variables = traced.split(params)
    (unit,) = certify_frozen(traced.model, variables, (x, jnp.zeros(12, int)), {site: [2]}).units
    assert unit.verdict is FrozenVerdict.FROZEN
    h = jax.nn.relu(x @ net.layers[0].weight.T + net.layers[0].bias)

    def largest(change):
        return (h @ (net.layers[1].weight[2] + change[:4]) + net.layers[1].bias[2] + change[4]).max()

    best, step = -np.inf, jax.jit(jax.value_and_grad(largest))
    for start in range(12):  # ascent of the largest pre-activation on the sphere of the radius
        change = jnp.asarray(np.random.default_rng(start).normal(size=5))
        for _ in range(60):
            change = change * unit.radius / jnp.linalg.norm(change)
            value, slope = step(change)
            best, change = max(best, float(value)), change + 0.3 * unit.radius * slope / jnp.linalg.norm(slope)
    assert -1e-3 < best < 1e-9  # it is as large as it can be, and no larger
