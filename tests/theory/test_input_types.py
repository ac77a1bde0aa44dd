"""Types, scales and empty axes: a public function gives the right value, or one sentence."""

import contextlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from lopjax.activations import ACTIVATIONS, activation
from lopjax.theory import (
    activation_covariance,
    activation_moments,
    alpha,
    alpha_gradient,
    closed_form_kernel,
    correlation_report,
    equicorrelated_effective_rank,
    exact_rank_gain,
    frozen_fraction,
    frozen_fraction_bounds,
    gaussian_expectation,
    hard_rank,
    hermite_coefficients,
    iterate_map,
    kernel_gap,
    kernel_map,
    kernel_series,
    kernel_slope,
    rank_gain,
    shifted_relu_alpha,
    split_rule,
)

FLOATS = (ml_dtypes.bfloat16, np.float16, np.float32, np.float64)
ONE_MORE = [np.nextafter(np.ones((), dtype), np.asarray(2, dtype)) for dtype in (np.float16, np.float32, np.float64)]


@pytest.mark.parametrize("above", ONE_MORE, ids=lambda one: str(one.dtype))
def test_a_correlation_above_one_by_rounding_is_one(x64, above):
    for sign in (1, -1):
        assert closed_form_kernel("relu", jnp.asarray(sign * above)) == closed_form_kernel("relu", float(sign))
    assert kernel_map(jnp.tanh, jnp.asarray(above)) == kernel_map(jnp.tanh, 1.0)
    assert kernel_gap(jnp.tanh, jnp.asarray(1 - above)) < 1e-30
    assert equicorrelated_effective_rank(3, jnp.asarray(1 - above)) == 1
    with pytest.raises(ValueError, match=r"must lie in \[-1, 1\]"):
        closed_form_kernel("relu", 1 + 1e-9)


@pytest.mark.parametrize("dtype", [*FLOATS, np.int32], ids=str)
def test_correlations_of_any_type_give_what_their_values_give(x64, unchecked, dtype):
    rho = np.array([-1, 0, 1]).astype(dtype)
    np.testing.assert_array_equal(kernel_map(jnp.tanh, jnp.asarray(rho)), kernel_map(jnp.tanh, jnp.array([-1.0, 0, 1])))
    matrix = np.eye(3).astype(dtype)
    assert hard_rank(matrix, tolerance=0.1) == 3
    assert hard_rank(activation_covariance(activation("relu"), matrix), tolerance=0.1) == 3


def test_empty_axes(x64):
    assert kernel_map(jnp.tanh, jnp.zeros((2, 0))).shape == (2, 0)
    assert frozen_fraction(jnp.tanh, jnp.ones((0,))).shape == (0,)
    assert activation_covariance(activation("relu"), np.ones((1, 1))).shape == (1, 1)
    for call in (
        lambda: activation_covariance(activation("relu"), np.zeros((0, 0))),
        lambda: hard_rank(np.zeros((0, 0))),
        lambda: kernel_series(jnp.zeros(0), 0.5),
        lambda: correlation_report(jnp.zeros((0, 3))),
        lambda: correlation_report(jnp.zeros((3, 0))),
    ):
        with pytest.raises(ValueError, match="at least one"):
            call()


def test_numbers_that_mean_nothing_are_refused(x64):
    relu = activation("relu")
    bad = np.eye(2)
    bad[0, 1] = bad[1, 0] = 1.5
    cases = (
        (lambda: activation_covariance(relu, bad), "entry of 1.5"),
        (lambda: activation_covariance(relu, np.full((2, 2), np.nan)), "finite and symmetric"),
        (lambda: hard_rank(np.array([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: hard_rank(np.full((2, 2), np.nan)), "finite"),
        (lambda: hard_rank(np.eye(2, dtype=np.float32)), "rounding of this matrix"),
        (lambda: kernel_series(jnp.ones(1), 0.5, centred=True), "not all 0"),
        (lambda: rank_gain(10, np.inf, 0.1), "positive and finite"),
        (lambda: rank_gain(10, 0.1, -1.5), "at least -1"),
        (lambda: rank_gain(1, 0.1, 0.5), "at least 2"),
        (lambda: shifted_relu_alpha(-1e3), "at least -100"),
        (lambda: shifted_relu_alpha(np.nan), "at least -100"),
        (lambda: split_rule((np.nan,), 4), "must be finite"),
        (lambda: split_rule((0.0,), 0), "positive number of nodes"),
        (lambda: hermite_coefficients(jnp.log, 2), "f is nan|the activation is nan"),
        (lambda: frozen_fraction(relu, threshold=np.nan), "must be positive"),
    )
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    assert hard_rank(np.zeros((2, 2))) == 0


def test_the_limit_of_units_that_become_equal(x64):
    """alpha = -1: correlation 1 behind the activation, rank 1; the gain is finite."""
    gain = rank_gain(10, 1e-6, -1.0)
    np.testing.assert_allclose(jnp.log(gain), jnp.log(exact_rank_gain(10, 1e-6, 0.0)), rtol=1e-5)


def test_shifted_relu_far_out(x64):
    """alpha -> c²/2 - ... for c -> -inf: (c² - 5)/2 + O(1/c²) by Mills' ratio, where Phi(c) itself underflows."""
    for c in (-20.0, -60.0):
        assert abs(float(shifted_relu_alpha(c)) / (c**2 / 2) - 1) < 0.02
    np.testing.assert_allclose(shifted_relu_alpha(jnp.array([0.0, jnp.inf])), [0.0, -1.0], atol=1e-15)
    with jax.enable_x64(False), pytest.raises(RuntimeError, match="jax_enable_x64"):
        shifted_relu_alpha(0.0)


REPORT = np.random.default_rng(0).standard_normal((256, 5))
REPORT[:, 1] = -REPORT[:, 0]
REPORT[:, 4] = 3.0


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_reports_of_any_float_and_scale(dtype, scale):
    limits = ml_dtypes.finfo(dtype)
    if scale * 4 > float(limits.max) or scale < 100 * float(limits.smallest_normal):
        pytest.skip("outside the range of the type")
    with jax.enable_x64(dtype is np.float64):
        report = correlation_report(jnp.asarray((REPORT * scale).astype(dtype)))
        num_pairs, constant, mean = (float(x) for x in (report.num_pairs, report.constant_fraction, report.mean))
    exact = np.abs(np.corrcoef(REPORT[:, :4].T))[np.triu_indices(4, 1)]
    assert (num_pairs, constant) == (6, pytest.approx(0.2))
    assert mean == pytest.approx(exact.mean(), abs=5 * float(limits.eps))


def test_reports_of_integers_and_booleans_extreme_and_broken_values():
    counts = np.array([[0, 1, 7], [1, 0, 7], [2, -1, 7]])
    for given in (counts, counts.astype(np.int8), counts.astype(np.uint8) % 2 == 0):
        assert float(correlation_report(jnp.asarray(given)).num_pairs) == 1
    huge = correlation_report(jnp.asarray(REPORT.astype(np.float32) * np.float32(5e37)))
    assert float(huge.mean) == pytest.approx(float(correlation_report(jnp.asarray(REPORT, jnp.float32)).mean), rel=1e-5)
    for broken in (np.nan, np.inf):
        spoilt = REPORT.astype(np.float32)
        spoilt[3, 2] = broken
        assert all(np.isnan(value) for value in correlation_report(jnp.asarray(spoilt)))


@pytest.mark.slow
def test_activations_keep_type_and_survive_extreme_values():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        ends = jnp.array([-jnp.inf, -1e4, 0.0, 1e4], dtype)
        for name, f in ACTIVATIONS.items():
            value = f(ends)
            assert value.dtype == dtype
            assert not np.isnan(np.asarray(value[1:], np.float32)).any(), name
            assert np.isnan(np.asarray(f(jnp.array([jnp.nan], dtype)), np.float32)).all(), name
            if f.lower_bound is not None and np.isfinite(f.lower_bound):
                assert (np.asarray(value[1:], np.float32) >= f.lower_bound - 0.01).all(), name


# Of an array of scales that every type holds.
MOMENTS = {
    "activation_moments": lambda s: activation_moments(jnp.tanh, s),
    "alpha": lambda s: alpha(jnp.tanh, s),
    "alpha_gradient": lambda s: alpha_gradient(jnp.tanh, jnp.ravel(s)[0]),
    "frozen_fraction_bounds": lambda s: frozen_fraction_bounds(jnp.tanh, s),
    "kernel_slope": lambda s: kernel_slope(jnp.tanh, s / 4),
    "iterate_map": lambda s: iterate_map(lambda rho: rho**2, s / 4, 2),
    "gaussian_expectation": lambda s: gaussian_expectation(lambda z: s[0] * z**2, order=8).value,
}


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_of_any_type_give_what_their_values_give(x64, unchecked, name):
    def flat(result):
        return np.concatenate([np.ravel(np.asarray(leaf)).astype(np.float64) for leaf in jax.tree.leaves(result)])

    expected = flat(MOMENTS[name](jnp.array([1.0, 2.0])))
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(flat(MOMENTS[name](jnp.array([1, 2], jnp.bfloat16))), expected, rtol=1e-6, atol=1e-12)
    with contextlib.suppress(ValueError):
        assert not np.isfinite(flat(MOMENTS[name](jnp.array([jnp.nan, 2.0])))).all()
