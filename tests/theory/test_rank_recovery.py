"""alpha, frozen fractions, effective and hard rank, and the correlation probe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lopjax.activations import Activation, activation
from lopjax.theory import (
    activation_covariance,
    alpha,
    alpha_gradient,
    correlation_report,
    equicorrelated_effective_rank,
    exact_rank_gain,
    frozen_fraction,
    hard_rank,
    kernel_gap,
    rank_gain,
    shifted_relu_alpha,
)


@pytest.mark.usefixtures("x64")
class TestAlpha:
    @pytest.mark.parametrize(
        ("name", "uncentred", "centred", "printed"),
        [("relu", 0.0, 0.466942, 0.5), ("tanh", 0.177807, 0.177807, 0.6667), ("gelu", 0.072032, 0.318845, 0.5449)],
    )
    def test_corrected_values_and_not_the_printed_ones(self, name, uncentred, centred, printed):
        values = [float(alpha(activation(name), centred=c)) for c in (False, True)]
        np.testing.assert_allclose(values, [uncentred, centred], atol=5e-7)
        assert min(abs(value - printed) for value in values) > 0.03

    def test_by_monte_carlo(self):
        """Two million samples know alpha to about 1e-3, enough to exclude what is printed."""
        z = np.random.default_rng(0).standard_normal(2_000_000)
        estimate = np.mean(1 / np.cosh(z) ** 4) / np.mean(np.tanh(z) ** 2) - 1
        assert abs(alpha(activation("tanh")) - estimate) < 5e-3

    def test_closed_form_of_the_shifted_relu(self):
        c = jnp.array([-3.0, -1.0, 0.0, 2.0])
        np.testing.assert_allclose(alpha(activation("relu"), 2.0, 2 * c), shifted_relu_alpha(c), rtol=1e-11, atol=1e-13)
        # Far below zero the closed form cancels and the integral does not: alpha = c²/2 + O(1).
        assert abs(alpha(activation("relu"), shift=-12.0) / 72 - 1) < 0.03

    @pytest.mark.parametrize("centred", [False, True])
    def test_gradients_against_finite_differences(self, centred):
        f, point, step = activation("gelu"), np.array([1.3, -0.4]), 1e-4
        ours = alpha_gradient(f, *point, centred)
        for axis, derivative in enumerate(ours):
            shift = step * np.eye(2)[axis]
            difference = (alpha(f, *(point + shift), centred) - alpha(f, *(point - shift), centred)) / (2 * step)
            np.testing.assert_allclose(derivative, difference, rtol=1e-6)

    def test_gradient_of_the_shifted_relu_crosses_the_kink_rightly(self):
        _, by_shift = alpha_gradient(activation("relu"), 1.0, -0.5)
        np.testing.assert_allclose(by_shift, jax.grad(shifted_relu_alpha)(-0.5), rtol=1e-10)

    def test_poincare(self):
        """Centred alpha is at least 0, and 0 for a linear function."""
        scales = jnp.array([0.3, 1.0, 5.0])
        assert jnp.all(alpha(activation("gelu"), scales, 0.3, centred=True) > 0)
        assert abs(alpha(activation("identity"), 3.0, 1.0, centred=True)) < 1e-13
        assert alpha(activation("sigmoid")) < -0.8  # uncentred there is no such bound

    def test_constant_function(self):
        with pytest.raises(ValueError, match="variance 0"):
            alpha(lambda z: 0 * z + 1, centred=True)


@pytest.mark.usefixtures("x64")
class TestFrozenFraction:
    def test_relu_is_a_normal_tail(self):
        c = jnp.array([-6.0, -1.0, 0.5, 4.0])
        np.testing.assert_allclose(frozen_fraction(activation("relu"), 3.0, 3 * c), stats.norm.cdf(-c), rtol=1e-12)

    @pytest.mark.parametrize("scale", [0.5, 5.0, 200.0])
    def test_tanh_is_a_pair_of_normal_tails(self, scale):
        threshold, shift = 1e-4, 0.3
        edge = np.arccosh(np.sqrt(scale / threshold))  # a sech²(u) = threshold
        expected = stats.norm.cdf((-edge - shift) / scale) + stats.norm.sf((edge - shift) / scale)
        np.testing.assert_allclose(frozen_fraction(activation("tanh"), scale, shift, threshold), expected, rtol=1e-10)

    def test_sine_windows_narrower_than_the_grid_are_found(self):
        """cos(k z) has |k cos| < 0.1 on a fraction (2/pi) arcsin(0.1/k) of each period."""
        expected = 2 / np.pi * np.arcsin(0.1 / 30)
        np.testing.assert_allclose(frozen_fraction(jnp.sin, 30.0, threshold=0.1), expected, rtol=1e-9)

    def test_leaky_relu_never_freezes(self):
        shifts = jnp.array([-8.0, 0.0, 8.0])
        assert jnp.all(frozen_fraction(activation("leaky_relu"), 1.0, shifts, threshold=0.009) == 0)
        half = frozen_fraction(activation("leaky_relu"), 1.0, jnp.zeros(3), threshold=0.011)
        np.testing.assert_allclose(half, 0.5, rtol=1e-12)

    def test_bad_threshold(self):
        with pytest.raises(ValueError, match=r"threshold=0\.0: must be positive"):
            frozen_fraction(activation("relu"), threshold=0.0)


@pytest.mark.usefixtures("x64")
class TestEffectiveRank:
    @pytest.mark.parametrize("num_units", [2, 7, 100])
    def test_closed_form_against_eigenvalues(self, num_units):
        for eps in (1e-6, 0.1, 1.0, num_units / (num_units - 1)):
            matrix = np.full((num_units, num_units), 1 - eps)
            np.fill_diagonal(matrix, 1.0)
            p = np.maximum(np.linalg.eigvalsh(matrix), 1e-300) / num_units
            expected = np.exp(-np.sum(p * np.log(p)))
            np.testing.assert_allclose(equicorrelated_effective_rank(num_units, eps), expected, rtol=1e-9)

    @pytest.mark.parametrize("name", ["tanh", "gelu"])
    def test_corrected_formula_is_right_at_leading_order_and_the_printed_ones_are_not(self, name):
        """Ratio of the logarithm of each formula to the exact one, at smaller and smaller eps."""
        f, eps = activation(name), jnp.array([1e-3, 1e-5, 1e-7])
        exact = jnp.log(exact_rank_gain(100, eps, kernel_gap(f, eps)))
        error = {
            formula: np.abs(jnp.log(rank_gain(100, eps, alpha(f), formula)) / exact - 1)
            for formula in ("corrected", "leading_log", "linear")
        }
        assert np.all(error["corrected"] < 10 * eps)
        assert np.all(error["leading_log"][1:] > 10 * error["corrected"][1:])  # decays like 1/log only
        assert error["leading_log"][2] > 1e-3
        assert np.all(error["linear"] > 0.85)

    def test_printed_alpha_of_relu_is_refuted_by_the_exact_rank(self):
        """ReLU does not gain rank at all at leading order: alpha is 0, not 0.5."""
        gain = jnp.log(exact_rank_gain(100, 1e-4, kernel_gap(activation("relu"), 1e-4)))
        assert abs(gain) < 0.01 * jnp.log(rank_gain(100, 1e-4, 0.5, "leading_log"))

    def test_bad_input(self):
        with pytest.raises(ValueError, match="num_units=1: must be at least 2"):
            equicorrelated_effective_rank(1, 0.1)
        with pytest.raises(ValueError, match=r"eps=1.5: must lie in \[0, n/\(n-1\)\]"):
            equicorrelated_effective_rank(10, 1.5)
        with pytest.raises(ValueError, match="formula='log': must be one of corrected, leading_log, linear"):
            rank_gain(10, 0.1, 0.2, "log")
        with pytest.raises(ValueError, match=r"eps=0\.0: must be positive"):
            rank_gain(10, 0.0, 0.2)


@pytest.mark.usefixtures("x64")
class TestHardRank:
    @pytest.fixture
    def correlation(self):
        """Thirty units that span three dimensions."""
        directions = np.random.default_rng(1).standard_normal((30, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return directions @ directions.T

    def test_recovery_and_the_exceptions(self, correlation):
        assert hard_rank(correlation) == 3
        assert hard_rank(activation_covariance(activation("relu"), correlation)) == 30
        # A polynomial is an exception: products of two of three coordinates span 3 (3 + 1) / 2 dimensions.
        square = Activation("square", lambda z: z**2)
        assert hard_rank(activation_covariance(square, correlation)) == 6
        assert hard_rank(activation_covariance(square, correlation, centred=True)) == 6
        assert hard_rank(activation_covariance(activation("identity"), correlation)) == 3

    def test_opposite_units_cost_rank_only_if_the_function_is_odd_or_even(self):
        opposite = np.array([[1.0, -1.0, 0.3], [-1.0, 1.0, -0.3], [0.3, -0.3, 1.0]])
        assert hard_rank(opposite) == 2
        assert hard_rank(activation_covariance(activation("tanh"), opposite)) == 2
        assert hard_rank(activation_covariance(activation("relu"), opposite)) == 3

    def test_bad_matrix(self):
        with pytest.raises(ValueError, match="symmetric with diagonal 1"):
            activation_covariance(activation("relu"), np.eye(3) * 2)


class TestCorrelationReport:
    def test_against_numpy(self):
        h = np.random.default_rng(2).standard_normal((300, 6)).astype(np.float32)
        h[:, 1] = -2 * h[:, 0] + 5 + 0.02 * h[:, 1]  # a copy, negated
        h[:, 3] += h[:, 2]  # r about 0.7
        h[:, 5] = 3.7  # constant
        r = np.abs(np.corrcoef(h[:, :5].astype(np.float64), rowvar=False))[np.triu_indices(5, 1)]
        report = correlation_report(h, margin=0.2)
        expected = [np.mean(np.abs(2 * r - 1)), r.mean(), (r < 0.2).mean(), (r > 0.8).mean(), 10, 1 / 6]
        np.testing.assert_allclose(np.array(report), expected, rtol=1e-5)

    @pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
    def test_scale_and_offset_do_not_matter(self, scale):
        h = np.random.default_rng(3).standard_normal((50, 4)).astype(np.float32)
        base = correlation_report(h)
        np.testing.assert_allclose(np.array(correlation_report(h * np.float32(scale) * -3)), np.array(base), rtol=1e-4)
        np.testing.assert_allclose(np.array(correlation_report(h + 10)), np.array(base), rtol=1e-3)

    def test_extremes(self):
        independent = np.eye(8, dtype=np.float32)[:, :4] * 2 - 1  # r = 1/7
        copies = np.linspace(0, 1, 8, dtype=np.float32)[:, None] * np.arange(1, 5, dtype=np.float32)
        assert correlation_report(copies).polarisation == pytest.approx(1, abs=1e-5)
        assert correlation_report(independent).polarisation == pytest.approx(5 / 7, abs=1e-5)
        half = np.array([[1, 0.5], [0, np.sqrt(0.75)], [-1, -0.5], [0, -np.sqrt(0.75)]], np.float32)
        assert correlation_report(half).polarisation == pytest.approx(0, abs=1e-5)

    def test_no_pairs_is_a_value_and_not_a_nan(self):
        for h in (np.full((9, 5), 0.1, np.float32), np.zeros((9, 5), np.float32), np.ones((9, 1), np.float32)):
            report = correlation_report(h)
            assert report.num_pairs == 0
            assert report.constant_fraction == 1
            assert all(np.isfinite(np.array(report)))

    def test_under_jit_and_vmap(self):
        h = np.random.default_rng(4).standard_normal((3, 40, 5)).astype(np.float32)
        h[1, :, 2] = 0
        batched = jax.jit(jax.vmap(correlation_report))(h)
        for i in range(3):
            one = [float(field[i]) for field in batched]
            np.testing.assert_allclose(one, np.array(correlation_report(h[i])), rtol=1e-5)

    def test_bad_margin(self):
        with pytest.raises(ValueError, match=r"margin=0\.5"):
            correlation_report(np.ones((3, 2), np.float32), margin=0.5)
