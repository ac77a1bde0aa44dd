"""Gaussian expectations, Hermite coefficients and moments, against scipy's adaptive quadrature and closed forms."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from lopjax.activations import Activation, activation
from lopjax.theory import (
    activation_moments,
    gauss_hermite_rule,
    gaussian_expectation,
    hermite_coefficients,
    split_rule,
)

pytestmark = pytest.mark.usefixtures("x64")


def scipy_expectation(g, kinks=(0.0,)):
    """E g(z) by QUADPACK, piece by piece."""
    pieces = itertools.pairwise([-14.0, *kinks, 14.0])
    density = stats.norm.pdf
    return sum(integrate.quad(lambda z: g(z) * density(z), a, b, epsabs=1e-14, limit=400)[0] for a, b in pieces)


@pytest.mark.parametrize("order", [1, 5, 20])
def test_gauss_hermite_is_exact_up_to_degree_2n_minus_1_and_not_beyond(order):
    z, weights = gauss_hermite_rule(order)
    for degree in range(0, min(2 * order, 20), 2):
        double_factorial = math.prod(range(degree - 1, 0, -2))
        assert weights @ z**degree == pytest.approx(double_factorial, rel=1e-12)
    if order == 5:
        assert abs(weights @ z**10 / 945 - 1) > 0.1


def test_split_rule_integrates_a_step_that_gauss_hermite_cannot():
    def step(z):
        return jnp.where(z > 0.7, 1.0, 0.0)

    value, error = gaussian_expectation(step, kinks=(0.7,))
    assert value == pytest.approx(stats.norm.sf(0.7), abs=1e-14)
    assert error < 1e-13
    smooth_value, smooth_error = gaussian_expectation(step)
    assert abs(smooth_value - stats.norm.sf(0.7)) > 1e-3
    assert smooth_error > 1e-3  # the estimate knows


def test_error_estimate_bounds_the_error_as_the_order_grows():
    exact = scipy_expectation(lambda z: np.tanh(3 * z) ** 2)
    errors = []
    for order in (8, 32, 128):
        value, estimate = gaussian_expectation(lambda z: jnp.tanh(3 * z) ** 2, order=order)
        assert abs(value - exact) <= estimate + 1e-14
        errors.append(float(estimate))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


def test_derivatives_across_a_moving_kink():
    """E relu(z + b) has the derivatives Phi(b) and phi(b); nodes that do not move with the kink miss the second."""
    f = activation("relu")

    def mean(b):
        return gaussian_expectation(lambda z: f(z + b), kinks=jnp.array([-b]), order=8).value

    def blind_mean(b):
        return gaussian_expectation(lambda z: f(z + b), order=8).value

    first, second, blind = jax.jit(
        lambda b: (jax.grad(mean)(b), jax.grad(jax.grad(mean))(b), jax.grad(jax.grad(blind_mean))(b))
    )(0.3)
    np.testing.assert_allclose([first, second], [stats.norm.cdf(0.3), stats.norm.pdf(0.3)], rtol=1e-10)
    assert abs(blind - stats.norm.pdf(0.3)) > 0.1


def test_a_divergent_expectation_has_an_infinite_or_large_error():
    assert gaussian_expectation(lambda z: jnp.exp(z**2), kinks=(0.0,)).error > 1e10
    assert gaussian_expectation(lambda z: jnp.log(z)).error == np.inf


@pytest.mark.parametrize(
    ("name", "coefficient"),
    [
        # E exp(z) h_k = sqrt(e / k!);  E sin(z) h_k = (-1)^((k-1)/2) exp(-1/2) / sqrt(k!) for odd k
        ("exp", lambda k: math.sqrt(math.e / math.factorial(k))),
        ("sin", lambda k: (k % 2) * (-1) ** (k // 2) * math.exp(-0.5) / math.sqrt(math.factorial(k))),
        ("identity", lambda k: float(k == 1)),
    ],
)
def test_hermite_coefficients_known_in_closed_form(name, coefficient):
    ours = hermite_coefficients(activation(name), degree=12)
    np.testing.assert_allclose(ours, [coefficient(k) for k in range(13)], atol=1e-13)


def test_hermite_coefficients_of_relu():
    """a_0 = 1/sqrt(2 pi), a_1 = 1/2, a_k = He_(k-2)(0) / sqrt(2 pi k!) for even k >= 2, by parts twice."""
    ours = hermite_coefficients(activation("relu"), degree=8)
    at_zero = {0: 1.0, 2: -1.0, 4: 3.0, 6: -15.0}  # He_m(0)
    expected = [1 / math.sqrt(2 * math.pi), 0.5] + [
        at_zero[k - 2] / math.sqrt(2 * math.pi * math.factorial(k)) if k % 2 == 0 else 0.0 for k in range(2, 9)
    ]
    np.testing.assert_allclose(ours, expected, atol=1e-14)


def test_parseval_and_its_failure_for_a_short_series():
    moments = activation_moments(activation("tanh"))
    power = hermite_coefficients(activation("tanh"), degree=300) ** 2
    np.testing.assert_allclose(jnp.sum(power), moments.second_moment, rtol=1e-12)
    assert jnp.sum(power[:10]) < 0.9999 * moments.second_moment


def test_coefficients_are_differentiable_in_a_parameter_of_the_function():
    first = jax.grad(lambda a: hermite_coefficients(lambda z: jnp.exp(a * z), degree=2)[1])(0.5)
    assert first == pytest.approx(1.25 * math.exp(0.125), rel=1e-12)  # d/da of a exp(a²/2)


# value and derivative in numpy
FORMULAS = {
    "relu": (lambda u: np.maximum(u, 0), lambda u: float(u > 0)),
    "tanh": (np.tanh, lambda u: 1 / np.cosh(u) ** 2),
    "gelu": (lambda u: u * special.ndtr(u), lambda u: special.ndtr(u) + u * stats.norm.pdf(u)),
    "elu": (lambda u: u if u > 0 else np.expm1(u), lambda u: 1.0 if u > 0 else np.exp(u)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_moments_under_scale_and_shift_against_scipy(name):
    scale, shift = 1.7, -0.6
    value, slope = FORMULAS[name]
    kinks = (-shift / scale,)
    mean = scipy_expectation(lambda z: value(scale * z + shift), kinks)
    expected = [
        mean,
        scipy_expectation(lambda z: value(scale * z + shift) ** 2, kinks),
        scipy_expectation(lambda z: (value(scale * z + shift) - mean) ** 2, kinks),
        scipy_expectation(lambda z: (scale * slope(scale * z + shift)) ** 2, kinks),
    ]
    ours = activation_moments(activation(name), scale, shift)
    np.testing.assert_allclose(np.array(ours[:4]), expected, rtol=1e-11)
    assert ours.error < 1e-12


def test_moments_of_exp_and_of_a_steep_function():
    moments = activation_moments(activation("exp"), scale=1.5)
    assert moments.second_moment == pytest.approx(math.exp(4.5), rel=1e-12)
    assert moments.derivative_second_moment == pytest.approx(2.25 * math.exp(4.5), rel=1e-12)
    steep = activation_moments(activation("tanh"), scale=1e4)
    # E (a sech²(a z))² -> a (4/3) / sqrt(2 pi)
    assert steep.derivative_second_moment == pytest.approx(1e4 * 4 / 3 / math.sqrt(2 * math.pi), rel=1e-6)
    assert steep.error < 1e-12


BAD = {
    "exp_of_square": (lambda z: jnp.exp(z**2), "not square-integrable"),
    "just_not_integrable": (lambda z: jnp.exp(0.3 * z**2), "not square-integrable"),
    "pole": (lambda z: 1 / (z - 0.3), "jumps or is singular"),
    "logarithm": (lambda z: jnp.log(jnp.abs(z)), "is -inf at 0"),
    "step": (lambda z: jnp.where(z > 0.3, 1.0, 0.0), "jumps or is singular"),
    "step_at_a_panel_end": (lambda z: jnp.where(z > 1.0, 1.0, 0.0), "jumps or is singular"),
    "nan_value": (lambda z: jnp.sqrt(z), "is nan at"),
    "nan_derivative": (lambda z: jnp.sqrt(z**2), "derivative of .* is nan at 0"),
    "hidden_kink": (lambda z: jnp.maximum(z, 0.3), "kinks that are not listed"),
    "too_fast": (lambda z: jnp.sin(500 * z), "needs a higher order"),
}


@pytest.mark.parametrize(("f", "message"), BAD.values(), ids=BAD)
def test_bad_activations_are_refused_with_the_reason(f, message):
    with pytest.raises(ValueError, match=message):
        activation_moments(f)


def test_cures_that_the_messages_name():
    assert activation_moments(Activation("hinge", lambda z: jnp.maximum(z, 0.3), (0.3,))).error < 1e-12
    assert activation_moments(lambda z: jnp.sin(60 * z), order=64).error < 1e-9


def test_bad_arguments():
    with pytest.raises(ValueError, match="a scale must not be 0"):
        activation_moments(activation("relu"), scale=0.0)
    with pytest.raises(ValueError, match="must be finite"):
        activation_moments(activation("relu"), shift=np.nan)
    with pytest.raises(ValueError, match="order=0: must be a positive"):
        gauss_hermite_rule(0)
    with pytest.raises(ValueError, match="degree=-1: must not be negative"):
        hermite_coefficients(activation("relu"), degree=-1)


def test_under_jit_failure_is_a_value():
    error = jax.jit(lambda a: activation_moments(lambda z: jnp.exp(z**2), a).error)
    assert error(1.0) > 0.5
    assert jax.jit(lambda a: activation_moments(activation("tanh"), a).error)(1.0) < 1e-12


def test_single_precision_is_refused():
    with jax.enable_x64(False):
        for call in (lambda: split_rule((0.0,), 4), lambda: activation_moments(activation("relu"))):
            with pytest.raises(RuntimeError, match="jax_enable_x64"):
                call()
