"""Extreme eigenpairs of a symmetric operator, or of its restriction to a subspace, with error bounds."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from lopjax.arguments.numbers import takes_numbers
from lopjax.arguments.precision import all_digits
from lopjax.curvature.lanczos import (
    confirm_pairs,
    flatten,
    limit_steps,
    ritz_decomposition,
    select_pairs,
    subspace_start,
)
from lopjax.curvature.products import Matvec, Params


class Eigenpairs(NamedTuple):
    """Approximate eigenpairs of a symmetric operator A; the first half from the lower end, the rest from the upper.

    Attributes:
        eigenvalues: Rayleigh quotients theta, ascending: `[0]` is the smallest found, `[-1]` the largest. With fewer
            Ritz values than pairs the two halves overlap, and missing entries are NaN.
        eigenvectors: unit vectors v: a tree like the parameters with a leading axis over pairs; NaN likewise.
        residuals: `||A v - theta v||`: an eigenvalue of A lies within this distance of theta, up to the rounding
            of one product. Infinite if there is no pair.
        converged: whether the residual is at most `tolerance` times the operator's size.
        num_steps: number of reliable Lanczos steps, at most the number requested; 0 if the start vector vanished.
    """

    eigenvalues: Float[Array, "pairs"]
    eigenvectors: PyTree[Float[Array, "pairs ..."]]
    residuals: Float[Array, "pairs"]
    converged: Bool[Array, "pairs"]
    num_steps: Int[Array, ""]


@takes_numbers(example=None)
@all_digits()
def extreme_eigenvalues(
    matvec: Matvec,
    example: Params,
    num_steps: int,
    key: Key[Array, ""],
    *,
    project: Callable[[Params], Params] | None = None,
    dimension: int | None = None,
    num_pairs: int = 1,
    tolerance: float | None = None,
) -> Eigenpairs:
    """Smallest and largest eigenvalues of a symmetric operator by Lanczos from a random start.

    A residual proves that *some* eigenvalue is near, not that none lies beyond. The reported ends are those of the
    spectrum with probability one after enough steps, and in practice once they have converged. Multiplicities are not
    visible. Memory: `num_steps` vectors. Works under `jax.jit`.

    Args:
        matvec: the symmetric operator on trees like `example`, such as `lambda v: hvp(loss, params, v)`.
        example: a tree with the operator's structure, shapes and dtypes (the parameters); values are not used.
        num_steps: number of products for the Krylov space, at most the dimension of the (sub)space.
        key: random key of the start vector.
        project: orthogonal projector onto the subspace of interest, or None for the whole space.
        dimension: dimension of that subspace, if known.
        num_pairs: number of pairs to report from each end.
        tolerance: relative residual below which a pair counts as converged; default sqrt(eps) of the dtype.

    Returns:
        The pairs, each confirmed by one more product.

    Raises:
        ValueError: `num_steps`, `num_pairs` or `dimension` is out of range, or `matvec` changes the tree.

    Example:
        >>> import jax.numpy as jnp
        >>> diagonal = jnp.array([-1.0, 0.5, 3.0])
        >>> pairs = extreme_eigenvalues(lambda v: diagonal * v, diagonal, num_steps=3, key=jax.random.key(0))
        >>> [round(value, 5) for value in pairs.eigenvalues.tolist()]
        [-1.0, 3.0]

    References:
        Parlett, "The Symmetric Eigenvalue Problem" (1980), theorem 4.5.1: the residual bound.
    """
    if num_pairs < 1:
        raise ValueError(f"num_pairs={num_pairs}: must be a positive integer")
    operator = flatten(matvec, project, example)
    steps = limit_steps(num_steps, dimension, operator.dimension)
    direction = jax.random.normal(key, (operator.dimension,), operator.work_dtype)
    start = subspace_start(operator.project, direction, operator.epsilon)
    ritz = ritz_decomposition(
        operator.matvec, operator.project, start, steps, dimension or operator.dimension, operator.epsilon
    )
    vectors, exists = select_pairs(ritz, operator.project, num_pairs)
    products = jax.lax.map(operator.matvec, vectors)
    relative_tolerance = operator.epsilon**0.5 if tolerance is None else tolerance
    pairs = confirm_pairs(vectors, products, exists, ritz.scale, relative_tolerance)
    return Eigenpairs(
        eigenvalues=pairs.values,
        eigenvectors=jax.vmap(operator.unravel)(pairs.vectors),
        residuals=pairs.residuals,
        converged=pairs.converged,
        num_steps=ritz.num_steps,
    )
