"""Spectrum and inertia of [[A, B], [B', 0]] against numpy, where rounding cannot decide and where it can."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.dense import random_orthonormal, random_symmetric

from lopjax.stability.blocks.spectra import BlockError, structural_zeros, unit_eigenvalues
from lopjax.stability.blocks.spectra import block_inertia as inertia_within

TOLERANCE = 1e-12


LEVEL = 1e-8


def block_inertia(curvature, coupling, tolerance, level=LEVEL):
    """Inertia with the same tau for both parts and an absolute level for zeros."""
    error = BlockError(tolerance if curvature is not None else 0.0, tolerance)
    structural = structural_zeros(*coupling.shape, curvature is not None)
    return inertia_within(curvature, coupling, error, level, structural)


def coupling_with(singular, p, q, seed=0):
    """B, `(p, q)`, with the given singular values and random singular vectors."""
    rank = len(singular)
    return random_orthonormal(p, rank, seed) * np.asarray(singular) @ random_orthonormal(q, rank, seed + 1).T


def dense(curvature, coupling):
    p, q = coupling.shape
    block = np.zeros((p + q, p + q))
    block[:p, :p] = 0 if curvature is None else curvature
    block[:p, p:], block[p:, :p] = coupling, coupling.T
    return block


def dense_inertia(curvature, coupling, threshold):
    values = np.linalg.eigvalsh(dense(curvature, coupling))
    plus, minus = int(np.sum(values > threshold)), int(np.sum(values < -threshold))
    return plus, minus, len(values) - plus - minus, 0


@st.composite
def blocks(draw):
    """A and B with integer spectra: repeated values, zeros and rank deficiency are common."""
    p, q = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    singular = draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=min(p, q), max_size=min(p, q)))
    seed = draw(st.integers(0, 10**6))
    coupling = coupling_with(singular, p, q, seed)
    if draw(st.booleans()):
        return None, coupling
    spectrum = draw(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 1.0, 1.0]), min_size=p, max_size=p))
    return random_symmetric(np.array(spectrum), seed + 2), coupling


@settings(deadline=None, max_examples=300)
@given(blocks())
def test_inertia_and_eigenvalues_against_a_dense_decomposition(block):
    curvature, coupling = block
    values = np.linalg.eigvalsh(dense(curvature, coupling))
    np.testing.assert_allclose(unit_eigenvalues(curvature, coupling), values, atol=1e-13)
    counts = block_inertia(curvature, coupling, TOLERANCE)
    # Numbers far from the thresholds are rare to miss; where one comes near, only lower bounds can be compared.
    plus, minus, zero, _ = dense_inertia(curvature, coupling, 1e-10)
    if counts.undecided == 0:
        assert (counts.plus, counts.minus, counts.zero) == (plus, minus, zero)
    assert sum(counts) == len(values)
    assert counts.plus <= plus
    assert counts.minus <= minus
    assert counts.zero <= zero
    assert structural_zeros(*coupling.shape, curvature is not None) <= zero


def test_generic_blocks_are_decided():
    """Control for the test above: random integer spectra hardly ever leave an eigenvalue undecided."""
    undecided = 0
    for seed in range(50):
        curvature = random_symmetric(np.array([-2.0, -1.0, 0.0, 1.0, 1.0]), seed)
        undecided += block_inertia(curvature, coupling_with([3.0, 1.0, 0.0], 5, 3, seed + 1), TOLERANCE).undecided
    assert undecided == 0


def test_inertia_sees_a_singular_value_whose_square_drowns():
    """A = 1, s = 1e-9: M has the eigenvalue -s² = -1e-18, which no dense decomposition can sign."""
    curvature, coupling = np.array([[1.0]]), np.array([[1e-9]])
    assert block_inertia(curvature, coupling, 1e-14, level=0.0) == (1, 1, 0, 0)
    assert dense_inertia(curvature, coupling, 1e-14) == (1, 0, 1, 0)


@pytest.mark.parametrize("has_curvature", [False, True])
@pytest.mark.parametrize(("p", "q"), [(4, 2), (2, 4)])
def test_singular_values_below_the_bound_are_undecided(has_curvature, p, q):
    """10 tau = 1e-5: from there on every sign is known; below, undecided, or zero if the level allows for the bound."""
    tolerance = 1e-6
    curvature = random_symmetric(np.full(p, 1.0), 3) if has_curvature else None
    for small, sure in [(0.5e-6, False), (2e-6, False), (9e-6, False), (11e-6, True)]:
        counts = block_inertia(curvature, coupling_with([1.0, small], p, q), tolerance)
        assert (counts.undecided == 0) is sure, (small, counts)
        assert sum(counts) == p + q
    if not has_curvature:
        assert block_inertia(None, coupling_with([1.0, 5e-6], p, q), tolerance) == (
            1,
            1,
            abs(p - q),
            p + q - 2 - abs(p - q),
        )
        at_level = block_inertia(None, coupling_with([1.0, 5e-6], p, q), tolerance, level=2e-5)
        assert at_level == (1, 1, p + q - 2, 0)


def test_curvature_below_the_bound_is_undecided_or_zero_at_a_level():
    spectrum = np.array([2.0, 5e-6, 0.5e-6, -1.0])
    assert block_inertia(random_symmetric(spectrum), np.zeros((4, 2)), 1e-6) == (1, 1, 0, 4)
    assert block_inertia(random_symmetric(spectrum), np.zeros((4, 2)), 1e-6, level=2.2e-5) == (1, 1, 3, 1)
    assert block_inertia(random_symmetric(spectrum), np.zeros((4, 2)), 1e-6, level=3e-5) == (1, 1, 4, 0)


def test_a_weak_coupling_leaves_its_kernel_uncertain_and_eigenvalues_decide_what_they_can():
    """A kept singular value near the bound says nothing of A on its kernel; the eigenvalues of M still do."""
    tolerance, curvature = 1e-6, np.diag([0.0, 1.0, 0.05])
    weak = block_inertia(curvature, np.array([[1.1e-5], [0.0], [0.0]]), tolerance)
    strong = block_inertia(curvature, np.array([[1.0], [0.0], [0.0]]), tolerance)
    assert strong == (3, 1, 0, 0)
    assert (weak.plus, weak.minus) == (2, 1)
    assert weak.undecided == 1


@settings(deadline=None, max_examples=200)
@given(blocks(), st.sampled_from([1e-3, 1e-2]), st.integers(0, 10**6))
def test_certain_counts_survive_any_perturbation_within_the_tolerance(block, tolerance, seed):
    """What is counted as signed stays signed for every A and B as close as the tolerance says."""
    curvature, coupling = block
    counts = block_inertia(curvature, coupling, tolerance)
    rng = np.random.default_rng(seed)
    for _ in range(4):
        noise_b, noise_a = rng.normal(size=coupling.shape), rng.normal(size=(len(coupling),) * 2)
        other = coupling + 0.99 * tolerance * noise_b / np.linalg.norm(noise_b, 2)
        noise_a = noise_a + noise_a.T
        bent = None if curvature is None else curvature + 0.99 * tolerance * noise_a / np.linalg.norm(noise_a, 2)
        values = np.linalg.eigvalsh(dense(bent, other))
        assert counts.plus <= np.sum(values > -1e-13)
        assert counts.minus <= np.sum(values < 1e-13)
        assert counts.zero <= np.sum(np.abs(values) <= 1e-8 + 1e-13)


def test_a_saddle_is_certain_although_other_values_are_not():
    counts = block_inertia(None, coupling_with([1.0, 5e-6], 3, 2), 1e-6)
    assert counts.plus == counts.minus == 1


@pytest.mark.parametrize("curvature", [None, np.zeros((3, 3))])
def test_a_zero_block_is_all_zeros(curvature):
    assert block_inertia(curvature, np.zeros((3, 2)), 0.0) == (0, 0, 5, 0)
    assert not unit_eigenvalues(curvature, np.zeros((3, 2))).any()


def test_exact_zero_tolerance_signs_everything_that_is_not_zero():
    assert block_inertia(None, np.array([[1e-300]]), 0.0) == (1, 1, 0, 0)
