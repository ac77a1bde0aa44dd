"""Metrics against measured reference values, numpy and scipy in float64, and the properties in their docstrings."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from oracles.metrics import between_cluster_share, entropy_rank, rank_oracles
from oracles.reference import REFERENCE, requires_reference

from lopjax import metrics
from lopjax.metrics.gaussianity import sorted_columns

VARIANTS = {
    "effective_rank_covariance": partial(metrics.effective_rank, spectrum="covariance"),
    "effective_rank_second_moment": partial(metrics.effective_rank, spectrum="second_moment"),
    "cloning_r2": partial(metrics.cloning_r2, factor=1),
}
NAMES = [*metrics.SITE_METRICS, *VARIANTS]  # a new row of the table is held to all that is asked of these
RANKS = [name for name in NAMES if "rank" in name]


def measure(name, h, grad=None):
    if name in VARIANTS:
        return VARIANTS[name](h)
    return metrics.SITE_METRICS[name](metrics.SiteActivity(h, h, h if grad is None else grad))


@jax.jit
def all_metrics(h, grad):
    return {name: measure(name, h, grad) for name in NAMES}


@jax.jit
def all_ranks(h):
    return {name: measure(name, h) for name in RANKS}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# --- Reference values -----------------------------------------------------------------------


@requires_reference
@pytest.mark.parametrize("case", ["relu", "tanh_mixed", "low_rank", "dead_and_duplicate", "conv_nchw"])
def test_reference_values(case):
    """What the authors of arXiv 2510.00304 print, and textbook definitions.

    Theirs: `dead_fraction`, `duplicate_fraction`, `saturated_fraction`, `effective_rank` (singular values),
    `participation_ratio` (which their code calls stable rank; our `renyi2_rank`), `ks` and `kurtosis`.
    Textbook, by numpy: `stable_rank`, `renyi2_rank`, `effective_rank` of the covariance.
    """
    with np.load(REFERENCE / "metrics.npz") as archive:
        values = {key.removeprefix(f"{case}/"): archive[key] for key in archive if key.startswith(f"{case}/")}
    h, grad = values["h"], values["grad"]
    if h.ndim == 4:  # (batch, channels, height, width): the units go last
        h, grad = (np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]) for x in (h, grad))
    ours = all_metrics(h, grad)
    pairs = {
        "dead_fraction": "dead_fraction",
        "duplicate_fraction": "duplicate_fraction",
        "saturated_fraction": "saturated_fraction",
        "effective_rank": "effective_rank",
        "effective_rank_covariance": "effective_rank_covariance",
        "participation_ratio": "renyi2_rank",
        "renyi2_rank": "renyi2_rank",
        "stable_rank_textbook": "stable_rank",
        "ks": "ks_non_gaussianity",
        "kurtosis": "excess_kurtosis",
    }
    for theirs, name in pairs.items():
        np.testing.assert_allclose(ours[name], values[theirs], rtol=1e-5, atol=1e-7, err_msg=theirs)


# --- Ranks ----------------------------------------------------------------------------------

MATRICES = {
    "tall": normal(40, 12),
    "wide": normal(12, 40),
    "offset": normal(40, 12) + 100.0,
    "graded": normal(40, 12) * np.logspace(0, -6, 12),
    "low_rank": normal(40, 3) @ normal(3, 12, seed=1),
}


@pytest.mark.parametrize("name", MATRICES)
def test_ranks_agree_with_numpy_svd(x64, name):
    h = MATRICES[name]
    values = all_ranks(h)
    for metric, expected in rank_oracles(h).items():
        np.testing.assert_allclose(values[metric], expected, rtol=1e-10, err_msg=metric)


def test_ranks_of_known_spectra(x64):
    """Orthogonal columns of lengths 3 and 1: every rank in closed form, and all of them different."""
    h = np.zeros((40, 12))
    h[:4, 0] = 1.5 * np.array([1, -1, 1, -1])
    h[4:8, 1] = 0.5 * np.array([1, -1, 1, -1])
    expected = {
        "effective_rank": 4 / 3**0.75,
        "effective_rank_covariance": 10 / 9**0.9,
        "effective_rank_second_moment": 10 / 9**0.9,
        "renyi2_rank": 100 / 82,
        "stable_rank": 10 / 9,
        "numerical_rank": 2,
        "srank": 2,
    }
    for metric, value in all_ranks(h).items():
        np.testing.assert_allclose(value, expected[metric], rtol=1e-12, err_msg=metric)
    assert metrics.numerical_rank(h, tol=0.5) == 1
    assert metrics.srank(h, delta=0.25) == 1  # the larger carries exactly 3/4 of the sum
    assert metrics.srank(h, delta=0.24) == 2


def test_srank_of_equal_singular_values_counts_a_share_of_them():
    """k of 100 carry k/100: a bound that is met exactly must not depend on rounding."""
    for delta, expected in ((0.01, 99), (0.3, 70), (0.0, 100), (0.995, 1)):
        assert metrics.srank(np.eye(100, dtype=np.float32), delta) == expected


def test_singular_values_are_not_taken_from_a_gram_matrix():
    """Float32, rank 2 of 200 units: the SVD keeps the effective rank, a Gram matrix (the control) does not."""
    h = (normal(300, 2) @ normal(2, 200, seed=1)).astype(np.float32)
    expected = entropy_rank(np.linalg.svd(h.astype(np.float64), compute_uv=False)[:2])
    np.testing.assert_allclose(jax.jit(metrics.effective_rank)(h), expected, rtol=1e-3)
    through_gram = np.sqrt(np.abs(np.linalg.eigvalsh(h.T @ h)))
    assert abs(entropy_rank(through_gram.astype(np.float64)) / expected - 1) > 1e-2


def compiled(function, shape):
    return jax.jit(function).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="counts LAPACK calls")
def test_one_compiled_call_decomposes_twice():
    """Seven ranks, two decompositions (of h and of centred h): the compiler shares what the functions repeat."""
    text = compiled(lambda h: [measure(name, h) for name in RANKS], (40, 10)).as_text()
    assert sum("custom-call(" in line and "gesdd" in line for line in text.splitlines()) == 2


@pytest.mark.parametrize("name", RANKS)
def test_memory_does_not_grow_with_samples_squared(name):
    """A plain `svd(h, compute_uv=False)` is the control: it reserves a (samples, samples) buffer on CPU."""
    samples, units = 5000, 4
    used = compiled(partial(measure, name), (samples, units)).memory_analysis().temp_size_in_bytes
    assert used < 40 * 4 * samples * units


# --- Counting metrics -----------------------------------------------------------------------


def test_dead_fraction_counts_units_above_the_threshold():
    h = np.ones((100, 4), np.float32)
    h[:, 0] = 0.0
    h[:96, 1] = 1e-8  # 96 % zero: dead
    h[:95, 2] = 0.0  # exactly 95 %: not more than the threshold
    assert metrics.dead_fraction(h) == 0.5
    assert metrics.dead_fraction(h, threshold=0.9) == 0.75
    assert metrics.dead_fraction(h, zero_tolerance=0.0) == 0.25
    assert metrics.dead_fraction(h, zero_tolerance=1.0) == 1.0


def test_duplicate_fraction_counts_all_but_one_of_a_cluster():
    h = normal(200, 8)
    assert metrics.duplicate_fraction(h) == 0.0
    h[:, 5] = 3.0 * h[:, 0]
    h[:, 7] = 0.1 * h[:, 0]
    assert metrics.duplicate_fraction(h) == 2 / 8
    h[:, 6] = -h[:, 1]  # opposite, not equal
    assert metrics.duplicate_fraction(h) == 2 / 8
    assert metrics.duplicate_fraction(h, signed=False) == 3 / 8


@pytest.mark.parametrize(("angles", "expected"), [((15, -15, 0), 2 / 3), ((0, 15, -15), 1 / 3)])
def test_a_duplicate_has_its_twin_after_it(angles, expected):
    """Units 15 degrees apart are duplicates, those 30 degrees apart are not, so the order of three matters."""
    h = jnp.stack([jnp.cos(jnp.deg2rad(jnp.array(angles))), jnp.sin(jnp.deg2rad(jnp.array(angles)))])
    np.testing.assert_allclose(metrics.duplicate_fraction(h), expected, rtol=1e-6)


def test_dormant_scores_of_the_published_trace():
    """Means (0, 1, 3) over samples of both signs: scores (0, 0.75, 2.25), whatever the scale of the layer."""
    h = np.array([[0.0, 0.5, -5.0], [0.0, -1.5, 1.0]])
    np.testing.assert_allclose(metrics.dormant_scores(h), [0, 0.75, 2.25], rtol=1e-6)
    np.testing.assert_allclose(metrics.dormant_scores(1e-12 * h), [0, 0.75, 2.25], rtol=1e-6)  # 1e-9 would show
    assert metrics.dormant_fraction(h, threshold=0.75) == pytest.approx(2 / 3)  # inclusive
    assert metrics.dormant_fraction(h, threshold=0.74) == pytest.approx(1 / 3)


def test_dormant_is_not_dead():
    h = np.abs(normal(100, 10)).astype(np.float32)
    h[:, :3] *= 1e-4
    score = h.mean(axis=0) / h.mean()
    assert metrics.dormant_fraction(h) == (score <= 0.025).mean(dtype=np.float32) == np.float32(0.3)
    assert metrics.dead_fraction(h) == 0


@pytest.mark.parametrize(("cosine", "expected"), [(0.96, 0.5), (0.94, 0.0)])
def test_duplicate_threshold_is_a_cosine(cosine, expected):
    h = np.array([[1.0, cosine], [0.0, np.sqrt(1 - cosine**2)]])
    assert metrics.duplicate_fraction(h) == expected


def test_saturated_fraction_compares_gradient_with_mean_activation():
    h, grad = np.full((200, 4), 2.0), np.ones((200, 4))
    grad[:, 0] = 1e-4  # below 1e-4 * 2
    grad[:, 1] = 3e-4  # above
    grad[:198, 2] = 0.0  # exactly 99 %
    grad[:199, 3] = 0.0
    assert metrics.saturated_fraction(h, grad) == 0.5
    assert metrics.saturated_fraction(h, grad, fraction=0.98) == 0.75
    assert metrics.saturated_fraction(h, grad, threshold=2e-4) == 0.75


# --- Clones ---------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exact_clones_give_exactly_one(x64, factor, dtype):
    clones = np.repeat(normal(30, 8).astype(dtype), factor, axis=1)
    order = np.random.default_rng(1).permutation(clones.shape[1])
    clusters = np.repeat(np.arange(8), factor)[order]

    @jax.jit  # compiled, because that is where fused arithmetic could spoil exact cancellation
    def compare(h):
        return metrics.cloning_r2(h, factor), metrics.cloning_r2(h[:, order], factor), partition_r2(h[:, order])

    partition_r2 = partial(metrics.partition_r2, clusters=clusters)
    adjacent, shuffled, shuffled_with_partition = compare(clones / 7)
    assert adjacent == 1.0
    assert shuffled < 0.9
    assert shuffled_with_partition == 1.0


@pytest.mark.parametrize("clusters", [(0, 0, 1, 1, 2, 2), (0, 0, 0, 1, 2, 2), (2, 0, 1, 0, 2, 2)])
def test_r2_is_the_explained_share_of_the_variance(x64, clusters):
    h = normal(20, 6) + np.array([0, 0, 1, 1, -2, -2])
    expected = between_cluster_share(h, clusters)
    np.testing.assert_allclose(metrics.partition_r2(h, clusters), expected, rtol=1e-12)
    if clusters == (0, 0, 1, 1, 2, 2):
        np.testing.assert_allclose(metrics.cloning_r2(h, 2), expected, rtol=1e-12)
        deviations = h.reshape(20, 3, 2).std(axis=2).mean() / h.std(axis=1).mean()
        assert abs(1 - deviations - expected) > 0.1  # standard deviations in place of variances


@pytest.mark.parametrize("factor", [2, 4])
def test_independent_units_give_their_degrees_of_freedom(factor):
    """Control: no clones, R² = (clusters - 1) / (units - 1), not 0 and far from 1; spread over draws 0.002."""
    units = 32
    value = metrics.cloning_r2(normal(4000, units), factor)
    np.testing.assert_allclose(value, (units // factor - 1) / (units - 1), atol=0.01)


def test_r2_falls_with_the_square_of_a_perturbation():
    """Independent noise of size s on clones of unit variance costs about s² / 2 of pairs (the 1/n variances)."""
    clones = np.repeat(normal(2000, 64), 2, axis=1)
    value = metrics.cloning_r2(clones + 0.1 * normal(2000, 128, seed=1), 2)
    np.testing.assert_allclose(1 - value, 0.01 / 2, rtol=0.05)


def test_singletons_are_their_own_clones():
    assert metrics.cloning_r2(normal(5, 4), 1) == 1.0


# --- Distance from a Gaussian ---------------------------------------------------------------

COLUMNS = {
    "normal": normal(120, 3) * 5 - 2,
    "relu": np.maximum(normal(120, 3), 0),
    "uniform": np.random.default_rng(2).uniform(size=(120, 3)),
    "heavy": np.random.default_rng(3).standard_t(3, size=(120, 3)),
}


ks_non_gaussianity = jax.jit(metrics.ks_non_gaussianity)
excess_kurtosis = jax.jit(metrics.excess_kurtosis)


@pytest.mark.parametrize("name", COLUMNS)
def test_gaussianity_agrees_with_scipy(x64, name):
    h = COLUMNS[name]
    z = (h - h.mean(axis=0)) / h.std(axis=0)
    expected = np.mean([scipy.stats.kstest(column, "norm").statistic for column in z.T])
    np.testing.assert_allclose(ks_non_gaussianity(h), expected, rtol=1e-12)
    kurtosis = np.minimum(np.abs(scipy.stats.kurtosis(h)), 10).mean()
    np.testing.assert_allclose(excess_kurtosis(h), kurtosis, rtol=1e-12)


def test_gaussian_units_look_gaussian_and_others_do_not():
    gaussian, binary = normal(5000, 4), np.sign(normal(5000, 4))
    assert ks_non_gaussianity(gaussian) < 0.03
    assert ks_non_gaussianity(binary) > 0.3
    assert excess_kurtosis(gaussian) < 0.2
    np.testing.assert_allclose(excess_kurtosis(binary), 2.0, rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sorting_through_integers_sorts(x64, dtype):
    z = normal(65, 5).astype(dtype)
    z[:8] = np.array([0.0, -0.0, 1e-40, -1e-40, np.inf, -np.inf, 3.0, -3.0], dtype)[:, None]
    np.testing.assert_array_equal(sorted_columns(jnp.asarray(z)), np.sort(z, axis=0))


# --- Degenerate input, dtypes, transformations ----------------------------------------------

DEGENERATE = {
    "zero": np.zeros((6, 4)),
    "constant": np.full((6, 4), 0.3),
    "large_constant": np.full((6, 4), 1e6 / 3),
    "constant_units": np.tile(np.array([0.0, 1.0, -2.0, 1e4 / 3]), (6, 1)),
    "single_unit": normal(6, 1),
    "single_sample": normal(1, 4),
    "one_number": np.array([[2.0]]),
    "one_live_unit": normal(6, 4) * np.array([0, 0, 1, 0]),
    "tiny": normal(6, 4) * 1e-30,
    "huge": normal(6, 4) * 1e30,
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_input_gives_finite_values(name):
    h = DEGENERATE[name].astype(np.float32)
    for grad in (np.zeros_like(h), h):
        for metric, value in all_metrics(h, grad).items():
            assert np.isfinite(value), metric
            assert value.dtype == jnp.float32, metric


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zero", dict.fromkeys(RANKS, 0) | {"dead_fraction": 1, "dormant_fraction": 1, "duplicate_fraction": 0}),
        ("zero", {"cloning_r2": 1, "saturated_fraction": 1, "ks_non_gaussianity": 1, "excess_kurtosis": 10}),
        ("constant", {"effective_rank": 1, "stable_rank": 1, "numerical_rank": 1, "duplicate_fraction": 3 / 4}),
        ("constant", {"renyi2_rank": 0, "effective_rank_covariance": 0, "dead_fraction": 0}),
        ("large_constant", {"renyi2_rank": 0, "ks_non_gaussianity": 1, "excess_kurtosis": 10}),
        ("constant_units", {"effective_rank_covariance": 0, "dead_fraction": 1 / 4, "duplicate_fraction": 1 / 4}),
        ("single_unit", dict.fromkeys(RANKS, 1) | {"duplicate_fraction": 0, "cloning_r2": 1}),
        ("single_sample", {"effective_rank": 1, "renyi2_rank": 0, "ks_non_gaussianity": 1}),
    ],
)
def test_degenerate_values_are_the_documented_ones(name, expected):
    h = DEGENERATE[name].astype(np.float32)
    values = all_metrics(h, np.zeros_like(h))
    for metric, value in expected.items():
        np.testing.assert_allclose(values[metric], value, rtol=1e-5, err_msg=metric)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_input_gives_nan(bad):
    h = normal(6, 4).astype(np.float32)
    h[2, 1] = bad
    for metric, value in all_metrics(h, np.ones_like(h)).items():
        assert np.isnan(value), metric
    assert np.isnan(metrics.saturated_fraction(np.ones_like(h), h))


def test_vmap_equals_a_loop():
    h = normal(3, 20, 6).astype(np.float32)
    together = jax.jit(jax.vmap(all_metrics))(h, 1e-4 * h)
    for lane in range(3):
        for name, value in all_metrics(h[lane], 1e-4 * h[lane]).items():
            np.testing.assert_allclose(together[name][lane], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(("given", "returned"), [("bfloat16", "float32"), ("float32", "float32"), ("float64",) * 2])
def test_precision_is_at_least_single(x64, given, returned):
    h = jax.ShapeDtypeStruct((20, 6), given)
    for name, value in jax.eval_shape(all_metrics, h, h).items():
        assert value.dtype == returned, name


# --- Bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4), (4, 0)])
def test_wrong_shape_is_refused(unchecked, name, shape):
    with pytest.raises(ValueError, match=r"h has shape .*must be \(samples, units\)"):
        measure(name, jnp.ones(shape))


@pytest.mark.parametrize(
    "factor", [np.int64(2), np.uint8(2), jnp.int32(2), np.array(2)], ids=lambda n: type(n).__name__
)
def test_every_kind_of_integer_is_a_factor(unchecked, factor):
    assert metrics.cloning_r2(np.repeat(normal(5, 2), 2, axis=1), factor) == 1


@pytest.mark.parametrize("factor", [0, -2, 3, 2.0, True, "2", None, np.float32(2), np.True_, [2], jnp.float32(2)])
def test_wrong_factor_is_refused(unchecked, factor):
    with pytest.raises(ValueError, match=r"factor=.*must be a positive integer that divides .* 4"):
        metrics.cloning_r2(jnp.ones((5, 4)), factor)


def test_other_bad_input_is_refused(unchecked):
    h = jnp.ones((5, 4))
    with pytest.raises(ValueError, match=r"spectrum='gram': must be one of 'singular', 'covariance'"):
        metrics.effective_rank(h, spectrum="gram")
    with pytest.raises(ValueError, match=r"clusters has 3 entries: must name one cluster for each of 4 units"):
        metrics.partition_r2(h, (0, 0, 1))
    with pytest.raises(ValueError, match=r"clusters has 4 x 1 entries: must name one cluster for each of 4 units"):
        metrics.partition_r2(h, [[0], [0], [1], [1]])
    for delta in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"delta={delta}: must be in \[0, 1\)"):
            metrics.srank(h, delta)
    with pytest.raises(ValueError, match="h has dtype complex64: must be real"):
        metrics.effective_rank(h + 1j)
    with pytest.raises(ValueError, match=r"grad has shape \(5, 3\): must be that of h, \(5, 4\)"):
        metrics.saturated_fraction(h, h[:, :3])
