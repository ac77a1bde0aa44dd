"""Singular values and eigenvalues that may be vmapped on CPU.

XLA's CPU backend (jaxlib 0.10.2) spreads a *batched* LAPACK call over its thread pool and blocks a thread of that same
pool until all parts are done. Two such calls in one program, say the singular values of two layers under a `vmap`
over seeds, can then hold every thread and wait for ever: measured, with two cores, in each of three attempts. A single
matrix never enters the pool. So batching means one matrix after the other on CPU, and the backend's own batched
routine elsewhere.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float


def _batchable(function: Callable[[jax.Array], tuple[jax.Array, ...]]) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    """A function of one matrix, batched by `lax.map` on CPU and by `vmap` on other platforms."""

    def one_by_one(matrices: jax.Array) -> tuple[jax.Array, ...]:
        flat = matrices.reshape((-1, *matrices.shape[-2:]))
        results = jax.lax.map(function, flat)
        return tuple(result.reshape(matrices.shape[:-2] + result.shape[1:]) for result in results)

    @custom_vmap
    def of_stack(matrices: jax.Array) -> tuple[jax.Array, ...]:
        if matrices.ndim == 2:
            return function(matrices)
        return jax.lax.platform_dependent(matrices, cpu=one_by_one, default=function)

    @of_stack.def_vmap
    def _(size: int, is_batched: list[bool], matrices: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[bool, ...]]:
        results = of_stack(matrices)
        return results, (True,) * len(results)

    return of_stack


# `full_matrices=False` matters although no vectors are returned: without it XLA reserves (rows, rows).
_singular_values = _batchable(lambda matrix: (jnp.linalg.svd(matrix, compute_uv=False, full_matrices=False),))
_svd = _batchable(lambda matrix: tuple(jnp.linalg.svd(matrix, full_matrices=False)))
_eigh = _batchable(lambda matrix: tuple(jnp.linalg.eigh(matrix)))


@jax.custom_jvp
def singular_values(matrix: Float[Array, "*batch rows columns"]) -> Float[Array, "*batch rank"]:
    """Singular values in descending order; differentiable once where they are distinct."""
    return _singular_values(matrix)[0]


@singular_values.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """`ds_k = u_k' dA v_k`."""
    left, values, right = _svd(jax.lax.stop_gradient(primals[0]))
    return values, jnp.einsum("...ik,...ij,...kj->...k", left, tangents[0], right)


def svd(
    matrix: Float[Array, "*batch rows columns"],
) -> tuple[Float[Array, "*batch rows rank"], Float[Array, "*batch rank"], Float[Array, "*batch rank columns"]]:
    """Thin singular value decomposition `(U, s, V')`, `s` in descending order; not differentiable."""
    left, values, right = _svd(matrix)
    return left, values, right


def eigh(matrix: Float[Array, "*batch n n"]) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch n n"]]:
    """Eigenvalues in ascending order and eigenvectors (columns) of a symmetric matrix; not differentiable."""
    values, vectors = _eigh(matrix)
    return values, vectors
