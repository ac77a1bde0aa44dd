"""Escape times by simulation: gradient descent, with and without momentum, from kicked clones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.critical_clones import BASE, PARTITION, WIDE, critical_clones, flat_loss, normal_modes, simulated_steps

from lopjax.cloning import clone_variables, uniform_partition
from lopjax.losses import mse
from lopjax.manifolds import Manifold, cloned_manifold, normal_basis
from lopjax.models import mlp
from lopjax.stability import escape_time, escape_time_along, kick_components


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_clones_of_a_critical_base_escape_when_predicted(x64, seed):
    loss, flat, unravel, rows, values, vectors = normal_modes()
    kick = 1e-5 * np.random.default_rng(seed).normal(size=len(rows)) @ rows / len(rows) ** 0.5
    radius, eta = 3e-3, 0.2
    trees = jax.vmap(unravel)(jnp.asarray(vectors))
    components = kick_components(trees, unravel(jnp.asarray(kick)))
    np.testing.assert_allclose(components, vectors @ kick, atol=1e-18)
    predicted = float(escape_time(values, components, radius, eta))
    measured = simulated_steps(loss, flat + kick, rows, radius, eta)
    assert abs(predicted / measured - 1) < 0.05
    # Controls: the length of the kick is not its component; another radius takes another time.
    assert abs(float(escape_time(values[:1], [float(np.linalg.norm(kick))], radius, eta)) / measured - 1) > 0.05
    assert abs(float(escape_time(values, components, 3 * radius, eta)) / measured - 1) > 0.05


@pytest.mark.slow
def test_a_base_off_its_critical_point_breaks_the_prediction(x64):
    loss, flat, _, rows, _, _ = normal_modes()
    tangent = np.random.default_rng(5).normal(size=flat.shape)
    moved = flat + 0.5 * (tangent - rows.T @ (rows @ tangent))
    values, vectors = np.linalg.eigh(rows @ np.asarray(jax.jit(jax.hessian(loss))(moved)) @ rows.T)
    kick = 1e-5 * np.random.default_rng(0).normal(size=len(rows)) / len(rows) ** 0.5
    predicted = float(escape_time(values, vectors.T @ kick, 3e-3, 0.2))
    measured = simulated_steps(loss, moved + kick @ rows, rows, 3e-3, 0.2)
    assert abs(predicted / measured - 1) > 0.05
    # Following the curvature along the way mends it.
    manifold = Manifold(jnp.asarray(moved), lambda vector: vector - rows.T @ (rows @ vector), is_affine=True)
    followed = escape_time_along(loss, jnp.asarray(moved), manifold, jnp.asarray(kick @ rows), 3e-3, 0.2, 6000)
    assert abs(float(followed) / measured - 1) < 0.01


def test_following_the_curvature_of_a_critical_base_gives_the_closed_form(x64):
    _, _, unravel, _, values, vectors = normal_modes()
    batch, _, wide = critical_clones()
    manifold = cloned_manifold(wide["params"], WIDE.wiring, PARTITION)
    kick, wide_loss = unravel(jnp.asarray(1e-7 * vectors[0])), mse(WIDE, wide, batch)
    expected = float(escape_time(values, vectors @ (1e-7 * vectors[0]), 1e-3, 0.2))
    followed = escape_time_along(wide_loss, wide["params"], manifold, kick, 1e-3, 0.2, 6000)
    np.testing.assert_allclose(followed, expected, rtol=1e-6)
    # Controls: the same kick in a stable direction never escapes, and a run that ends a step early has not escaped.
    stable = unravel(jnp.asarray(1e-7 * vectors[-1]))
    short = escape_time_along(wide_loss, wide["params"], manifold, kick, 1e-3, 0.2, int(expected) - 1)
    assert short == jnp.inf
    assert escape_time_along(wide_loss, wide["params"], manifold, stable, 1e-3, 0.2, 50) == jnp.inf


def test_following_refuses_kicks_that_cannot_leave(unchecked):
    line = Manifold(jnp.zeros(2), lambda vector: vector * jnp.array([1.0, 0.0]), is_affine=True)
    run = (lambda p: p[0] - 0.5 * p[1] ** 2, jnp.zeros(2), line)
    assert escape_time_along(*run, jnp.array([0.0, 1.0]), 0.5, 0.1, 3) == 0
    with pytest.raises(ValueError, match="no component normal"):
        escape_time_along(*run, jnp.array([1.0, 0.0]), 0.1, 0.1, 3)
    with pytest.raises(ValueError, match="level set"):
        escape_time_along(*run[:2], line._replace(is_affine=False), jnp.array([0.0, 1.0]), 0.1, 0.1, 3)
    with pytest.raises(ValueError, match="max_steps=0"):
        escape_time_along(*run, jnp.array([0.0, 1.0]), 0.1, 0.1, 0)


def test_the_discrete_rate_is_exact_for_large_steps(x64):
    eta, values, components = 0.5, np.array([-1.0, -0.2, 3.0]), np.array([1e-6, 1e-4, 1.0])
    growth, steps = components.copy(), 0
    while np.abs(growth[:2]).max() < 1e-2:
        growth, steps = growth * (1 - eta * values), steps + 1
    predicted = float(escape_time(values, components, 1e-2, eta))
    assert steps - 1 < predicted <= steps
    # Gradient flow takes fewer steps by eta lambda / ln(1 + eta lambda): 23 % here, outside the same bracket.
    assert float(escape_time(values, components, 1e-2, eta, continuous=True)) < steps - 1
    np.testing.assert_allclose(escape_time([-1.0], [1e-6], 1e-2, eta, continuous=True), np.log(1e4) / eta, rtol=1e-12)


def test_kicks_that_do_not_grow_and_bad_input(unchecked):
    assert escape_time([1.0, 0.0], [1e-3, 1e-3], 0.1, 0.1) == jnp.inf
    assert escape_time([-1.0], [0.0], 0.1, 0.1) == jnp.inf
    assert escape_time([-1.0], [-0.2], 0.1, 0.1) == 0
    assert escape_time([], [], 0.1, 0.1) == jnp.inf
    assert jnp.isnan(escape_time([-1.0, jnp.nan], [1e-3, 1e-3], 0.1, 0.1))
    with pytest.raises(ValueError, match="radius=0"):
        escape_time([-1.0], [1e-3], 0.0, 0.1)
    with pytest.raises(ValueError, match="one component per eigenvalue"):
        escape_time([-1.0, 1.0], [1e-3], 0.1, 0.1)


def test_an_eigenvalue_that_is_rounding_gives_no_law_of_its_own(unchecked):
    # A degenerate normal Hessian: what is left of its zeros must not be read as a logarithmic law.
    rounding = [-1e-17, 3e-18]
    assert jnp.isfinite(escape_time(rounding, [1e-3, 1e-3], 0.1, 0.1))
    assert escape_time(rounding, [1e-3, 1e-3], 0.1, 0.1, tolerance=1e-15) == jnp.inf
    # What is beyond the tolerance counts as before.
    kept = escape_time([-1.0, *rounding], [1e-3] * 3, 0.1, 0.1, tolerance=1e-15)
    assert kept == escape_time([-1.0], [1e-3], 0.1, 0.1)
    with pytest.raises(ValueError, match="tolerance=-1"):
        escape_time([-1.0], [1e-3], 0.1, 0.1, tolerance=-1.0)


def heavy_ball_steps(values, components, radius, eta, beta, times):
    """Steps, interpolated, by iterating the recursion of heavy-ball momentum."""
    values, speed, place = np.asarray(values), np.zeros(len(values)), np.array(components, float)
    logs = [0.5 * np.log(np.sum(times * place**2))]
    while logs[-1] < np.log(radius):
        speed = beta * speed + values * place
        place = place - eta * speed
        logs.append(0.5 * np.log(np.sum(times * place**2)))
    return len(logs) - 1 - (logs[-1] - np.log(radius)) / (logs[-1] - logs[-2])


@pytest.mark.parametrize(
    ("values", "components", "eta", "beta"),
    [
        ([-1.0, -0.3], [1e-5, 1e-4], 0.1, 0.0),
        ([-1.0, -0.3], [1e-5, 1e-4], 0.1, 0.9),
        ([-0.01, -0.009], [1e-5, 1e-6], 0.05, 0.99),
        ([-300.0, -1.0], [1e-5, 1e-5], 0.1, 0.5),
        # Overshoot: eta lambda beyond 2 (1 + beta).
        ([21.0, -0.1], [1e-5, 1e-6], 0.1, 0.0),
        ([38.1, 38.1], [1e-5, 1e-6], 0.1, 0.9),
    ],
)
def test_escape_times_with_momentum_and_overshoot_are_those_of_the_recursion(x64, values, components, eta, beta):
    times = np.array([3, 5])
    expected = heavy_ball_steps(values, components, 0.1, eta, beta, times)
    found = float(escape_time(values, components, 0.1, eta, momentum=beta, multiplicities=times))
    # Between two steps the distance is interpolated in two ways.
    assert abs(found - expected) < 0.02 * expected**0.5
    # Controls: each eigenvalue once, and momentum as a rescaled learning rate.
    assert abs(float(escape_time(values, components, 0.1, eta, momentum=beta)) - expected) > 0.02 * expected**0.5
    if beta and max(values) < 0:
        assert abs(float(escape_time(values, components, 0.1, eta / (1 - beta))) / expected - 1) > 0.05


def test_below_the_edge_of_overshoot_nothing_escapes(x64):
    assert escape_time([2 * 1.9 / 0.1 - 0.01], [1e-3], 0.1, 0.1, momentum=0.9) == jnp.inf
    assert jnp.isfinite(escape_time([2 * 1.9 / 0.1 + 0.01], [1e-3], 0.1, 0.1, momentum=0.9))
    assert escape_time([1e6], [1e-3], 0.1, 0.1, continuous=True) == jnp.inf


@pytest.mark.slow
def test_equal_modes_add_up(x64):
    # d equal modes with an isotropic kick are one mode with the whole kick, whatever d is.
    one = float(escape_time([-1.0], [1e-5], 0.1, 0.05))
    for d in (4, 100, 1000):
        np.testing.assert_allclose(escape_time([-1.0] * d, [1e-5 / d**0.5] * d, 0.1, 0.05), one, rtol=1e-12)
        np.testing.assert_allclose(escape_time([-1.0], [1e-5 / d**0.5], 0.1, 0.05, multiplicities=[d]), one, rtol=1e-12)
        assert float(escape_time([-1.0], [1e-5 / d**0.5], 0.1, 0.05)) > one + 10
    # By hand: 100 modes, a kick of length 1e-2, R = 0.1, eta = 0.1.
    np.testing.assert_allclose(escape_time([-1.0] * 100, [1e-3] * 100, 0.1, 0.1), np.log(10) / np.log(1.1), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [2, 4, 8, 16])
def test_escape_times_agree_with_following_the_curvature_for_any_number_of_clones(x64, factor):
    batch, base, _ = critical_clones()
    model = mlp((2,), (3 * factor,), 2, activation="tanh")
    wide = clone_variables(base, BASE.wiring, factor)
    manifold = cloned_manifold(wide["params"], model.wiring, uniform_partition(model.wiring, factor))
    loss, flat, unravel = flat_loss(model, wide, batch)
    rows = np.asarray(normal_basis(manifold))
    values, vectors = np.linalg.eigh(rows @ np.asarray(jax.jit(jax.hessian(loss))(flat)) @ rows.T)
    kick = 1e-4 * np.random.default_rng(0).normal(size=len(rows)) / len(rows) ** 0.5
    predicted = float(escape_time(values, vectors.T @ kick, 3e-3, 0.08))
    followed = escape_time_along(mse(model, wide, batch), wide["params"], manifold, unravel(kick @ rows), 3e-3, 0.08)
    np.testing.assert_allclose(predicted, followed, rtol=2e-3)
    # Control: the fastest mode alone is late as soon as eigenvalues repeat.
    alone = np.log(3e-3 / np.abs(vectors.T @ kick)) / np.log1p(-0.08 * np.minimum(values, -1e-9))
    assert (alone.min() / predicted > 1.01) == (factor > 2)


def test_escape_time_refuses(unchecked):
    with pytest.raises(ValueError, match="momentum=1"):
        escape_time([-1.0], [1e-3], 0.1, 0.1, momentum=1.0)
    with pytest.raises(ValueError, match=r"momentum=0\.5"):
        escape_time([-1.0], [1e-3], 0.1, 0.1, momentum=0.5, continuous=True)
    with pytest.raises(ValueError, match="one multiplicity"):
        escape_time([-1.0], [1e-3], 0.1, 0.1, multiplicities=[1, 2])
