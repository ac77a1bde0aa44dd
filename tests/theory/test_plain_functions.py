"""Functions that do not say where their kinks are: found, or refused in a sentence; frozen fractions with bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lopjax.activations import Activation, activation
from lopjax.theory import (
    activation_covariance,
    exact_rank_gain,
    frozen_fraction,
    frozen_fraction_bounds,
    hard_rank,
    hermite_coefficients,
    kernel_gap,
    kernel_map,
    kernel_slope,
)

pytestmark = pytest.mark.usefixtures("x64")


def own_relu(z):
    return jnp.maximum(z, 0)


@pytest.mark.parametrize("f", [own_relu, jax.nn.relu])
def test_a_relu_by_any_name(f):
    """Arc-cosine kernel: 1/pi at 0; its slope 1 - arccos(rho)/pi; at 1 - eps it loses rank."""
    assert abs(kernel_map(f, 0.0) - 1 / np.pi) < 1e-12
    assert abs(kernel_slope(f, 0.99) - (1 - np.arccos(0.99) / np.pi)) < 1e-11
    gain = jnp.log(exact_rank_gain(10, 1e-4, kernel_gap(f, 1e-4)))
    loss_of_gap = 2 * np.sqrt(2) / (3 * np.pi) * 1e-4**1.5
    np.testing.assert_allclose(gain, -0.9 * np.log(10 / 1e-4) * loss_of_gap, rtol=0.02)
    # h_2 = (z² - 1)/sqrt(2): E relu h_2 = phi(0)/sqrt(2).
    np.testing.assert_allclose(hermite_coefficients(f, 2)[2], stats.norm.pdf(0) / np.sqrt(2), rtol=1e-12)


def test_the_absolute_value_and_a_bend_of_second_order():
    """E|x||y| = (2/pi)(sqrt(1 - rho²) + rho arcsin rho); E x relu(x) y relu(y) by the arc-cosine kernel of degree 2."""
    rho = np.array([-0.8, 0.0, 0.5])
    product = 2 / np.pi * (np.sqrt(1 - rho**2) + rho * np.arcsin(rho))
    np.testing.assert_allclose(kernel_map(lambda z: jnp.abs(z), jnp.asarray(rho)), product, atol=1e-12)
    theta = np.arccos(rho)
    squares = (3 * np.sin(theta) * np.cos(theta) + (np.pi - theta) * (1 + 2 * np.cos(theta) ** 2)) / (3 * np.pi)
    np.testing.assert_allclose(kernel_map(lambda z: z * jax.nn.relu(z), jnp.asarray(rho)), squares, atol=1e-12)


def test_a_kink_on_a_round_number_is_found():
    """max(z, 1): the moments are right by luck, since panels end there; the kernel was not."""
    hinge = Activation("hinge", lambda z: jnp.maximum(z, 1.0), (1.0,))
    assert abs(kernel_map(lambda z: jnp.maximum(z, 1.0), 0.4) - kernel_map(hinge, 0.4)) < 1e-13
    assert abs(kernel_map(hinge, 0.4) - kernel_map(Activation("no", hinge.function, (0.0,)), 0.4)) > 1e-6


REFUSED = {
    "kink": (lambda z: jnp.maximum(z, 0.3), "kinks that are not listed, as at 0.3"),
    "jump": (lambda z: jnp.where(jnp.abs(z) > 0.5, z, 0.0), "as at -0.5, 0.5"),
    "jump at 0": (lambda z: z + (z > 0), "it jumps"),
    "kinks denied": (Activation("abs", lambda z: jnp.abs(z), ()), "kinks that were not found"),
    "third order": (lambda z: z**2 * own_relu(z), "kinks that were not found"),
    "fourth order": (lambda z: own_relu(z - 0.5) ** 4, "kinks that were not found"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_resolved_is_refused(name):
    f, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        kernel_map(f, 0.5)


def dip_mass(a, threshold):
    """Mass of {1 + sin(2 a z) < threshold}: windows about the places where it touches 0."""
    half = np.arccos(1 - threshold) / (2 * a)
    centres = (1.5 * np.pi + 2 * np.pi * np.arange(-200, 200)) / (2 * a)
    return np.sum(stats.norm.cdf(centres + half) - stats.norm.cdf(centres - half))


@pytest.mark.parametrize("a", [1.0, 2.0, 3.0, 5.0])
def test_dips_between_two_points_of_the_grid_are_found(a):
    """Snake, z + sin²(a z)/a, whose slope 1 + sin(2 a z) touches 0: windows a seventh of a cell wide, crossed twice."""
    bounds = frozen_fraction_bounds(lambda z: z + jnp.sin(a * z) ** 2 / a)
    np.testing.assert_allclose([bounds.lower, bounds.upper], dip_mass(a, 1e-4), rtol=1e-10)
    assert 0 < bounds.resolution < 1 / 32


def test_a_slope_at_the_threshold_is_undecided_and_not_a_number():
    bounds = frozen_fraction_bounds(activation("leaky_relu"), threshold=0.01)
    np.testing.assert_allclose([bounds.lower, bounds.upper], [0.0, 0.5], atol=1e-12)
    with pytest.raises(ValueError, match=r"lies between 0 and 0\.5: its slope stays at the threshold"):
        frozen_fraction(activation("leaky_relu"), threshold=0.01)
    assert frozen_fraction(activation("leaky_relu"), threshold=0.02) == pytest.approx(0.5, rel=1e-12)
    assert jax.jit(lambda a: frozen_fraction(jnp.tanh, a))(1.0) == frozen_fraction(jnp.tanh, 1.0)


def test_oscillation_finer_than_the_grid_is_refused():
    with pytest.raises(ValueError, match="needs a higher order"):
        frozen_fraction(lambda z: z + jnp.sin(60 * z) ** 2 / 60)


def antipodal(num_pairs, span, seed=0):
    directions = np.random.default_rng(seed).standard_normal((num_pairs, span))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    both = np.concatenate([directions, -directions])
    return np.clip(both @ both.T, -1, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("pairs", "span"), [(5, 2), (4, 3), (1, 1)])
def test_pairs_of_opposite_units(pairs, span):
    """Odd part linear (ReLU): m - d are lost; f(z) + f(-z) = 1 (sigmoid): m - 1; odd or even: m."""
    lost = {"relu": pairs - span, "sigmoid": pairs - 1, "tanh": pairs, "abs": pairs, "elu": 0}
    for name, expected in lost.items():
        rank = hard_rank(activation_covariance(activation(name), antipodal(pairs, span)), tolerance=1e-11)
        assert 2 * pairs - rank == expected, name
