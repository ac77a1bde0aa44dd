"""The law of the escape time under decaying noise: closed forms of scipy, mpmath-free sums, and simulated runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from lopjax.stability import (
    DecayingNoise,
    escape_probability,
    escape_quantiles,
    first_passage_times,
    noise_variances,
    propagated_covariance,
    weighted_chi_square_tail,
)


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 200])
def test_one_weight_is_a_chi_square_law_also_far_out(degrees):
    thresholds = 0.3 * scipy.stats.chi2.isf([1 - 1e-9, 0.999, 0.6, 0.5, 0.4, 0.1, 1e-3, 1e-8, 1e-30, 1e-100], degrees)
    found = weighted_chi_square_tail(np.full((10, 1), 0.3), thresholds, [degrees])
    np.testing.assert_allclose(found, scipy.stats.chi2.sf(thresholds / 0.3, degrees), rtol=1e-10)
    # Control: another number of degrees is another law.
    other = weighted_chi_square_tail(np.full((10, 1), 0.3), thresholds, [degrees + 1])
    assert np.abs(other - found).max() > 0.01


def test_pairs_of_weights_are_a_mixture_of_exponentials():
    weights, threshold = np.array([1.0, 0.37, 0.01]), np.array([0.01, 0.3, 1.4, 5.0, 40.0])
    others = [np.prod([w / (w - v) for v in weights if v != w]) for w in weights]
    expected = np.exp(-threshold[:, None] / (2 * weights)) @ others
    found = weighted_chi_square_tail(np.tile(weights, (5, 1)), threshold, [2, 2, 2])
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_weights_of_all_sizes_against_draws():
    weights, degrees = np.array([1.0, 0.1, 1e-3, 1e-9, 0.0]), [1, 2, 3, 4, 5]
    rng = np.random.default_rng(0)
    draws = sum(w * rng.chisquare(m, 200_000) for w, m in zip(weights, degrees, strict=True))
    for threshold in (0.05, 0.3, 1.0, 4.0):
        found = weighted_chi_square_tail(weights, threshold, degrees)
        assert abs(found - (draws >= threshold).mean()) < 4 * (found * (1 - found) / 200_000) ** 0.5
    assert weighted_chi_square_tail(np.array([0.0, 0.0]), 1.0) == 0
    assert weighted_chi_square_tail(np.array([np.inf, 1.0]), 1.0) == 1
    with_silent = weighted_chi_square_tail(np.array([np.inf, 1.0]), 1.0, [0, 1])  # a variance that does not occur
    assert with_silent == pytest.approx(2 * scipy.stats.norm.sf(1.0), rel=1e-9)
    with pytest.raises(ValueError, match="at least 0"):
        weighted_chi_square_tail(np.array([-1.0]), 1.0)


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_variances_are_those_of_the_recursion(decay):
    # Factors beyond 1, equal to gamma, 0, and negative.
    noise, values = DecayingNoise(0.1, 2.0, decay, weight_decay=0.05), np.array([-0.3, -0.05, 0.95, 9.95, 12.0])
    expected = [np.zeros(5)]
    for t in range(60):
        expected.append((1 - 0.1 * (values + 0.05)) ** 2 * expected[-1] + (2 * decay**t) ** 2)
    np.testing.assert_allclose(noise_variances(values, np.arange(61), noise), expected, rtol=1e-10, atol=1e-30)
    without = noise_variances(values, 60, noise._replace(weight_decay=0.0))
    assert np.abs(without - expected[-1]).max() > 0.01 * expected[-1].max()
    assert noise_variances([-5.0], 10_000, DecayingNoise(0.1, 1.0)) == np.inf


def test_one_mode_escapes_with_the_complementary_error_function():
    noise = DecayingNoise(0.1, 1e-3, 0.9)
    deviation = noise_variances([-0.2], 50, noise)[0] ** 0.5
    found = escape_probability([-0.2], [1], 0.01, 50, noise)
    np.testing.assert_allclose(found, scipy.special.erfc(0.01 / (2**0.5 * deviation)), rtol=1e-10)


LAW = ([-0.3, -0.1, 0.2], [3, 2, 4], 0.05)


def test_quantiles_are_those_of_simulated_runs(x64):
    noise, runs = DecayingNoise(0.1, 1e-3, 0.95), 4_000
    predicted = escape_quantiles(*LAW, noise)
    # Where nothing comes back, being outside and having been outside are nearly the same.
    times = np.asarray(first_passage_times(*LAW, noise, runs, int(predicted[-1]), jax.random.key(0)))
    for level, step in zip((0.1, 0.5, 0.9), predicted, strict=True):
        assert abs((times <= step).mean() - level) < 4 * (level * (1 - level) / runs) ** 0.5 + 0.005
    # Control: every eigenvalue once, as the fastest mode alone would have it.
    assert escape_quantiles(LAW[0], [1, 1, 1], LAW[2], noise)[0] > 1.2 * predicted[0]
    assert np.isinf(escape_quantiles([0.5], [1], 1.0, noise, max_steps=600)).all()


def test_having_left_is_not_being_outside(x64):
    # A stable direction: the noise throws the clones out, and they come back.
    noise, radius = DecayingNoise(0.1, 1e-2, 0.99), 0.04
    ever = np.isfinite(first_passage_times([0.2], [1], radius, noise, 2_000, 1_000, jax.random.key(0))).mean()
    assert escape_probability([0.2], [1], radius, 1_000, noise) < 1e-12
    assert ever > 0.3


def test_propagated_covariances_are_those_of_simulated_noise(x64):
    rng, steps, eta = np.random.default_rng(0), 30, 0.1
    half = rng.normal(size=(steps, 3, 3))
    hessians, scales = half + half.transpose(0, 2, 1), 0.9 ** np.arange(steps)[:, None] * np.array([1.0, 0.3, 2.0])
    added = jnp.asarray(np.einsum("ti,ij->tij", scales**2, np.eye(3)))
    found = np.asarray(propagated_covariance(jnp.asarray(hessians), added, eta))
    places = np.zeros((100_000, 3))
    for t in range(steps):
        places = places @ (np.eye(3) - eta * hessians[t]) + scales[t] * rng.normal(size=places.shape)
    np.testing.assert_allclose(found, np.cov(places.T), atol=0.03 * np.abs(found).max())
    radius = 2.0 * np.trace(found) ** 0.5
    tail = weighted_chi_square_tail(np.linalg.eigvalsh(found), radius**2)
    assert abs(tail - ((places**2).sum(axis=1) >= radius**2).mean()) < 0.004
    isotropic = np.asarray(
        propagated_covariance(jnp.asarray(hessians[0]), jnp.broadcast_to(jnp.eye(3), (5, 3, 3)), eta)
    )
    factor, expected = np.eye(3) - eta * hessians[0], np.zeros((3, 3))
    for _ in range(5):
        expected = factor @ expected @ factor.T + np.eye(3)
    np.testing.assert_allclose(isotropic, expected, rtol=1e-12)
