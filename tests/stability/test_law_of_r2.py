"""The law of 1 - R² under noisy heavy balls: dense Hessians, numpy's R² and sums, recursions and simulated runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.critical_clones import BASE, PARTITION, WIDE, critical_clones, flat_loss, normal_modes

from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.losses import mean_squared_error
from lopjax.manifolds import Manifold, check_partition, cloned_manifold
from lopjax.models import mlp
from lopjax.stability import (
    HeavyBall,
    UnitLaw,
    departure_probability,
    deviation_covariance,
    escape_law,
    linearised,
    linearised_gradient,
    simulated_departures,
    split,
)
from lopjax.stability.blocks.coordinates import make_lift

DESCENT = HeavyBall(0.1, 0.02, noise_decay=0.97, momentum=0.6, weight_decay=0.05)


@pytest.fixture
def law(x64):
    """Of the three tanh units of a base at a critical point, with noise of its own size on every array."""
    batch, base, wide = critical_clones()
    norms = jax.tree.map(lambda leaf: float(leaf.size), wide["params"])
    return escape_law(BASE, base, batch, 2, loss=mean_squared_error, gradient_norms=norms)


def test_blocks_have_the_spectrum_of_the_dense_normal_hessian(law):
    values = np.sort(np.linalg.eigvalsh(law["hidden_0"].hessian).ravel())
    dense = normal_modes()[4]
    # The dense normal space has the gauge directions, too: zeros.
    assert np.abs(values[:, None] - dense).min(axis=1).max() < 1e-10
    assert abs(values.sum() - dense.sum()) < 1e-10


def test_the_form_is_one_minus_r2_of_perturbed_clones(law):
    batch, _, wide = critical_clones()
    lift, zero = make_lift(wide["params"], WIDE.wiring, check_partition(WIDE.wiring, PARTITION))
    rows = {"hidden_0": jnp.asarray(1e-4 * np.random.default_rng(0).normal(size=zero["hidden_0"].shape))}
    moved = jax.tree.map(lambda leaf, change: leaf + change, wide["params"], lift(rows))
    kernel, bias = (np.asarray(moved["hidden_0"][name]) for name in ("kernel", "bias"))
    h = np.tanh(np.asarray(batch[0]) @ kernel + bias)
    pairs = h.reshape(len(h), 3, 2)
    lost = ((pairs - pairs.mean(-1, keepdims=True)) ** 2).sum() / ((h - h.mean(1, keepdims=True)) ** 2).sum()
    v, form = np.asarray(rows["hidden_0"]), np.asarray(law["hidden_0"].form)
    assert np.einsum("ja,jab,jb->", v, form, v) == pytest.approx(lost, rel=1e-3)
    # Control: patterns of outgoing weights change no activation.
    assert np.abs(form[:, 3:]).max() == 0 < np.abs(form[:, :3, :3]).min()


@pytest.mark.slow
def test_the_forms_of_two_layers_are_those_of_the_mean_over_their_sites(x64):
    base, random = mlp((3,), (3, 3), 2, activation="tanh"), np.random.default_rng(2)
    shapes = jax.eval_shape(base.init, jax.random.key(0))
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), shapes)
    batch = jnp.asarray(random.normal(size=(9, 3))), jnp.asarray(random.normal(size=(9, 2)))
    found = escape_law(base, variables, batch, 2, loss=mean_squared_error)
    model, wide = widen(base, 2), clone_variables(variables, base.wiring, 2)
    lift, zero = make_lift(
        wide["params"], model.wiring, check_partition(model.wiring, uniform_partition(model.wiring, 2))
    )
    assert set(found) == {"hidden_0", "hidden_1"}
    for space, own in found.items():
        v = 1e-4 * random.normal(size=zero[space].shape)
        moved = jax.tree.map(jnp.add, wide["params"], lift({**zero, space: jnp.asarray(v)}))
        lost = []
        for tap in model.apply({"params": moved}, batch[0]).taps.values():
            h = np.asarray(tap.post)
            pairs = h.reshape(len(h), 3, 2)
            within = ((pairs - pairs.mean(-1, keepdims=True)) ** 2).sum()
            lost.append(within / ((h - h.mean(1, keepdims=True)) ** 2).sum())
        assert np.einsum("ja,jab,jb->", v, own.form, v) == pytest.approx(np.mean(lost), rel=2e-3)


def test_the_covariance_is_that_of_the_recursion(law):
    unit, steps, (eta, scale, gamma, beta, kappa) = law["hidden_0"], 30, DESCENT
    for number, matrix in enumerate(np.asarray(unit.hessian) + kappa * np.eye(5)):
        one = np.eye(5)
        step = np.block([[one - eta * matrix, -eta * beta * one], [matrix, beta * one]])
        enters = np.concatenate([-eta * one, one]) * scale * np.asarray(unit.noise)
        state = np.zeros((10, 10))
        for t in range(steps):
            state = step @ state @ step.T + gamma ** (2 * t) * enters @ enters.T
        found = deviation_covariance(unit, steps, DESCENT)[number]
        np.testing.assert_allclose(found, state[:5, :5], rtol=1e-9, atol=1e-15)
    # Control: without momentum, at the rate eta / (1 - beta), it is another one.
    other = deviation_covariance(unit, steps, HeavyBall(eta / (1 - beta), scale, gamma, 0.0, kappa))
    assert np.abs(other - deviation_covariance(unit, steps, DESCENT)).max() > 0.02 * np.abs(other).max()
    with pytest.raises(ValueError, match="at least 1"):
        deviation_covariance(unit, 0, DESCENT)


def test_simulated_runs_have_the_law_of_the_quadratic_form(law):
    runs, every = 4_000, 20
    several = {"hidden_0": law["hidden_0"]._replace(multiplicity=np.array([1, 2, 0]))}
    found = np.asarray(simulated_departures(several, DESCENT, jax.random.key(0), every, 3, runs))
    assert found.shape == (runs, 3)
    for record, level in ((0, 0.5), (2, 0.1)):
        threshold = float(np.quantile(found[:, record], 1 - level))
        predicted = departure_probability(several, threshold, every * (record + 1), DESCENT)
        assert abs(predicted - level) < 4 * (level * (1 - level) / runs) ** 0.5
        # Control: noise that stays.
        lasting = departure_probability(several, threshold, every * (record + 1), DESCENT._replace(noise_decay=1.0))
        assert lasting > level + 0.05


def test_a_unit_without_noise_never_leaves():
    still = {"a": UnitLaw(-np.ones((1, 1, 1)), np.ones((1, 1, 1)), np.zeros(1), np.array([1]))}
    assert departure_probability(still, 1e-9, 100, DESCENT) == 0
    assert np.asarray(simulated_departures(still, DESCENT, jax.random.key(0), 5, 2, 3)).max() == 0


@pytest.mark.parametrize("factor", [2, 3])
def test_of_a_single_unit_there_is_no_r2_and_of_deviations_that_overflow_no_probability(factor, law):
    base, rng = mlp((2,), (1,), 2, activation="tanh"), np.random.default_rng(0)
    batch = jnp.asarray(rng.normal(size=(5, 2))), jnp.asarray(rng.normal(size=(5, 2)))
    with pytest.raises(ValueError, match="0/0"):
        escape_law(base, base.init(jax.random.key(0)), batch, factor, loss=mean_squared_error)
    fast = DESCENT._replace(learning_rate=1e6 * factor)
    with pytest.raises(ValueError, match="ask for fewer steps"):
        departure_probability(law, 0.05, 200, fast)
    assert departure_probability(law, 0.05, 10, fast) > 1 - 1e-4  # the control: long gone, and still a number


def test_the_linearised_gradient_is_the_gradient_on_the_leaf_plus_a_hessian_product(x64):
    batch, _, wide = critical_clones()
    loss, flat, unravel = flat_loss(WIDE, wide, batch)
    params, draw = wide["params"], np.random.default_rng(1).normal(size=flat.shape)
    manifold, moved = cloned_manifold(params, WIDE.wiring, PARTITION), unravel(flat + 0.3 * draw)
    foot, deviation = split(manifold, moved)
    rows = normal_modes()[3]
    across = rows.T @ (rows @ (0.3 * draw))
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(deviation)[0], across, atol=1e-12)
    at_foot = jax.flatten_util.ravel_pytree(foot)[0]
    # Hessian product by central differences of the gradient.
    gradient = jax.jit(jax.grad(loss))
    step = 1e-5
    product = (gradient(at_foot + step * across) - gradient(at_foot - step * across)) / (2 * step)
    found = jax.flatten_util.ravel_pytree(
        linearised_gradient(lambda p: loss(jax.flatten_util.ravel_pytree(p)[0]), manifold, moved)
    )[0]
    np.testing.assert_allclose(found, gradient(at_foot) + product, atol=1e-8)
    assert np.abs(found - gradient(flat + 0.3 * draw)).max() > 1e-3, "control: it is not the gradient itself"
    with pytest.raises(ValueError, match="curved"):
        split(Manifold(params, lambda tree: tree, is_affine=False), params)


def test_a_linearised_function_is_its_tangent_at_the_foot(x64):
    """By hand: at the foot (3, 0) of (3, 0.1), f = (sin x + y^2, x y) has the tangent (sin 3 + 0 y, 3 y)."""
    axis = Manifold(jnp.zeros(2), lambda v: v * jnp.array([1.0, 0.0]), is_affine=True)

    def function(p):
        return jnp.sin(p[0]) + p[1] ** 2, p[0] * p[1]

    point = jnp.array([3.0, 0.1])
    np.testing.assert_allclose(linearised(function, axis, point), (np.sin(3.0), 0.3), rtol=0, atol=1e-15)
    assert abs(float(function(point)[0]) - np.sin(3.0)) > 1e-3  # the function itself has the second order
