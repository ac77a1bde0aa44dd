"""Singular values and eigenvalues against numpy, batched in every way; and the program that used to hang."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax import linalg


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 5, 3), (2, 3, 4, 4)])
def test_singular_values_are_those_of_numpy(x64, shape):
    matrix = random(*shape)
    values = np.asarray(jax.jit(linalg.singular_values)(jnp.asarray(matrix)))
    np.testing.assert_allclose(values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-12)
    assert (np.diff(values, axis=-1) <= 0).all()


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 5)])
def test_the_svd_rebuilds_its_matrix_from_orthonormal_factors(x64, shape):
    matrix = random(*shape)
    left, values, right = map(np.asarray, linalg.svd(jnp.asarray(matrix)))
    np.testing.assert_allclose((left * values[..., None, :]) @ right, matrix, atol=1e-13)
    identity = np.broadcast_to(np.eye(3), (*shape[:-2], 3, 3))
    np.testing.assert_allclose(np.swapaxes(left, -1, -2) @ left, identity, atol=1e-13)
    np.testing.assert_allclose(right @ np.swapaxes(right, -1, -2), identity, atol=1e-13)


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 3)])
def test_eigenpairs_satisfy_their_equation(x64, shape):
    matrix = random(*shape)
    matrix = matrix + np.swapaxes(matrix, -1, -2)
    values, vectors = map(np.asarray, linalg.eigh(jnp.asarray(matrix)))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(matrix @ vectors, vectors * values[..., None, :], atol=1e-12)


def test_vmap_over_any_axis_and_twice_is_a_loop(x64):
    stack = random(2, 3, 5, 4)
    expected = np.linalg.svd(stack, compute_uv=False)
    twice = jax.jit(jax.vmap(jax.vmap(linalg.singular_values)))(jnp.asarray(stack))
    np.testing.assert_allclose(twice, expected, rtol=1e-12)
    moved = jax.vmap(linalg.singular_values, in_axes=2, out_axes=1)(jnp.asarray(np.moveaxis(stack[0], 0, 2)))
    np.testing.assert_allclose(moved, expected[0].T, rtol=1e-12)
    # A vmap over something else leaves the matrix unbatched.
    matrix = jnp.asarray(stack[0, 0])
    scaled = jax.vmap(lambda scale: scale * linalg.singular_values(matrix))(jnp.arange(1.0, 4.0))
    np.testing.assert_allclose(scaled, np.outer([1, 2, 3], expected[0, 0]), rtol=1e-12)
    left, values, right = jax.vmap(linalg.svd)(jnp.asarray(stack[0]))
    np.testing.assert_allclose((left * values[:, None, :]) @ right, stack[0], atol=1e-13)


def test_derivatives_are_finite_differences(x64):
    """Of a weighted sum of the singular values, batched and not; a wrong weight must not fit."""
    weights, stack, direction = jnp.array([1.0, -2.0, 0.5]), random(2, 4, 3), random(2, 4, 3)[::-1].copy()

    def total(stack):
        return jnp.sum(jax.vmap(linalg.singular_values)(stack) @ weights)

    gradient = np.asarray(jax.jit(jax.grad(total))(jnp.asarray(stack)))
    step = 1e-6
    spectra = [np.linalg.svd(stack + sign * step * direction, compute_uv=False) for sign in (1, -1)]
    rates = (spectra[0] - spectra[1]) / (2 * step)
    np.testing.assert_allclose(np.sum(gradient * direction), np.sum(rates @ np.asarray(weights)), rtol=1e-7)
    assert abs(np.sum(gradient * direction) - np.sum(rates)) > 1e-2
    tangent = jax.jvp(total, (jnp.asarray(stack),), (jnp.asarray(direction),))[1]
    np.testing.assert_allclose(tangent, np.sum(gradient * direction), rtol=1e-12)


def test_matrices_that_are_zero_or_deficient_have_zero_singular_values():
    np.testing.assert_array_equal(linalg.singular_values(jnp.zeros((2, 4, 3))), np.zeros((2, 3)))
    column = jnp.asarray(random(4, 1), jnp.float32)
    values = np.asarray(linalg.singular_values(column @ column.T))
    assert values[1:].max() < 1e-5 * values[0]


def test_not_a_number_stays_in_its_own_matrix():
    stack = random(3, 4, 3).astype(np.float32)
    stack[1, 0, 0] = np.nan
    values = np.asarray(jax.vmap(linalg.singular_values)(jnp.asarray(stack)))
    assert np.isnan(values[1]).all()
    np.testing.assert_allclose(values[[0, 2]], np.linalg.svd(stack[[0, 2]], compute_uv=False), rtol=1e-5)


def test_five_arrays_under_one_vmap_do_not_wait_for_each_other():
    """XLA's own batched call hangs here for ever; a process of its own, so that a hang fails instead of hanging."""
    program = textwrap.dedent("""
        import jax, jax.numpy as jnp, numpy as np
        from lopjax import linalg
        arrays = [np.random.default_rng(i).normal(size=(6, 200, 32)).astype(np.float32) for i in range(5)]
        spectra = jax.jit(jax.vmap(lambda arrays: [linalg.singular_values(a) for a in arrays]))
        for _ in range(3):
            jax.block_until_ready(spectra(arrays))
        worst = max(abs(s - np.linalg.svd(a, compute_uv=False)).max() for s, a in zip(spectra(arrays), arrays))
        assert worst < 1e-3, worst
        print("done")
    """)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert done.stdout.strip() == "done", done.stderr
