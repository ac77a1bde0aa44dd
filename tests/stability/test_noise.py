"""Lyapunov exponents: products of random matrices, and the exact exponent of isotropic noise."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.critical_clones import PARTITION, WIDE, critical_clones, normal_modes

from lopjax.curvature import hvp
from lopjax.losses import mse
from lopjax.manifolds import cloned_manifold
from lopjax.stability import noise_exponent, transverse_lyapunov


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
    with pytest.raises(ValueError, match="same number of steps"):
        transverse_lyapunov(lambda b, v: b[0] @ v, jnp.zeros(2), (ones, ones[:2]), 0.5, key)


# --- The exact exponent ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [3, 5, 10, 30, 100])
def test_the_exact_exponent_is_that_of_the_angle(x64, p):
    # Another road: the stationary density of the angle between the two parts, for one outgoing parameter.
    np.testing.assert_allclose(noise_exponent(p, 1), isotropic_exponent(p), rtol=2e-4)


def test_the_exact_exponent_has_its_known_values():
    assert noise_exponent(1, 1) == -0.5
    assert noise_exponent(2, 1) == noise_exponent(1, 2) == noise_exponent(2, 2) == 0
    for n in (1, 3, 50):
        assert noise_exponent(n, n) == (n - 2) / 2
    for p, q, value in ((3, 1, 0.1418), (5, 1, 0.3410), (30, 1, 1.4865), (4, 2, 0.5), (4, 3, 0.75)):
        np.testing.assert_allclose(noise_exponent(p, q), value, atol=5e-5)
        assert noise_exponent(p, q) == noise_exponent(q, p)
    # Continuous into the diagonal, where another formula holds, and attraction at (1, 1) alone.
    np.testing.assert_allclose(noise_exponent(1000, 999), (1000 + 999 - 4) / 4, rtol=1e-5)
    assert min(noise_exponent(p, q) for p in range(1, 9) for q in range(1, 9) if p + q > 2) == 0


def test_one_input_and_many_outputs_repel():
    # Claimed before: one input attracts. Both sides by simulation.
    def matvec(b, vector):
        return jnp.concatenate([(b @ vector[1:])[None], b * vector[0]])

    draws = jax.random.normal(jax.random.key(3), (50_000, 10))
    found = transverse_lyapunov(matvec, jnp.zeros(11), draws, 0.05, jax.random.key(7), burn_in=2000)
    exponent, error = float(found.exponent) / 0.05**2, float(found.standard_error) / 0.05**2
    assert abs(exponent - noise_exponent(1, 10)) < 4 * error + 0.05
    assert exponent - 3 * error > 0


def test_noise_exponent_refuses(unchecked):
    for p, q in ((0, 1), (1, 1.5), (True, 2)):
        with pytest.raises(ValueError, match="positive integer"):
            noise_exponent(p, q)
