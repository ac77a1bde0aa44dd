"""Eigenpairs, per-block spectra and densities where Lanczos breaks down, against numpy's dense eigenvalues."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from matfree import decomp, eig
from oracles import dense

from lopjax.curvature import (
    block_eigenvalues,
    extreme_eigenvalues,
    hvp,
    restrict,
    spectral_density,
)

DIM = 24
SPECTRA = {
    "generic": np.linspace(-1.0, 2.0, DIM),
    "zero": np.zeros(DIM),
    "identity": np.ones(DIM),
    "negative multiple of the identity": np.full(DIM, -3.7),
    "rank one": np.r_[np.zeros(DIM - 1), 5.0],
    "two values": np.r_[-np.ones(DIM // 2), 2 * np.ones(DIM // 2)],
    "clustered": np.r_[1 + 1e-9 * np.arange(DIM // 2), -1 + 1e-9 * np.arange(DIM // 2)],
    "outlier over a weak bulk": np.r_[1e-4 * np.linspace(-1, 1, DIM - 1), 1.0],
    "ill-conditioned": np.logspace(-12, 0, DIM),
    "squares underflow in float32": 1e-25 * np.linspace(-1.0, 2.0, DIM),
    "squares overflow in float32": 1e25 * np.linspace(-1.0, 2.0, DIM),
}
DTYPES = {np.float32: 3e-6, np.float64: 1e-13}


def matrices(dtype):
    return np.stack(
        [dense.random_symmetric(spectrum, seed).astype(dtype) for seed, spectrum in enumerate(SPECTRA.values())]
    )


@jax.jit
def block_spectra(stack, start, sizes):
    """One compiled program for every test on blocks: 11 blocks of at most 24 dimensions."""
    return block_eigenvalues(
        lambda v: jnp.einsum("bij,bj->bi", stack, v),
        len(SPECTRA),
        DIM,
        DIM,
        jax.random.key(0),
        start=start,
        block_dimensions=sizes,
    )


@jax.jit
def extreme_pairs(matrix, basis):
    """One compiled program for every test on one operator, restricted to the span of the columns of `basis`."""
    return extreme_eigenvalues(
        lambda v: matrix @ v, matrix[0], DIM, jax.random.key(1), project=lambda v: basis @ (basis.T @ v)
    )


def random_starts(dtype):
    return np.random.default_rng(0).normal(size=(len(SPECTRA), DIM)).astype(dtype)


def all_of(dtype):
    return np.eye(DIM, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_ritz_value_of_every_block_is_an_eigenvalue_and_the_reverse(x64, dtype):
    stack = matrices(dtype)
    result = block_spectra(stack, random_starts(dtype), np.full(len(SPECTRA), DIM))
    for index, name in enumerate(SPECTRA):
        exact = np.linalg.eigvalsh(stack[index].astype(np.float64))
        size = max(abs(exact).max(), 1e-300)
        ritz = np.asarray(result.ritz_values[index], np.float64)[np.asarray(result.valid[index])]
        distances = abs(ritz[:, None] - exact[None, :])
        assert len(ritz) == result.num_steps[index] >= 1, name
        assert distances.min(1).max() <= DTYPES[dtype] * size, name  # nothing invented
        assert distances.min(0).max() <= DTYPES[dtype] * size, name  # nothing missed, multiplicities apart
        assert np.allclose(result.eigenvalues[index], exact[[0, -1]], rtol=0, atol=DTYPES[dtype] * size), name
        assert (result.residuals[index] <= DTYPES[dtype] * size).all(), name
        assert result.converged[index].all(), name
        # What does not exist is not a number, and so no result.
        assert (np.isfinite(result.ritz_values[index]) == result.valid[index]).all(), name
    steps = dict(zip(SPECTRA, result.num_steps.tolist()))
    assert steps["zero"] == steps["identity"] == steps["negative multiple of the identity"] == 1
    assert steps["rank one"] == steps["two values"] == 2
    assert steps["generic"] == DIM


def test_without_the_cut_break_downs_are_nan_or_junk(x64):
    """Control: what matfree alone returns for the same spectra (69, where every eigenvalue is 1)."""
    start = jax.random.normal(jax.random.key(0), (DIM,))
    eigh = eig.eigh_partial(decomp.tridiag_sym(DIM))
    ritz_values = jax.jit(lambda matrix: eigh(lambda v: matrix @ v, start)[0])
    for name in ("zero", "identity", "negative multiple of the identity"):
        matrix = matrices(np.float64)[list(SPECTRA).index(name)]
        distances = abs(np.asarray(ritz_values(matrix))[:, None] - np.linalg.eigvalsh(matrix)[None, :])
        assert not (distances.min(1).max() < 1.0), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_pairs_of_one_operator(x64, dtype):
    for name, matrix in zip(SPECTRA, matrices(dtype)):
        pairs = extreme_pairs(matrix, all_of(dtype))
        exact = np.linalg.eigvalsh(matrix.astype(np.float64))
        size = max(abs(exact).max(), 1e-300)
        assert np.allclose(pairs.eigenvalues, exact[[0, -1]], rtol=0, atol=DTYPES[dtype] * size), name
        assert pairs.converged.all(), name
        vectors = np.asarray(pairs.eigenvectors, np.float64)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5), name
        defect = np.linalg.norm(
            matrix.astype(np.float64) @ vectors.T - vectors.T * np.asarray(pairs.eigenvalues), axis=0
        )
        assert (defect <= DTYPES[dtype] * size).all(), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_restriction_never_reports_the_zeros_outside_the_subspace(x64, dtype):
    tolerance = 10 * DTYPES[dtype]
    for seed, subspace in enumerate([1, 2, 5, 8, 16, 23]):
        columns = dense.random_orthonormal(DIM, subspace, seed).astype(dtype)
        basis = np.zeros((DIM, DIM), dtype)
        basis[:, :subspace] = columns
        for name in ("negative multiple of the identity", "generic", "two values"):
            matrix = matrices(dtype)[list(SPECTRA).index(name)] + 4 * np.eye(DIM, dtype=dtype)
            exact = np.linalg.eigvalsh(columns.T.astype(np.float64) @ matrix @ columns)
            pairs = extreme_pairs(matrix, basis)
            assert exact[0] > 0.2
            assert np.allclose(pairs.eigenvalues, exact[[0, -1]], rtol=0, atol=tolerance), name
            assert pairs.converged.all()
            assert pairs.num_steps <= subspace
            vectors = np.asarray(pairs.eigenvectors)
            assert np.max(abs(vectors - vectors @ basis @ basis.T)) < tolerance
            # Control: the compressed operator on the whole space has the eigenvalue 0 as well.
            naive = extreme_pairs(basis @ basis.T @ matrix @ basis @ basis.T, all_of(dtype))
            assert abs(naive.eigenvalues[0]) < tolerance


def test_a_known_dimension_bounds_the_steps_and_restrict_composes(x64):
    basis = dense.random_orthonormal(DIM, 16, seed=4)
    matrix = matrices(np.float64)[0]

    def project(v):
        return basis @ (basis.T @ v)

    restricted = restrict(lambda v: matrix @ v, project)
    known = extreme_eigenvalues(restricted, jnp.zeros(DIM), DIM, jax.random.key(0), project=project, dimension=16)
    assert known.num_steps == 16
    exact = np.linalg.eigvalsh(basis.T @ matrix @ basis)
    assert np.allclose(known.eigenvalues, exact[[0, -1]], atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_start_inside_an_invariant_subspace_stays_there(x64, dtype):
    """Defective starts: the block is diag(1..4) beside diag(-9, 9), and a start may miss either part or both."""
    block = np.zeros((DIM, DIM), dtype)
    block[:6, :6] = np.diag([1.0, 2.0, 3.0, 4.0, -9.0, 9.0])
    stack = np.stack([block] * len(SPECTRA))
    start = random_starts(dtype)
    start[:3] = 0
    start[0, :4] = 1
    start[2, 5] = 1e-30  # its square underflows in float32
    result = block_spectra(stack, start, np.full(len(SPECTRA), 6))
    tolerance = 10 * DTYPES[dtype]
    assert result.num_steps.tolist() == [4, 0, 1] + [6] * (len(SPECTRA) - 3)
    # A generic start sees all of the block.
    expected = [[1, 4], [np.nan, np.nan], [9, 9]] + [[-9, 9]] * (len(SPECTRA) - 3)
    assert np.allclose(result.eigenvalues, expected, atol=tolerance, equal_nan=True)
    # No start, no claim.
    assert result.converged[:, 0].tolist() == [True, False] + [True] * (len(SPECTRA) - 2)
    assert np.isinf(result.residuals[1]).all()


def test_blocks_of_unequal_size_share_a_stack(x64):
    sizes = [24, 7, 1, 0, 2, 3, 4, 23, 12, 5, 6]
    stack = np.stack([dense.random_symmetric(np.linspace(1.0, 2.0, DIM), seed) for seed in range(len(sizes))])
    result = block_spectra(stack, random_starts(np.float64), np.array(sizes))
    assert result.num_steps.tolist() == sizes
    for index, size in enumerate(sizes):
        exact = np.linalg.eigvalsh(stack[index, :size, :size])
        assert np.allclose(result.ritz_values[index][:size], exact, atol=1e-13)
        outside = np.asarray(result.eigenvectors[index, :, size:])
        assert np.all(outside == 0 if size else np.isnan(outside))


def test_one_operator_product_a_step_serves_all_blocks(x64):
    stack, calls = matrices(np.float64), []

    def counted(vectors):
        jax.debug.callback(lambda shape: calls.append(shape), vectors.shape)
        return jnp.einsum("bij,bj->bi", stack, vectors)

    run = jax.jit(lambda key: block_eigenvalues(counted, len(stack), DIM, 10, key, dtype=jnp.float64))
    jax.block_until_ready(run(jax.random.key(0)))
    jax.effects_barrier()
    assert len(calls) == 10 + 3  # steps, the scale, two confirmations: not multiplied by the 11 blocks


def test_blocks_match_the_dense_hessian_of_independent_networks(x64):
    """A loss that is a sum over independent networks has a block-diagonal Hessian; one HVP serves all blocks."""
    net = dense.problem("tanh", "mse", sizes=(3, 2, 2))
    flat, unravel = ravel_pytree(net.params)
    params = jnp.stack([flat, 0.5 * flat, flat[::-1]])
    one = jax.jit(lambda own: net.loss(unravel(own)))

    def loss(params):
        return jnp.sum(jax.vmap(one)(params))

    result = jax.jit(
        lambda key: block_eigenvalues(
            lambda v: hvp(loss, params, v), *params.shape, params.shape[1], key, dtype=params.dtype
        )
    )(jax.random.key(0))
    for index, own in enumerate(params):
        exact = np.linalg.eigvalsh(dense.hessian(one, own))
        ritz = np.asarray(result.ritz_values[index])[np.asarray(result.valid[index])]
        distances = abs(ritz[:, None] - exact[None, :])
        assert max(distances.min(0).max(), distances.min(1).max()) < 1e-12


def test_residuals_bound_the_error_before_convergence(x64):
    matrix = dense.random_symmetric(np.random.default_rng(0).normal(size=200))
    exact = np.linalg.eigvalsh(matrix)

    @partial(jax.jit, static_argnums=0)
    def find(num_steps):
        return extreme_eigenvalues(lambda v: matrix @ v, jnp.zeros(200), num_steps, jax.random.key(0), num_pairs=3)

    few, many = find(8), find(100)
    assert not few.converged.any()
    for value, residual in zip(few.eigenvalues, few.residuals):
        assert residual > 1e-4
        assert np.min(abs(exact - value)) <= residual
    assert many.converged.all()
    assert np.allclose(many.eigenvalues, exact[[0, 1, 2, -3, -2, -1]], atol=1e-12)


def test_more_pairs_than_ritz_values_are_marked_as_missing(x64):
    pairs = extreme_eigenvalues(lambda v: 2.0 * v, jnp.zeros(5), 5, jax.random.key(0), num_pairs=2)
    assert pairs.eigenvalues.tolist() == pytest.approx([2.0, np.nan, np.nan, 2.0], nan_ok=True)
    assert pairs.converged.tolist() == [True, False, False, True]
    assert np.isinf(pairs.residuals[1:3]).all()


def test_an_unsymmetric_or_broken_operator_is_never_converged(x64):
    matrix = np.random.default_rng(0).normal(size=(DIM, DIM))
    assert not extreme_pairs(matrix, all_of(np.float64)).converged.any()
    broken = extreme_pairs(np.full((DIM, DIM), np.nan), all_of(np.float64))
    assert broken.num_steps == 0
    assert not broken.converged.any()
    assert np.isinf(broken.residuals).all()


@pytest.mark.parametrize("leftover", [0.0, 1e-9])
def test_a_projector_onto_nothing_gives_no_steps(x64, leftover):
    """Exactly nothing, or a projector that leaves rounding noise (its square is 1e-18)."""
    nothing = extreme_pairs(np.eye(DIM), leftover * all_of(np.float64))
    assert nothing.num_steps == 0
    assert not nothing.converged.any()


def test_half_precision_trees_are_iterated_in_float32():
    diagonal = {"a": jnp.array([-1.0, 0.5, 3.0], jnp.bfloat16), "b": jnp.ones((2, 2), jnp.bfloat16)}
    pairs = jax.jit(
        lambda key: extreme_eigenvalues(lambda v: jax.tree.map(jnp.multiply, diagonal, v), diagonal, 7, key)
    )(jax.random.key(0))
    assert np.allclose(pairs.eigenvalues, [-1.0, 3.0], atol=0.02)
    assert pairs.eigenvectors["a"].dtype == jnp.bfloat16
    assert pairs.eigenvectors["b"].shape == (2, 2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: extreme_eigenvalues(lambda v: v, jnp.zeros(3), 0, key), "num_steps=0: must be a positive"),
        (lambda key: extreme_eigenvalues(lambda v: v, jnp.zeros(3), 3, key, dimension=4), "dimension=4.*and 3"),
        (lambda key: extreme_eigenvalues(lambda v: v, jnp.zeros(3), 3, key, dimension=0), "dimension=0.*no eigen"),
        (lambda key: extreme_eigenvalues(lambda v: v, jnp.zeros(3), 3, key, num_pairs=0), "num_pairs=0"),
        (lambda key: extreme_eigenvalues(lambda v: v, jnp.arange(3), 3, key), "example has dtype int32"),
        (lambda key: extreme_eigenvalues(lambda v: [v], jnp.zeros(3), 3, key), "matvec returned the tree"),
        (
            lambda key: extreme_eigenvalues(lambda v: v, jnp.zeros(3), 3, key, project=lambda v: (v, v)),
            "project returned the tree",
        ),
        (lambda key: spectral_density(lambda v: v, jnp.zeros(3), 3, 0, key), "num_probes=0"),
        (lambda key: block_eigenvalues(lambda v: v, 0, 3, 3, key), "num_blocks=0"),
        (lambda key: block_eigenvalues(lambda v: v[0], 2, 3, 3, key), r"matvec returned shape \(3,\)"),
        (
            lambda key: block_eigenvalues(lambda v: v, 2, 3, 3, key, start=jnp.ones((3, 3))),
            r"start has shape \(3, 3\)",
        ),
    ],
)  # fmt: skip
def test_bad_requests_say_what_to_do(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call(jax.random.key(0))
