"""Stochastic Lanczos quadrature against dense traces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import dense

from lopjax.curvature import hvp, smooth_density, spectral_density


@pytest.fixture(scope="module")
def network_density():
    with jax.enable_x64(True):
        net = dense.problem("tanh", sizes=(4, 5, 3))
        estimate = jax.jit(
            lambda key: spectral_density(lambda v: hvp(net.loss, net.params, v), net.params, 20, 400, key)
        )
        return estimate(jax.random.key(0)), np.linalg.eigvalsh(dense.hessian(net.loss, net.params))


def test_moments_and_mass_of_a_network_hessian(x64, network_density):
    density, exact = network_density
    assert np.all(density.weights >= 0)
    assert np.isclose(density.weights.sum(), 1.0, atol=1e-13)
    for power in (1, 2, 3):
        per_probe = 400 * np.sum(density.weights * density.nodes**power, axis=1)
        standard_error = per_probe.std() / np.sqrt(400)
        expected = np.mean(exact**power)
        assert abs(per_probe.mean() - expected) < 4 * standard_error
        assert standard_error < 0.1 * np.max(abs(exact)) ** power
        # Control: the estimate is sharp enough to tell the spectrum from its mirror image or from a shifted one.
        assert abs(per_probe.mean() - np.mean((exact + 0.2 * exact.std()) ** power)) > 4 * standard_error


def test_smooth_density_integrates_to_one_and_sits_on_the_spectrum(x64, network_density):
    density, exact = network_density
    width = 0.03 * (exact[-1] - exact[0])
    grid = jnp.linspace(exact[0] - 8 * width, exact[-1] + 8 * width, 2001)
    values = smooth_density(density, grid, width)
    assert np.isclose(np.trapezoid(values, grid), 1.0, atol=1e-9)
    smeared = np.exp(-0.5 * ((np.asarray(grid)[:, None] - exact) / width) ** 2).mean(1) / (width * np.sqrt(2 * np.pi))
    overlap = np.trapezoid(np.minimum(values, smeared), grid)
    assert overlap > 0.9
    # Control: the spectrum moved by 15 % of its range.
    assert np.trapezoid(np.minimum(values, np.roll(smeared, 300)), grid) < 0.7


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quadrature_of_one_probe_is_exact_for_polynomials(x64, dtype):
    """Gauss: three steps integrate v'A^k v exactly up to k = 5, not k = 6."""
    matrix = dense.random_symmetric(np.linspace(-1.0, 2.0, 12)).astype(dtype)
    key = jax.random.key(3)
    density = spectral_density(lambda v: matrix @ v, jnp.zeros(12, dtype), 3, 1, key)
    probe = np.asarray(jax.random.normal(jax.random.split(key, 1)[0], (12,), dtype), np.float64)
    probe = probe / np.linalg.norm(probe)
    errors = [
        abs(float(np.sum(density.weights * density.nodes**k)) - probe @ np.linalg.matrix_power(matrix, k) @ probe)
        for k in range(7)
    ]
    assert max(errors[:6]) < 1e4 * np.finfo(dtype).eps
    assert errors[6] > 1e-3


def test_break_downs_keep_unit_mass(x64):
    for matrix, value in ((np.zeros((6, 6)), 0.0), (3.0 * np.eye(6), 3.0)):
        density = spectral_density(lambda v, matrix=matrix: matrix @ v, jnp.zeros(6), 6, 4, jax.random.key(0))
        assert density.num_steps.tolist() == [1] * 4
        assert np.isclose(density.weights.sum(), 1.0)
        assert np.isclose(np.sum(density.weights * density.nodes), value)


def test_density_on_a_subspace_leaves_the_rest_out(x64):
    spectrum = np.array([1.0, 2.0, 3.0, -50.0, -60.0, 70.0])
    inside = np.array([1.0, 1, 1, 0, 0, 0])

    def estimate(project):
        return spectral_density(
            lambda v: spectrum * v,
            jnp.zeros(6),
            6,
            200,
            jax.random.key(0),
            project=project,
            dimension=3 if project else None,
        )

    density = estimate(lambda v: inside * v)
    assert np.isclose(np.sum(density.weights * density.nodes), 2.0, atol=0.2)
    assert np.all(abs(density.nodes[density.weights > 0] - 2.0) < 1.0 + 1e-12)
    assert np.max(abs(estimate(None).nodes)) > 60
