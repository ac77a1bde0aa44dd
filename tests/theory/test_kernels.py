"""Kernel maps against closed forms, the Hermite series and each other; their iteration and fixed points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from lopjax.activations import Activation, activation
from lopjax.theory import (
    activation_moments,
    alpha,
    closed_form_kernel,
    fixed_points,
    hermite_coefficients,
    iterate_map,
    kernel_gap,
    kernel_map,
    kernel_series,
    kernel_slope,
)

pytestmark = pytest.mark.usefixtures("x64")

CORRELATIONS = jnp.array([-1.0, -1 + 1e-9, -0.9, -0.3, 0.0, 1e-3, 0.5, 0.9, 0.999, 1 - 1e-6, 1 - 1e-12, 1.0])


@pytest.mark.parametrize("name", ["relu", "exp"])  # all five: theory_checks/activation.py
def test_generic_route_agrees_with_closed_forms(name):
    for centred in (False, True):
        generic = kernel_map(activation(name), CORRELATIONS, centred)
        np.testing.assert_allclose(generic, closed_form_kernel(name, CORRELATIONS, centred), atol=1e-12)


def test_centred_and_uncentred_must_not_be_mixed():
    mixed = kernel_map(activation("relu"), 0.5, centred=True) - closed_form_kernel("relu", 0.5)
    assert abs(mixed) > 0.1


def test_generic_route_agrees_with_the_hermite_series():
    f = activation("gelu")
    for centred in (False, True):
        series = kernel_series(hermite_coefficients(f, degree=300), CORRELATIONS, centred)
        np.testing.assert_allclose(kernel_map(f, CORRELATIONS, centred), series, atol=1e-11)


def test_series_of_a_kinked_function_converges_slowly_where_the_generic_route_does_not_care():
    f = activation("elu")
    inside, end = jnp.array([-0.9, 0.5, 0.9]), jnp.array(1 - 1e-6)
    coefficients = hermite_coefficients(f, degree=300)
    missing = 1 - jnp.sum(coefficients**2) / activation_moments(f).second_moment
    np.testing.assert_allclose(kernel_map(f, inside), kernel_series(coefficients, inside), atol=2 * missing)
    assert 1e-9 < missing < 1e-7
    slope_error = kernel_gap(f, 1e-6) - (1 - kernel_series(coefficients, end))
    assert abs(slope_error) > 1e-12 > abs(kernel_gap(f, 1e-6) - (1 - kernel_map(f, end)))


def test_a_kink_off_the_origin_against_scipy():
    """A kink off the origin, where no closed form applies: the inner mean by formula, the outer by Simpson."""
    kink, rho = 0.7, 0.6
    f = Activation("hinge", lambda z: jnp.where(z > kink, 2 * (z - kink), 0.1 * (z - kink)), (kink,))

    def hinge(z):
        return np.where(z > kink, 2 * (z - kink), 0.1 * (z - kink))

    half, width = stats.norm, np.sqrt(1 - rho**2)

    def conditional_mean(x):  # E hinge(y | x), by the formula for the mean of a clipped normal
        m = rho * x - kink
        above = m * half.cdf(m / width) + width * half.pdf(m / width)
        return 2 * above + 0.1 * (m - above)

    left, right = np.linspace(-10, kink, 4001), np.linspace(kink, 10, 4001)
    top = sum(integrate.simpson(hinge(p) * conditional_mean(p) * half.pdf(p), x=p) for p in (left, right))
    bottom = sum(integrate.simpson(hinge(p) ** 2 * half.pdf(p), x=p) for p in (left, right))
    assert abs(kernel_map(f, rho) - top / bottom) < 1e-10


@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_slope_is_the_derivative_and_one_plus_alpha_at_the_end(name):
    f = activation(name)
    by_autodiff = jax.vmap(jax.grad(lambda rho: kernel_map(f, rho)))(jnp.array([-0.5, 0.2, 0.99]))
    np.testing.assert_allclose(kernel_slope(f, jnp.array([-0.5, 0.2, 0.99])), by_autodiff, rtol=1e-9)
    for centred in (False, True):
        np.testing.assert_allclose(kernel_slope(f, 1.0, centred), 1 + alpha(f, centred=centred), rtol=1e-10)


def test_expansion_at_one_with_its_next_term():
    """1 - kappa(1 - eps) = (1 + alpha) eps - (2 sqrt(2) / 3 pi) eps^1.5 for ReLU, + O(eps²) for a smooth function."""
    eps = jnp.array([1e-2, 1e-4, 1e-6])
    relu = (kernel_gap(activation("relu"), eps) - eps) / eps**1.5
    np.testing.assert_allclose(relu, np.full(3, -2 * np.sqrt(2) / (3 * np.pi)), rtol=1e-3)
    f = activation("gelu")
    second = (kernel_gap(f, eps) - (1 + alpha(f)) * eps) / eps**2
    assert jnp.ptp(second[:2]) < 0.02 * abs(second[0])
    assert abs(relu[2] / jnp.sqrt(eps[2])) > 100  # ReLU's remainder is not O(eps²)


@settings(max_examples=25, deadline=None)
@given(rho=st.floats(-1, 1))
def test_kernel_maps_stay_between_minus_one_and_one_and_grow_on_the_right(rho):
    with jax.enable_x64(True):
        for name in ("relu", "gelu"):
            value = kernel_map(activation(name), rho)
            assert abs(value) <= 1 + 1e-12
            assert kernel_slope(activation(name), abs(rho)) >= -1e-12


def test_iteration_over_depth():
    """exp: rho -> exp(rho - 1) collapses to 1; tanh drives to 0; the trajectory is the composition itself."""
    collapse = iterate_map(lambda rho: kernel_map(activation("exp"), rho), jnp.array([0.0, 0.9]), depth=60)
    np.testing.assert_allclose(collapse[2], np.exp(np.exp(np.array([0.0, 0.9]) - 1) - 1), atol=1e-12)
    assert jnp.all(collapse[-1] > 0.96)
    spread = iterate_map(lambda rho: kernel_map(activation("tanh"), rho), jnp.array([0.9]), depth=60)
    assert abs(spread[-1, 0]) < 0.03
    assert iterate_map(lambda rho: rho, 0.3, depth=0).tolist() == [0.3]


def test_multiplier_is_the_rate_of_approach():
    (inner, _) = fixed_points(activation("gelu"))
    path = iterate_map(lambda rho: kernel_map(activation("gelu"), rho), inner.rho - 1e-3, depth=3) - inner.rho
    np.testing.assert_allclose(path[1:] / path[:-1], inner.multiplier, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "centred", "expected"),
    [
        ("sigmoid", False, [(1.0, "attracting")]),
        ("relu", False, [(1.0, "marginal")]),
        ("exp", False, [(1.0, "marginal")]),
        ("tanh", False, [(-1.0, "repelling"), (0.0, "attracting"), (1.0, "repelling")]),
        ("gelu", False, [(0.760402, "attracting"), (1.0, "repelling")]),
        ("relu", True, [(0.0, "attracting"), (1.0, "repelling")]),
    ],
)
def test_fixed_points(name, centred, expected):
    f = activation(name)
    found = fixed_points(f, centred)
    assert [(round(point.rho, 6), point.kind) for point in found] == expected
    # That there are no others: kappa(rho) - rho changes sign nowhere else on a grid.
    grid = jnp.linspace(-0.9995, 0.9995, 400)
    crossings = jnp.sum(jnp.diff(jnp.sign(kernel_map(f, grid, centred) - grid)) != 0)
    assert crossings == sum(abs(rho) < 1 for rho, _ in expected)
    for point in found:
        assert abs(kernel_map(f, point.rho, centred) - point.rho) < 1e-12
        power = hermite_coefficients(f, degree=1) ** 2
        if point.rho == 0.0:  # a_1² / sum of a_k²
            spread = activation_moments(f).variance if centred else activation_moments(f).second_moment
            np.testing.assert_allclose(point.multiplier, power[1] / spread, rtol=1e-9)


def test_bad_input():
    relu = activation("relu")
    for call in (kernel_map, kernel_slope, lambda f, rho: closed_form_kernel("relu", rho)):
        with pytest.raises(ValueError, match=r"rho=.*must lie in \[-1, 1\]"):
            call(relu, 1.1)
        with pytest.raises(ValueError, match="rho=nan"):
            call(relu, jnp.nan)
    with pytest.raises(ValueError, match=r"eps=-0.1: must lie in \[0, 2\]"):
        kernel_gap(relu, -0.1)
    with pytest.raises(ValueError, match="closed forms are known for relu, erf, sin, exp, identity"):
        closed_form_kernel("gelu", 0.5)
    with pytest.raises(ValueError, match="not square-integrable"):
        kernel_map(lambda z: jnp.exp(z**2), 0.5)
    with pytest.raises(ValueError, match="variance 0 under this Gaussian"):
        kernel_map(lambda z: 0 * z + 1, 0.5, centred=True)
    with pytest.raises(ValueError, match=r"too steep .* give the points where it bends as kinks"):
        kernel_map(lambda z: jnp.tanh(30 * z), 0.5)
    with pytest.raises(ValueError, match="every correlation is a fixed point"):
        fixed_points(activation("identity"))
    with pytest.raises(ValueError, match="depth=-1"):
        iterate_map(lambda rho: rho, 0.5, depth=-1)


def test_the_cure_for_a_steep_function():
    """tanh(30 z), with its bend given, is close to sign(z), whose kernel is (2/pi) arcsin(rho)."""
    steep = Activation("steep tanh", lambda z: jnp.tanh(30 * z), (0.0,))
    assert abs(kernel_map(steep, 0.5) - 2 / np.pi * np.arcsin(0.5)) < 0.02
    np.testing.assert_allclose(kernel_slope(steep, 1.0), 1 + alpha(activation("tanh"), 30.0), rtol=1e-9)
