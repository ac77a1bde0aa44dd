"""Metrics from the smallest subnormal number to the largest, in every dtype, and their gradients where ranks drop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.metrics import between_cluster_share, rank_oracles
from test_metrics import RANKS, all_metrics, normal

from lopjax import metrics
from lopjax.metrics.scaling import as_samples

BASE = normal(20, 6) / np.abs(normal(20, 6)).max()
LARGEST = float(np.finfo(np.float32).max)


@jax.jit
def scale_free(h):
    values = all_metrics(h, h) | {"cloning_r2": metrics.cloning_r2(h, 2)}
    values |= {
        "excess_kurtosis": metrics.excess_kurtosis(h, 0.0),
        "ks_non_gaussianity": metrics.ks_non_gaussianity(h, 0.0),
    }
    return values | {f"score {unit}": score for unit, score in enumerate(metrics.dormant_scores(h))}


def scale_free_in_numpy(h):
    """In the wider type, on the numbers as they are stored, divided by their largest."""
    h = h.astype(np.longdouble)
    h = (h / np.abs(h).max()).astype(np.float64)
    z = (h - h.mean(axis=0)) / h.std(axis=0)
    expected = rank_oracles(h) | {"cloning_r2": between_cluster_share(h, np.arange(6) // 2)}
    expected |= {"excess_kurtosis": np.minimum(np.abs((z**4).mean(axis=0) - 3), 10).mean()}
    scores = np.abs(h).mean(axis=0) / np.abs(h).mean()
    return expected | {f"score {unit}": score for unit, score in enumerate(scores)}


@pytest.mark.parametrize("size", [1e-44, 1e-42, 1e-39, 1.2e-38, 1e-25, 1.0, 1e25, 1e36, 1e38, LARGEST])
def test_metrics_do_not_depend_on_the_scale(size):
    """Backward signals of a fitted task are tiny, activations of a diverging network huge: both are finite."""
    h = (BASE * size).astype(np.float32)
    assert np.isfinite(h).all()
    values, expected = scale_free(h), scale_free_in_numpy(h)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=2e-5, atol=1e-6, err_msg=f"{name} at {size:g}")


@pytest.mark.parametrize("size", [5e-320, 1e-308, 1e300, np.finfo(np.float64).max])
def test_metrics_do_not_depend_on_the_scale_in_float64(x64, size):
    h = BASE * size
    values, expected = scale_free(h), scale_free_in_numpy(h)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=1e-9, atol=1e-12, err_msg=f"{name} at {size:g}")


def test_the_largest_numbers_of_both_signs():
    """Differences of entries overflow here: orthogonal columns of equal length, every rank known."""
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    values = all_metrics(LARGEST * signs.astype(np.float32), signs.astype(np.float32))
    for name in RANKS:
        np.testing.assert_allclose(values[name], 2, rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(values["excess_kurtosis"], 2, rtol=1e-6)
    assert values["saturated_fraction"] == 1  # gradients of 1 beside 3e38
    values = all_metrics(LARGEST * signs.astype(np.float32), LARGEST * signs.astype(np.float32))
    assert values["saturated_fraction"] == 0


def test_means_of_many_large_numbers_are_finite():
    h = np.full((100_000, 2), 1e36, np.float32)
    h[::2, 1] *= -1
    assert metrics.saturated_fraction(h, h) == 0
    np.testing.assert_allclose(metrics.excess_kurtosis(h), (10 + 2) / 2, rtol=1e-5)


def test_units_of_very_different_size_do_not_hide_one_another():
    """A huge constant beside small units: centred, only the small ones are left."""
    renyi2_rank, pairs = jax.jit(metrics.renyi2_rank), jax.jit(lambda h: metrics.cloning_r2(h, 2))
    h = normal(20, 6).astype(np.float32) * np.float32(1e-10)
    h[:, 0] = 1
    expected = renyi2_rank(h)
    h[:, 0] = 1e32
    np.testing.assert_allclose(renyi2_rank(h), expected, rtol=1e-5)
    assert expected > 4
    clones = np.repeat(normal(20, 3), 2, axis=1).astype(np.float32)
    clones[0] = 3e38  # equal units: no variance in this sample, however large
    assert pairs(clones) == 1
    wrong = np.roll(clones, 1, axis=1)
    np.testing.assert_allclose(pairs(wrong), between_cluster_share(wrong[1:], np.arange(6) // 2), rtol=1e-5)


def test_subnormal_activations_are_not_zero():
    h = np.full((4, 2), 1e-40, np.float32)
    h[:, 1] = 0
    assert metrics.dead_fraction(h, zero_tolerance=0.0) == 0.5
    assert metrics.dead_fraction(h, zero_tolerance=2e-40) == 1
    assert metrics.dead_fraction(h, zero_tolerance=-1.0) == 0
    assert metrics.numerical_rank(h) == 1
    assert metrics.dormant_fraction(h) == 0.5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int8", "uint8", "int32", "bool"])
def test_every_real_dtype_is_measured_as_the_numbers_it_holds(unchecked, dtype):
    h = jnp.asarray(np.rint(3 * normal(20, 6))).astype(dtype)
    np.testing.assert_array_equal(as_samples(h), np.asarray(h, np.float32))
    for name, value in jax.eval_shape(all_metrics.__wrapped__, h, h).items():
        assert (value.shape, value.dtype) == ((), jnp.float32), name


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_smallest_and_largest_half_precision_numbers(unchecked, dtype):
    pattern, info = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), jnp.finfo(dtype)
    for size in (info.max, info.smallest_subnormal):
        h = jnp.asarray((float(size) * pattern).astype(dtype))
        np.testing.assert_allclose(metrics.effective_rank(h, "second_moment"), 3 / 2 ** (2 / 3), rtol=1e-5)


# --- Gradients --------------------

DEAD = np.diag([1.0, 2.0, 0.0])  # the third unit is dead


def test_the_gradient_of_the_second_moment_rank_with_a_dead_unit_is_its_limit(x64):
    """er = exp(H(p)), p = s² / sum: d er / d s_k = -er (ln p_k + H) 2 s_k / sum."""
    rank_gradient = jax.jit(jax.grad(lambda h: metrics.effective_rank(h, "second_moment")))
    gradient = rank_gradient(DEAD)
    shares = np.array([1.0, 4.0]) / 5
    entropy = -(shares * np.log(shares)).sum()
    slopes = -np.exp(entropy) * (np.log(shares) + entropy) * 2 * np.array([1.0, 2.0]) / 5
    np.testing.assert_allclose(gradient, np.diag([*slopes, 0]), atol=1e-12)
    near = rank_gradient(DEAD + np.diag([0, 0, 1e-9]))
    np.testing.assert_allclose(gradient, near, atol=1e-7)


def test_the_gradient_of_the_singular_value_rank_with_a_dead_unit_is_that_of_the_live_ones(x64):
    gradient = jax.jit(jax.grad(metrics.effective_rank))(DEAD)
    shares = np.array([1.0, 2.0]) / 3
    entropy = -(shares * np.log(shares)).sum()
    np.testing.assert_allclose(np.diag(gradient)[:2], -np.exp(entropy) * (np.log(shares) + entropy) / 3, atol=1e-12)
    np.testing.assert_allclose(gradient[[0, 1], [1, 0]], 0, atol=1e-12)
    np.testing.assert_array_equal(gradient[2], 0)
    np.testing.assert_array_equal(gradient[:, 2], 0)


@pytest.mark.parametrize("spectrum", ["singular", "covariance", "second_moment"])
def test_gradients_of_duplicated_units_are_finite_and_predict_finite_differences(x64, spectrum):
    """A unit that repeats another, a dead one and a constant one; moved inside the live units only."""
    h = jnp.asarray(normal(12, 5)).at[:, 3].set(0.0)
    direction = jnp.asarray(normal(12, 5, seed=1)).at[:, 3].set(0.0)
    h, direction = (x.at[:, 4].set(2 * x[:, 0]) for x in (h, direction))

    @jax.jit
    def rank(t):
        return metrics.effective_rank(h + t * direction, spectrum)

    slope = jax.jit(jax.grad(rank))(0.0)
    np.testing.assert_allclose(slope, (rank(1e-5) - rank(-1e-5)) / 2e-5, rtol=1e-6)
    assert abs(slope) > 1e-3


GRADIENTS = {
    "effective_rank": metrics.effective_rank,
    "renyi2_rank": metrics.renyi2_rank,
    "stable_rank": metrics.stable_rank,
    "cloning_r2": lambda h: metrics.cloning_r2(h, 2),
    "excess_kurtosis": lambda h: metrics.excess_kurtosis(h, 0.0),
    "ks_non_gaussianity": lambda h: metrics.ks_non_gaussianity(h, 0.0),
}


def test_gradients_agree_with_differences_and_stay_finite_where_units_are_constant(x64):
    def values(h):
        return jnp.stack([metric(h) for metric in GRADIENTS.values()])

    value, jacobian = jax.jit(values), jax.jit(jax.jacrev(values))
    h, direction = jnp.asarray(normal(12, 4)), jnp.asarray(normal(12, 4, seed=1))
    measured = (value(h + 1e-6 * direction) - value(h - 1e-6 * direction)) / 2e-6
    predicted = jnp.sum(jacobian(h) * direction, axis=(1, 2))
    np.testing.assert_allclose(predicted, measured, rtol=1e-6)
    assert np.abs(predicted).min() > 1e-3
    for degenerate in (h.at[:, 1].set(0.0), h.at[:, 1].set(3.0), jnp.zeros_like(h), jnp.ones_like(h)):
        assert np.isfinite(jacobian(degenerate)).all()
