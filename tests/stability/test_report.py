"""The rule that turns numbers into signs: planted spectra in, verdicts out."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lopjax.stability import Stability
from lopjax.stability.verdicts import SignCounts, count_signs, counted_report, verdict_of, witnessed_report
from lopjax.tolerance import Threshold, default_zero_level, rounding_tolerance

TOLERANCE, RESIDUAL, LEVEL = 1e-6, 3e-6, 1.4e-5  # hence the bound 1.3e-5
# What each planted eigenvalue must count as: (plus, minus, zero, undecided).
PLANTED = {
    1.301e-5: (1, 0, 0, 0),  # beyond 10 tau + residual
    -1.301e-5: (0, 1, 0, 0),
    2.0: (1, 0, 0, 0),
    -7.0: (0, 1, 0, 0),
    0.0: (0, 0, 1, 0),
    TOLERANCE: (0, 0, 1, 0),  # with its bound just at the level
    -0.4e-6: (0, 0, 1, 0),
    1.29e-5: (0, 0, 0, 1),
    -1.1e-6: (0, 0, 0, 1),
    float("nan"): (0, 0, 0, 1),
    float("inf"): (1, 0, 0, 0),
}


def verdicts_that_agree(values):
    """Definition 4 of the paper read off the exact signs; undecided ones may turn out to be anything."""
    unknown = any(PLANTED[value][3] for value in values)
    low, high = (any(PLANTED[value][side] for value in values) for side in (1, 0))
    flat = any(PLANTED[value][2] for value in values)
    if low and high:
        return Stability.SADDLE
    if unknown or not values:
        return Stability.UNDECIDED
    return {
        (False, False, True): Stability.NEUTRAL,
        (False, True, False): Stability.STABLE,
        (False, True, True): Stability.SEMI_STABLE,
        (True, False, False): Stability.UNSTABLE,
        (True, False, True): Stability.SEMI_UNSTABLE,
    }[low, high, flat]


@given(st.lists(st.sampled_from(list(PLANTED)), max_size=12))
def test_counts_and_verdict_of_a_planted_spectrum(values):
    counts = count_signs(np.array(values), TOLERANCE, RESIDUAL, LEVEL)
    assert tuple(counts) == tuple(np.sum([PLANTED[value] for value in values], axis=0) if values else (0, 0, 0, 0))
    assert sum(counts) == len(values)
    assert verdict_of(counts) is verdicts_that_agree(values)


@given(st.lists(st.sampled_from(list(PLANTED)), min_size=1, max_size=8), st.sampled_from([1.0, -1.0, 0.0]))
def test_no_verdict_but_undecided_survives_an_eigenvalue_that_contradicts_it(values, added):
    """Certainty is monotone: more eigenvalues can turn a definite verdict into a weaker one, never a saddle back."""
    before = verdict_of(count_signs(values, TOLERANCE, RESIDUAL, LEVEL))
    after = verdict_of(count_signs([*values, added], TOLERANCE, RESIDUAL, LEVEL))
    if before is Stability.SADDLE:
        assert after is Stability.SADDLE
    if after in (Stability.STABLE, Stability.UNSTABLE):
        assert before is after
    if before is Stability.UNDECIDED:
        assert after in (Stability.UNDECIDED, Stability.SADDLE)


def test_nothing_is_decided_about_an_empty_spectrum():
    assert verdict_of(count_signs([], TOLERANCE)) is Stability.UNDECIDED


@given(st.lists(st.sampled_from(list(PLANTED)), max_size=6), st.integers(0, 4))
def test_counts_of_repeated_and_joined_spectra(values, multiplicity):
    counts = count_signs(values, TOLERANCE, RESIDUAL, LEVEL)
    assert counts.times(multiplicity) == count_signs(values * multiplicity, TOLERANCE, RESIDUAL, LEVEL)
    assert counts.plus_counts(SignCounts(1, 2, 3, 4)) == tuple(np.add(counts, (1, 2, 3, 4)))


def test_what_lies_below_rounding_is_undecided_unless_a_level_says_otherwise():
    """An upper bound of rounding makes nothing zero: the level must exceed the bound."""
    for value in (0.0, 1e-9, TOLERANCE):
        assert count_signs([value], TOLERANCE) == (0, 0, 0, 1)
        assert count_signs([value], TOLERANCE, zero_below=9.9e-6) == (0, 0, 0, 1)
        assert count_signs([value], TOLERANCE, zero_below=1.2e-5) == (0, 0, 1, 0)
    assert Threshold(TOLERANCE).bound == pytest.approx(1e-5)
    # A sign that is certain outranks a level that would swallow it.
    assert count_signs([1.1e-5], TOLERANCE, zero_below=1.0) == (1, 0, 0, 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_no_sixteen_bits_call_anything_zero(dtype):
    for terms in (1, 100):
        tolerance = float(rounding_tolerance(dtype, terms, 1.0))
        assert count_signs([0.0], tolerance, zero_below=default_zero_level(dtype)) == (0, 0, 0, 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_tolerance_follows_type_terms_and_scale(dtype):
    epsilon = {jnp.bfloat16: 2.0**-7, jnp.float32: 2.0**-23, jnp.float64: 2.0**-52}[dtype]
    np.testing.assert_allclose(
        rounding_tolerance(dtype, 25, np.array([0.0, 2.0])), [0.0, 64 * epsilon * 5 * 2], rtol=1e-15
    )


def test_rounding_of_a_real_sum_stays_within_the_tolerance():
    """float32 sums that cancel to zero exactly come back within tau of it, and not within a thousandth."""
    rng = np.random.default_rng(0)
    errors = []
    for size in (10, 1000, 30_000):
        terms = rng.normal(size=size).astype(np.float32)
        terms = rng.permutation(np.concatenate([terms, -terms]))
        tolerance = rounding_tolerance(jnp.float32, len(terms), np.abs(terms).sum())
        running = np.cumsum(terms, dtype=np.float32)[-1]
        assert abs(running) <= tolerance
        errors.append(abs(running) / (float(np.finfo(np.float32).eps) * np.abs(terms).sum()))
    assert max(errors) > 1e-3  # the sums do round


def report_of(counts):
    return counted_report(
        counts, (-1.0, 2.0), tolerance=1e-9, residual=0.0, structural=1, method="dense", space="leaf", note="why"
    )


def test_a_counted_report_is_exact_only_when_nothing_is_undecided():
    report = report_of(SignCounts(2, 1, 4))
    assert (report.n_plus, report.n_minus, report.n_zero, report.n_undecided) == (2, 1, 4, 0)
    assert report.exact
    assert report_of(SignCounts(2, 1, 4, 1)).n_undecided == 1
    assert report.verdict is Stability.SADDLE
    assert (report.min_eigenvalue, report.max_eigenvalue, report.note) == (-1.0, 2.0, "why")
    assert not report_of(SignCounts(2, 1, 4, 1)).exact
    assert report_of(SignCounts(2, 0, 4, 1)).verdict is Stability.UNDECIDED


@pytest.mark.parametrize(
    ("extremes", "is_zero", "verdict", "word"),
    [
        ((-1.0, 1.0), False, Stability.SADDLE, ""),
        ((-1.1e-5, 1.1e-5), False, Stability.SADDLE, ""),
        ((-0.9e-5, 1.0), False, Stability.UNDECIDED, "not unstable"),
        ((-1.0, 0.9e-5), False, Stability.UNDECIDED, "not stable"),
        ((-0.9e-5, 0.9e-5), False, Stability.UNDECIDED, "no curvature"),
        ((0.0, 0.0), True, Stability.NEUTRAL, "exactly"),
        ((0.0, 0.0), "below rounding", Stability.UNDECIDED, "no curvature"),
        ((0.0, 0.0), False, Stability.UNDECIDED, "no curvature"),
        ((float("nan"), float("nan")), False, Stability.UNDECIDED, "no curvature"),
    ],
)
def test_witnesses_prove_a_saddle_and_never_a_count(extremes, is_zero, verdict, word):
    report = witnessed_report(
        extremes,
        tolerance=1e-6,
        residual=1e-3,
        method="lanczos",
        space="leaf",
        is_zero=bool(is_zero),
        zero_level=1e-6 if is_zero == "below rounding" else 1e-3,
        scale=1.0,
    )
    assert report.verdict is verdict
    assert word in report.note
    assert (report.n_plus, report.n_minus, report.n_zero, report.n_undecided, report.structural) == (-1,) * 5
    assert not report.exact


def test_every_verdict_is_a_sentence_of_its_own():
    sentences = [verdict.value for verdict in Stability]
    assert len(set(sentences)) == len(sentences) == 7
    assert all(
        sentence.startswith(verdict.name.lower().replace("_", "-"))
        for verdict, sentence in zip(Stability, sentences, strict=True)
    )
