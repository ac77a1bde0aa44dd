"""Spectra of many independent blocks at once, at the cost of one operator product per step."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from lopjax.arguments.precision import all_digits
from lopjax.curvature.lanczos import (
    confirm_pairs,
    limit_steps,
    ritz_decomposition,
    select_pairs,
    subspace_start,
)

_BLOCK = "block"
"""Name of the axis over blocks."""


class BlockSpectra(NamedTuple):
    """Lanczos results for each block of a block-diagonal symmetric operator.

    Attributes:
        ritz_values: ascending over the valid entries of each row, NaN beyond. With as many steps as dimensions and no
            breakdown these are the block's distinct eigenvalues; multiplicities are not visible.
        valid: which Ritz values exist.
        eigenvalues: smallest and largest Rayleigh quotient of each block; NaN, like the vectors, if there is none.
        eigenvectors: their unit vectors.
        residuals: `||M_j v - theta v||`: an eigenvalue of block j lies this close, up to the rounding of one product
            (which the blocks share: eps times the size of the largest). Infinite if there is no pair.
        converged: whether the residual is at most `tolerance` times the block's own size.
        num_steps: number of reliable steps in each block.
    """

    ritz_values: Float[Array, "blocks steps"]
    valid: Bool[Array, "blocks steps"]
    eigenvalues: Float[Array, "blocks 2"]
    eigenvectors: Float[Array, "blocks 2 dim"]
    residuals: Float[Array, "blocks 2"]
    converged: Bool[Array, "blocks 2"]
    num_steps: Int[Array, "blocks"]


@all_digits()
def block_eigenvalues(
    matvec: Callable[[Float[Array, "blocks dim"]], Float[Array, "blocks dim"]],
    num_blocks: int,
    dim: int,
    num_steps: int,
    key: Key[Array, ""],
    *,
    block_dimensions: Int[Array, "blocks"] | None = None,
    start: Float[Array, "blocks dim"] | None = None,
    dtype: DTypeLike | None = None,
    tolerance: float | None = None,
) -> BlockSpectra:
    """One independent Lanczos run for each block of `diag(M_1, ..., M_b)`, sharing every operator product.

    Inner products are taken inside each block, so each block gets its own spectrum (global ones would give only the
    union), while `matvec` is called once per step on the vectors of all blocks: `num_steps + 3` products in all (one
    fixes the scale, two confirm the ends).

    Args:
        matvec: maps the stack of vectors (blocks, dim) to the stack of `M_j v_j`; each M_j symmetric, and rows must
            not influence each other.
        num_blocks: number of blocks.
        dim: length of a row; blocks may be smaller, see `block_dimensions`.
        num_steps: number of iterations; each block uses at most as many as it has dimensions.
        key: random key of the start vectors.
        block_dimensions: dimension of each block, 0..dim: block j uses the first entries of its row, and the others
            are held at zero. Default: all `dim`.
        start: start vectors in place of random ones.
        dtype: default: that of `start`, else JAX's default float.
        tolerance: relative residual below which a pair counts as converged; default sqrt(eps) of the dtype.

    Returns:
        The spectra. A row whose start vector is zero, or which has no dimensions, has no Ritz values.

    Raises:
        ValueError: a size is not positive, vectors have fewer than 32 bits, or `matvec` changes the shape of the stack.

    Example:
        >>> scales = jnp.array([[2.0], [0.0]])
        >>> block_eigenvalues(lambda v: scales * v, 2, 3, num_steps=3, key=jax.random.key(0)).num_steps.tolist()
        [1, 1]
    """
    if num_blocks < 1 or dim < 1:
        raise ValueError(f"num_blocks={num_blocks}, dim={dim}: both must be positive integers")
    start = _start_vectors(start, (num_blocks, dim), key, dtype)
    _check_stack(matvec, start, (num_blocks, dim))
    sizes = jnp.full(num_blocks, dim) if block_dimensions is None else block_dimensions
    steps = limit_steps(num_steps, None, dim)
    run = partial(_spectrum_of_row, matvec, steps, tolerance)
    return jax.vmap(run, axis_name=_BLOCK)(start, sizes)


def _spectrum_of_row(
    matvec: Callable[[Array], Array], steps: int, tolerance: float | None, start: Array, size: Array
) -> BlockSpectra:
    """The spectrum of one block, inside a vmap over all of them whose axis is named `_BLOCK`.

    Args:
        matvec: as in `block_eigenvalues`, on the stack of all blocks.
        steps: number of iterations.
        tolerance: as in `block_eigenvalues`.
        start: start vector `(dim,)`.
        size: dimension of the block, at most `dim`.
    """
    epsilon = float(jnp.finfo(start.dtype).eps)

    def inside(vector: Array) -> Array:
        return jnp.where(jnp.arange(len(start)) < size, vector, 0.0)

    def own_row(vector: Array) -> Array:
        # Gathering along the mapped axis gives every row the same, unmapped stack, so the operator runs once.
        products = matvec(jax.lax.all_gather(vector, _BLOCK))
        return inside(products[jax.lax.axis_index(_BLOCK)])

    begin = subspace_start(inside, start, epsilon)
    ritz = ritz_decomposition(own_row, inside, begin, steps, size, epsilon)
    vectors, exists = select_pairs(ritz, inside, num_pairs=1)
    products = jax.lax.map(own_row, vectors)
    pairs = confirm_pairs(vectors, products, exists, ritz.scale, epsilon**0.5 if tolerance is None else tolerance)
    return BlockSpectra(
        ritz_values=jnp.where(ritz.valid, ritz.values, jnp.nan),
        valid=ritz.valid,
        eigenvalues=pairs.values,
        eigenvectors=pairs.vectors,
        residuals=pairs.residuals,
        converged=pairs.converged,
        num_steps=ritz.num_steps,
    )


def _start_vectors(start: Array | None, shape: tuple[int, int], key: Array, dtype: DTypeLike | None) -> Array:
    """The start vectors that are given, or random ones, in the type of the computation."""
    if start is None:
        start = jax.random.normal(key, shape, jnp.float32 if dtype is None else dtype)
    start = start if dtype is None else start.astype(dtype)
    if jnp.finfo(start.dtype).bits < 32:
        raise ValueError(f"start vectors are {start.dtype}: eigenvalues need 32 bits at least, pass dtype=jnp.float32")
    return start


def _check_stack(matvec: Callable, start: Array, shape: tuple[int, int]) -> None:
    if start.shape != shape:
        raise ValueError(f"start has shape {start.shape}: it must be (num_blocks, dim) = {shape}")
    product = jax.eval_shape(matvec, start)
    if product.shape != shape or product.dtype != start.dtype:
        raise ValueError(
            f"matvec returned shape {product.shape} and dtype {product.dtype} for a stack of shape {shape} and dtype "
            f"{start.dtype}: it must keep both; pass dtype= to choose the stack's"
        )
