"""Escape by simulation: gradient descent from kicked clones, products of random matrices, the next gradient."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

from lopjax.cloning import clone_variables, uniform_partition
from lopjax.curvature import hvp
from lopjax.losses import mean_squared_error, mse
from lopjax.manifolds import Manifold, cloned_manifold, normal_basis
from lopjax.models import mlp
from lopjax.stability import (
    critical_weight_decay,
    escape_time,
    escape_time_along,
    free_kick,
    kick_components,
    transverse_lyapunov,
    unit_blocks,
)

BASE, WIDE = mlp((2,), (3,), 2, activation="tanh"), mlp((2,), (6,), 2, activation="tanh")
PARTITION = uniform_partition(WIDE.wiring, 2)


def flat_loss(model, variables, batch):
    """The loss as a function of one vector, which numpy and scipy can use."""
    flat, unravel = ravel_pytree(variables["params"])
    loss = mse(model, variables, batch)
    return lambda vector: loss(unravel(vector)), flat, unravel


@cache
def critical_clones():
    """A teacher's outputs with noise, the critical point of the base near the teacher, and its clones; float64."""
    rng = np.random.default_rng(6)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), BASE.init(jax.random.key(0)))
    flat, unravel = ravel_pytree(variables["params"])
    teacher, inputs = 1.5 * rng.normal(size=flat.shape), jnp.asarray(rng.normal(size=(64, 2)))
    outputs = BASE.apply({**variables, "params": unravel(jnp.asarray(teacher))}, inputs)[0]
    batch = inputs, outputs + 0.3 * rng.normal(size=(64, 2))
    loss, _, _ = flat_loss(BASE, variables, batch)
    gradient, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    point = scipy.optimize.minimize(jax.jit(loss), teacher, jac=gradient, method="BFGS", options={"gtol": 1e-5}).x
    for _ in range(4):
        point = point - np.linalg.solve(hessian(point), gradient(point))
    assert np.linalg.norm(gradient(point)) < 1e-12
    base = {**variables, "params": unravel(jnp.asarray(point))}
    return batch, base, clone_variables(base, BASE.wiring, 2)


@cache
def normal_modes():
    """Wide loss, point, normal basis (rows) and the eigenpairs of the normal Hessian by numpy, in flat coordinates."""
    batch, _, wide = critical_clones()
    loss, flat, unravel = flat_loss(WIDE, wide, batch)
    rows = np.asarray(normal_basis(cloned_manifold(wide["params"], WIDE.wiring, PARTITION)))
    values, vectors = np.linalg.eigh(rows @ np.asarray(jax.jit(jax.hessian(loss))(flat)) @ rows.T)
    return loss, np.asarray(flat), unravel, rows, values, vectors.T @ rows


def simulated_steps(loss, start, rows, radius, learning_rate, limit=6000):
    """Steps of gradient descent, interpolated, until the distance from the manifold (numpy) reaches the radius."""

    @jax.jit
    def run(point):
        def step(point, _):
            moved = point - learning_rate * jax.grad(loss)(point)
            return moved, jnp.linalg.norm(rows @ (moved - origin))

        return jax.lax.scan(step, point, None, length=limit)[1]

    origin = normal_modes()[1]
    logs = np.log(np.concatenate([[np.linalg.norm(rows @ (start - origin))], run(start)]))
    later = int(np.argmax(logs >= np.log(radius)))
    assert later > 0, "the simulation did not reach the radius"
    return later - (logs[later] - np.log(radius)) / (logs[later] - logs[later - 1])


# --- Escape time -----------------------------------------------------------------------------------------------------


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
    manifold = Manifold(jnp.asarray(moved), lambda vector: vector - rows.T @ (rows @ vector))
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
    line = Manifold(jnp.zeros(2), lambda vector: vector * jnp.array([1.0, 0.0]))
    run = (lambda p: p[0] - 0.5 * p[1] ** 2, jnp.zeros(2), line)
    assert escape_time_along(*run, jnp.array([0.0, 1.0]), 0.5, 0.1, 3) == 0
    with pytest.raises(ValueError, match="no component normal"):
        escape_time_along(*run, jnp.array([1.0, 0.0]), 0.1, 0.1, 3)
    with pytest.raises(ValueError, match="level set"):
        escape_time_along(*run[:2], line._replace(space="level set"), jnp.array([0.0, 1.0]), 0.1, 0.1, 3)
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


# --- Weight decay ----------------------------------------------------------------------------------------------------


def test_the_critical_decay_separates_repelling_from_attracting(x64):
    batch, base, _ = critical_clones()
    blocks = unit_blocks(BASE, base, mean_squared_error, batch, 2)
    decay = critical_weight_decay(blocks)
    loss, flat, _, rows, values, _ = normal_modes()
    assert decay > 1e-3
    np.testing.assert_allclose(decay, -values[0], rtol=1e-10)
    hessian_of_decayed = jax.jit(
        lambda strength, point: jax.hessian(lambda point: loss(point) + 0.5 * strength * point @ point)(point)
    )
    for factor, repels in ((0.99, True), (1.01, False)):
        decayed = hessian_of_decayed(factor * decay, flat)
        assert (np.linalg.eigvalsh(rows @ decayed @ rows.T)[0] < 0) == repels
    assert critical_weight_decay([0.1, 2.0]) == 0
    assert np.isnan(critical_weight_decay([0.1, np.nan]))
    with pytest.raises(ValueError, match="no eigenvalues"):
        critical_weight_decay([])


# --- Free kick -------------------------------------------------------------------------------------------------------


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
        return WIDE.apply({**wide, "params": params}, batch[0])[0]

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


# --- Lyapunov exponents ----------------------------------------------------------------------------------------------


def isotropic_exponent(p):
    """Exponent / eta² of zero-mean `M = [[0, b], [b', 0]]`, b ~ N(0, 1_p), for small eta, by quadrature.

    With phi the angle between v = (u, r) and the u-plane the product is the diffusion d phi = cos(2 phi) dW + mu dt,
    mu = -sin(2 phi) cos(2 phi) - (p - 1) sin³(phi) / (2 cos(phi)), confined to |phi| < pi/4: its stationary density is
    known, and the exponent is the mean of (p sin² + cos²) / 2 - sin²(2 phi).
    """
    phi = np.linspace(-np.pi / 4, np.pi / 4, 200_001)[1:-1]
    sine, cosine, noise = np.sin(phi), np.cos(phi), np.cos(2 * phi)
    drift = -np.sin(2 * phi) * noise - (p - 1) * sine**3 / (2 * cosine)
    ratio = 2 * drift / noise**2
    integral = np.concatenate([[0], np.cumsum((ratio[1:] + ratio[:-1]) / 2 * np.diff(phi))])
    log_density = integral - 2 * np.log(noise)
    density = np.exp(log_density - log_density.max())
    return np.sum(density * ((p * sine**2 + cosine**2) / 2 - np.sin(2 * phi) ** 2)) / density.sum()


@cache
def isotropic_estimate(p, eta, steps=200_000):
    def matvec(b, vector):
        return jnp.concatenate([b * vector[-1], (b @ vector[:-1])[None]])

    draws = jax.random.normal(jax.random.key(p), (steps, p))
    found = transverse_lyapunov(matvec, jnp.zeros(p + 1), draws, eta, jax.random.key(7), burn_in=2000)
    return float(found.exponent) / eta**2, float(found.standard_error) / eta**2


@pytest.mark.parametrize(("p", "eta", "stated"), [(2, 0.1, 0.0), (3, 0.1, 0.12), (5, 0.1, 0.34), (30, 0.05, 1.5)])
def test_isotropic_noise_repels_in_more_than_two_dimensions(p, eta, stated):
    exact, (found, error) = isotropic_exponent(p), isotropic_estimate(p, eta)
    assert abs(exact - stated) < 0.05
    assert abs(found - exact) < 4 * error + 0.05 * abs(exact) + 0.01
    assert error < 0.06


def test_noise_that_shares_eigenvectors_attracts():
    # One input, one output: every M is b [[0, 1], [1, 0]], and the exponent is E ln|1 - eta b| = -eta²/2 + ...
    found, error = isotropic_estimate(1, 0.1)
    assert abs(found + 0.5) < 4 * error + 0.02
    assert found + 4 * error < 0


def test_exponents_of_known_products(x64):
    rng, eta = np.random.default_rng(0), 0.3
    diagonals = rng.normal(loc=[0.4, -0.5, 0.1], size=(4000, 3))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    matrices = jnp.asarray(np.einsum("ij,tj,kj->tik", rotation, diagonals, rotation))
    found = transverse_lyapunov(jnp.matmul, jnp.zeros(3), matrices, eta, jax.random.key(0), burn_in=200)
    expected = np.log(np.abs(1 - eta * diagonals[200:])).mean(axis=0).max()
    np.testing.assert_allclose(found.exponent, expected, atol=1e-4)
    spread = np.log(np.abs(1 - eta * diagonals[200:, 1])).std() / len(diagonals[200:]) ** 0.5
    assert 0.6 < found.standard_error / spread < 1.6
    # Control: without the unstable direction the same noise gives another exponent.
    stable = jnp.asarray(np.einsum("i,tj,k->tik", rotation[:, 0], diagonals[:, :1], rotation[:, 0]))
    line = jnp.asarray(np.outer(rotation[:, 0], rotation[:, 0]))
    confined = transverse_lyapunov(
        jnp.matmul, jnp.zeros(3), stable, eta, jax.random.key(0), project=lambda vector: line @ vector
    )
    np.testing.assert_allclose(confined.exponent, np.log(np.abs(1 - eta * diagonals[:, 0])).mean(), rtol=1e-10)
    assert confined.exponent < 0 < found.exponent


def test_full_batches_of_clones_repel_at_the_rate_of_the_hessian(x64):
    batch, _, wide = critical_clones()
    manifold = cloned_manifold(wide["params"], WIDE.wiring, PARTITION, "V")
    eta, size = 0.5, len(batch[0])

    def matvec(rows, vector):
        return hvp(mse(WIDE, wide, (batch[0][rows], batch[1][rows])), wide["params"], vector)

    def leave(vector):
        return jax.tree.map(jnp.subtract, vector, manifold.project(vector))

    rows = jnp.broadcast_to(jnp.arange(size), (1500, size))
    found = transverse_lyapunov(matvec, wide["params"], rows, eta, jax.random.key(0), project=leave, burn_in=1000)
    values = normal_modes()[4]
    np.testing.assert_allclose(found.exponent, np.log1p(-eta * values[0]), rtol=1e-3)
    assert abs(found.exponent - np.log1p(-0.9 * eta * values[0])) > 1e-3 * found.exponent


def test_lyapunov_of_degenerate_products_and_bad_input(unchecked):
    key, ones = jax.random.key(0), jnp.broadcast_to(jnp.eye(2), (4, 2, 2))
    assert transverse_lyapunov(jnp.matmul, jnp.zeros(2), ones, 1.0, key).exponent == -jnp.inf
    assert jnp.isnan(transverse_lyapunov(jnp.matmul, jnp.zeros(2), ones * jnp.nan, 1.0, key).exponent)
    with pytest.raises(ValueError, match="burn_in=3 leaves 1 steps"):
        transverse_lyapunov(jnp.matmul, jnp.zeros(2), ones, 0.5, key, burn_in=3)
    with pytest.raises(ValueError, match="same steps"):
        transverse_lyapunov(lambda b, v: b[0] @ v, jnp.zeros(2), (ones, ones[:2]), 0.5, key)
