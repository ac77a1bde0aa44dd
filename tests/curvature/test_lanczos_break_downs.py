"""Eigenpairs, per-block spectra and densities where Lanczos breaks down, against numpy's dense eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matfree import decomp, eig

from lopjax.curvature import (
    block_eigenvalues,
    dense_hessian,
    extreme_eigenvalues,
    hvp,
    restrict,
    spectral_density,
)
from tests import oracles

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
        [oracles.random_symmetric(spectrum, seed).astype(dtype) for seed, spectrum in enumerate(SPECTRA.values())]
    )


@jax.jit
def all_block_spectra(stack, start_key):
    return block_eigenvalues(
        lambda v: jnp.einsum("bij,bj->bi", stack, v), len(stack), DIM, DIM, start_key, dtype=stack.dtype
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_ritz_value_of_every_block_is_an_eigenvalue_and_the_reverse(x64, dtype):
    stack = matrices(dtype)
    result = all_block_spectra(stack, jax.random.key(0))
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
        assert np.all(np.isfinite(np.asarray(result.ritz_values[index]))), name
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
    find = jax.jit(lambda matrix, key: extreme_eigenvalues(lambda v: matrix @ v, matrix[0], DIM, key))
    for name, matrix in zip(SPECTRA, matrices(dtype)):
        pairs = find(matrix, jax.random.key(1))
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
@pytest.mark.parametrize("know_dimension", [False, True])
def test_restriction_never_reports_the_zeros_outside_the_subspace(x64, dtype, know_dimension):
    subspace, tolerance = 16, 10 * DTYPES[dtype]

    @jax.jit
    def both(matrix, basis):
        def project(v):
            return basis @ (basis.T @ v)

        def operator(v):
            return matrix @ v

        example, key = jnp.zeros(DIM, dtype), jax.random.key(2)
        dimension = subspace if know_dimension else None
        inside = extreme_eigenvalues(operator, example, DIM, key, project=project, dimension=dimension)
        return inside, extreme_eigenvalues(restrict(operator, project), example, DIM, key)

    for seed in range(5):
        # Half of the subspace is left out in turn, by zero columns, so that the known dimension may be too large.
        basis = oracles.random_orthonormal(DIM, subspace, seed).astype(dtype)
        columns = subspace if seed % 2 else subspace // 2
        basis[:, columns:] = 0
        for name in ("negative multiple of the identity", "generic", "two values"):
            matrix = matrices(dtype)[list(SPECTRA).index(name)] + 4 * np.eye(DIM, dtype=dtype)
            exact = np.linalg.eigvalsh((basis.T.astype(np.float64) @ matrix @ basis)[:columns, :columns])
            inside, naive = both(matrix, basis)
            assert exact[0] > 0.2
            assert np.allclose(inside.eigenvalues, exact[[0, -1]], rtol=0, atol=tolerance), name
            assert inside.converged.all()
            assert inside.num_steps <= columns
            vectors = np.asarray(inside.eigenvectors)
            assert np.max(abs(vectors - vectors @ basis @ basis.T)) < tolerance
            # Control: the compressed operator on the whole space has the eigenvalue 0 as well.
            assert abs(naive.eigenvalues[0]) < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_start_inside_an_invariant_subspace_stays_there(x64, dtype):
    """Defective start: the block is diag(1..4) beside diag(-9, 9), and the start has no part in the latter."""
    diagonal = jnp.array([[1.0, 2.0, 3.0, 4.0, -9.0, 9.0]] * 3, dtype)
    start = jnp.array([[1.0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype)
    run = jax.jit(lambda start: block_eigenvalues(lambda v: diagonal * v, 3, 6, 6, jax.random.key(0), start=start))
    result = run(start)
    assert result.num_steps.tolist() == [4, 0, 1]
    tolerance = 10 * DTYPES[dtype]
    assert np.allclose(result.eigenvalues, [[1, 4], [0, 0], [9, 9]], atol=tolerance)
    assert result.converged.tolist() == [[True, True], [False, False], [True, True]]
    assert np.isinf(result.residuals[1]).all()  # no start, no claim
    # A generic start sees all of it.
    full = run(jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)), dtype))
    assert np.allclose(full.eigenvalues, [[-9, 9]] * 3, atol=tolerance)


def test_blocks_of_unequal_size_share_a_stack(x64):
    sizes = jnp.array([DIM, 7, 1, 0])
    stack = np.stack([oracles.random_symmetric(np.linspace(1.0, 2.0, DIM), seed) for seed in range(4)])
    result = block_eigenvalues(
        lambda v: jnp.einsum("bij,bj->bi", stack, v),
        4, DIM, DIM, jax.random.key(0), block_dimensions=sizes, dtype=jnp.float64,
    )  # fmt: skip
    assert result.num_steps.tolist() == sizes.tolist()
    for index, size in enumerate(sizes.tolist()):
        exact = np.linalg.eigvalsh(stack[index, :size, :size])
        ritz = result.ritz_values[index][result.valid[index]]
        assert np.allclose(ritz, exact, atol=1e-13)
        assert np.all(result.eigenvectors[index, :, size:] == 0)


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
    """A loss that is a sum over independent units has a block-diagonal Hessian; one HVP serves all blocks."""
    units = [oracles.problem("tanh", "mse", sizes=(3, 2, 2), seed=seed) for seed in range(3)]
    params = [unit.params for unit in units]
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    dim = flat.size // 3

    def loss(params):
        return sum(unit.loss(own) for unit, own in zip(units, params))

    result = jax.jit(
        lambda key: block_eigenvalues(
            lambda v: jax.flatten_util.ravel_pytree(hvp(loss, params, unravel(v.ravel())))[0].reshape(3, dim),
            3,
            dim,
            dim,
            key,
            dtype=jnp.float64,
        )
    )(jax.random.key(0))
    dense = np.asarray(dense_hessian(loss, params))
    for index in range(3):
        block = dense[index * dim : (index + 1) * dim, index * dim : (index + 1) * dim]
        exact = np.linalg.eigvalsh(block)
        ritz = np.asarray(result.ritz_values[index])[np.asarray(result.valid[index])]
        distances = abs(ritz[:, None] - exact[None, :])
        assert max(distances.min(0).max(), distances.min(1).max()) < 1e-10


def test_residuals_bound_the_error_before_convergence(x64):
    matrix = oracles.random_symmetric(np.random.default_rng(0).normal(size=200))
    exact = np.linalg.eigvalsh(matrix)
    few = extreme_eigenvalues(lambda v: matrix @ v, jnp.zeros(200), 8, jax.random.key(0), num_pairs=3)
    assert not few.converged.any()
    for value, residual in zip(few.eigenvalues, few.residuals):
        assert residual > 1e-4
        assert np.min(abs(exact - value)) <= residual
    many = extreme_eigenvalues(lambda v: matrix @ v, jnp.zeros(200), 100, jax.random.key(0), num_pairs=3)
    assert many.converged.all()
    assert np.allclose(many.eigenvalues, exact[[0, 1, 2, -3, -2, -1]], atol=1e-12)


def test_more_pairs_than_ritz_values_are_marked_as_missing(x64):
    pairs = extreme_eigenvalues(lambda v: 2.0 * v, jnp.zeros(5), 5, jax.random.key(0), num_pairs=2)
    assert pairs.eigenvalues.tolist() == pytest.approx([2.0, 0.0, 0.0, 2.0])
    assert pairs.converged.tolist() == [True, False, False, True]
    assert np.isinf(pairs.residuals[1:3]).all()


def test_an_unsymmetric_or_broken_operator_is_never_converged(x64):
    matrix = np.random.default_rng(0).normal(size=(12, 12))
    assert not extreme_eigenvalues(lambda v: matrix @ v, jnp.zeros(12), 12, jax.random.key(0)).converged.any()
    broken = extreme_eigenvalues(lambda v: v * jnp.nan, jnp.zeros(12), 12, jax.random.key(0))
    assert broken.num_steps == 0
    assert not broken.converged.any()
    assert np.isinf(broken.residuals).all()


def test_a_projector_onto_nothing_gives_no_steps(x64):
    nothing = extreme_eigenvalues(
        lambda v: v, jnp.zeros(6), 6, jax.random.key(0), project=lambda v: (v + 1.0) - 1.0 - v
    )
    assert nothing.num_steps == 0
    assert not nothing.converged.any()


def test_half_precision_trees_are_iterated_in_float32():
    diagonal = {"a": jnp.array([-1.0, 0.5, 3.0], jnp.bfloat16), "b": jnp.ones((2, 2), jnp.bfloat16)}
    pairs = extreme_eigenvalues(lambda v: jax.tree.map(jnp.multiply, diagonal, v), diagonal, 7, jax.random.key(0))
    assert np.allclose(pairs.eigenvalues, [-1.0, 3.0], atol=0.02)
    assert pairs.eigenvectors["a"].dtype == jnp.bfloat16
    assert pairs.eigenvectors["b"].shape == (2, 2, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda key: extreme_eigenvalues(lambda v: v, jnp.zeros(3), 0, key), "num_steps=0: must be a positive"),
        (lambda key: extreme_eigenvalues(lambda v: v, jnp.zeros(3), 3, key, dimension=4), "dimension=4.*between 1 and 3"),
        (lambda key: extreme_eigenvalues(lambda v: v, jnp.zeros(3), 3, key, dimension=0), "dimension=0.*no eigenvalues"),
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
