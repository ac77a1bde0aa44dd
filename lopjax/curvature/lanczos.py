"""Lanczos iterations that survive breakdowns: the core shared by eigenpairs, blocks and spectral densities.

matfree iterates; this module decides how much of the result is reliable. After an exact breakdown (the operator is 0, a
multiple of the identity, or has an invariant subspace that contains the start vector) matfree divides by the length of
a vector that is zero or rounding noise, and all further results are NaN or meaningless.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int
from matfree import decomp

from lopjax import linalg
from lopjax.curvature.products import Matvec, Params

FlatMatvec = Callable[[Array], Array]

# A new Lanczos vector shorter than this times eps times the operator's size is rounding noise. matfree orthogonalises
# twice, which is accurate to a few eps; a larger factor would cut off the weak bulk of a spectrum with strong outliers.
_BREAKDOWN = 16


class RitzDecomposition(NamedTuple):
    """Eigendecomposition of the operator compressed to a Krylov space, reliable part first.

    Attributes:
        values: Ritz values, ascending over the first `num_steps` entries; zero beyond.
        coordinates: column i holds Ritz vector i in the Lanczos basis; zero beyond `num_steps`.
        basis: Lanczos vectors as rows, the normalised start first; the first `num_steps` are orthonormal.
        valid: which entries are reliable.
        num_steps: number of reliable entries.
        scale: the power of two by which the operator was divided while iterating.
    """

    values: Float[Array, "steps"]
    coordinates: Float[Array, "steps steps"]
    basis: Float[Array, "steps dimension"]
    valid: Bool[Array, "steps"]
    num_steps: Int[Array, ""]
    scale: Float[Array, ""]


class Pairs(NamedTuple):
    """Approximate eigenpairs, each confirmed by one more product; fields as in `Eigenpairs`, vectors flat."""

    values: Float[Array, "pairs"]
    vectors: Float[Array, "pairs dimension"]
    residuals: Float[Array, "pairs"]
    converged: Bool[Array, "pairs"]


class FlatOperator(NamedTuple):
    """A matvec on pytrees as a map from the subspace to itself, on flat vectors in at least float32."""

    matvec: FlatMatvec
    project: FlatMatvec
    unravel: Callable[[Array], Params]
    dimension: int
    work_dtype: jnp.dtype
    epsilon: float


def flatten(matvec: Matvec, project: Callable[[Params], Params] | None, example: Params) -> FlatOperator:
    """Convert from pytrees to flat vectors, restricting the operator to the range of `project`.

    Args:
        matvec: the operator on trees like `example`.
        project: orthogonal projector on such trees, or None for the whole space.
        example: a tree with the right structure, shapes and dtypes; its values are not used.

    Returns:
        The flat operator `P A`, to be applied to vectors of the subspace; half-precision trees are kept in float32
        between products.

    Raises:
        ValueError: `example` has arrays that are not floating point, or `matvec` changes the tree.
    """
    flat, unravel_native = ravel_pytree(example)
    if not jnp.issubdtype(flat.dtype, jnp.floating):
        raise ValueError(f"example has dtype {flat.dtype}: pass the parameters, real floating-point arrays only")
    work_dtype = jnp.promote_types(flat.dtype, jnp.float32)

    def unravel(vector: Array) -> Params:
        return unravel_native(vector.astype(flat.dtype))

    def apply(function: Callable[[Params], Params], vector: Array) -> Array:
        return ravel_pytree(function(unravel(vector)))[0].astype(work_dtype)

    for name, function in (("matvec", matvec), ("project", project)):
        result = None if function is None else jax.eval_shape(function, example)
        if result is not None and jax.tree.structure(result) != jax.tree.structure(example):
            raise ValueError(
                f"{name} returned the tree {jax.tree.structure(result)}: it must be that of example, "
                f"{jax.tree.structure(example)}"
            )
    on_subspace = (lambda vector: vector) if project is None else (lambda vector: apply(project, vector))
    return FlatOperator(
        matvec=lambda vector: on_subspace(apply(matvec, vector)),
        project=on_subspace,
        unravel=unravel,
        dimension=flat.size,
        work_dtype=work_dtype,
        epsilon=float(jnp.finfo(flat.dtype).eps),
    )


def limit_steps(num_steps: int, dimension: int | None, num_coordinates: int) -> int:
    """Number of useful iterations, at most the dimension of the (sub)space.

    Args:
        num_steps: the number requested.
        dimension: dimension of the subspace, or None if it is the whole space.
        num_coordinates: dimension of the whole space.

    Returns:
        The smaller of the two.

    Raises:
        ValueError: `num_steps` is not positive or `dimension` not in 1..num_coordinates.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: must be a positive integer")
    if num_coordinates < 1 or (dimension is not None and not 1 <= dimension <= num_coordinates):
        raise ValueError(
            f"dimension={dimension}: the subspace must have between 1 and {num_coordinates} dimensions, the number "
            "of parameters; an empty subspace has no eigenvalues"
        )
    return min(num_steps, num_coordinates if dimension is None else dimension)


def ritz_decomposition(
    matvec: FlatMatvec,
    project: FlatMatvec,
    start: Float[Array, "dimension"],
    num_steps: int,
    max_steps: Int[Array, ""] | int,
    epsilon: float,
) -> RitzDecomposition:
    """Lanczos with full reorthogonalisation, cut at the first sign of breakdown.

    The tridiagonal matrix T is cut before step j when the new vector's length beta falls to 16 eps ||T||, when
    the vector is not orthogonal to its predecessors or has left the subspace by more than sqrt(eps), when anything
    is not finite, and at `max_steps`. It takes `num_steps + 1` products, one of them for the operator's scale.

    Args:
        matvec: symmetric flat operator that maps the subspace to itself; applied to vectors of the subspace only.
        project: projector onto the subspace (the identity for the whole space).
        start: start vector; a zero vector gives zero steps.
        num_steps: iterations to run (static).
        max_steps: largest number of reliable iterations: the dimension of the subspace (may be traced).
        epsilon: rounding unit of the operator's products.

    Returns:
        The decomposition; `num_steps` is the number of valid entries.
    """

    def steady_matvec(vector: Array) -> Array:
        # After a breakdown matfree passes on NaN: keep it out of a product that other blocks may share.
        vector = jnp.where(jnp.isfinite(vector).all(), vector, 0.0)
        inside = project(vector)
        product = matvec(inside) / scale
        # Rounding leaves a trace of `vector` outside the subspace, where the operator is 0. If it were 0 here too, the
        # recurrence would amplify the trace like any isolated eigenvalue (a factor of 9 per step was observed); with
        # the Rayleigh quotient instead, the trace does not grow.
        return product + (inside @ product) * (vector - inside)

    scale = _power_of_two_above(matvec(start))
    iterate = decomp.hessenberg(num_steps, reortho="full", custom_vjp=False)
    basis, hessenberg, *_ = cast(tuple[Array, ...], iterate(steady_matvec, start))
    leaks = jax.lax.map(lambda vector: jnp.linalg.norm(vector - project(vector)), basis)
    return _cut_and_diagonalise(basis, hessenberg, leaks, scale, max_steps, epsilon)


# The functions below act on arrays alone. They are compiled separately, for calls outside `jax.jit`.


@jax.jit
def _power_of_two_above(product: Float[Array, "dimension"]) -> Float[Array, ""]:
    """A scale for the operator: squares underflow below 1e-19 in float32, but curvature can be smaller than that."""
    largest = jnp.max(abs(product))
    _, exponent = jnp.frexp(jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1.0))
    return jnp.ldexp(jnp.ones_like(largest), exponent)


@jax.jit
def _cut_and_diagonalise(
    basis: Float[Array, "steps dimension"],
    hessenberg: Float[Array, "steps steps"],
    leaks: Float[Array, "steps"],
    scale: Float[Array, ""],
    max_steps: Int[Array, ""] | int,
    epsilon: float | Float[Array, ""],
) -> RitzDecomposition:
    """Find the first breakdown, and decompose the tridiagonal matrix before it."""
    # Once a Krylov space is exhausted, the next vector is rounding noise normalised to length 1: everything after it is
    # noise, and a vector that is no longer orthogonal to the others would count eigenvalues twice. Shapes are static,
    # so the later steps stay in the matrix, uncoupled, and are sorted after all true Ritz values.
    diagonal, lengths = jnp.diag(hessenberg), jnp.diag(hessenberg, -1)
    finite = jnp.isfinite(diagonal)
    basis = jnp.where(finite[:, None], basis, 0.0)
    size = jax.lax.cummax(jnp.maximum(abs(diagonal[:-1]), lengths))
    long_enough = jnp.append(True, lengths > _BREAKDOWN * epsilon * size)
    overlaps = abs(jnp.tril(basis @ basis.T - jnp.eye(len(basis), dtype=basis.dtype))).max(1)
    valid = finite & long_enough & (jnp.maximum(overlaps, leaks) < jnp.sqrt(epsilon))
    valid = jnp.cumprod(valid).astype(bool) & (jnp.arange(len(valid)) < max_steps)

    diagonal, lengths = jnp.where(valid, diagonal, 0.0), jnp.where(valid[1:], lengths, 0.0)
    largest = jnp.maximum(jnp.max(abs(diagonal)), jnp.max(lengths, initial=0.0))
    # By Gershgorin no valid Ritz value exceeds 3 * largest: the discarded steps sort last.
    diagonal = jnp.where(valid, diagonal, jnp.where(largest > 0, 4 * largest, 1.0))
    tridiagonal = jnp.diag(diagonal) + jnp.diag(lengths, 1) + jnp.diag(lengths, -1)
    values, coordinates = linalg.eigh(tridiagonal)
    count = jnp.sum(valid)
    first = jnp.arange(len(valid)) < count
    return RitzDecomposition(
        values=jnp.where(first, values * scale, 0.0),
        coordinates=jnp.where(first[None] & valid[:, None], coordinates, 0.0),
        basis=basis,
        valid=first,
        num_steps=count,
        scale=scale,
    )


def subspace_start(
    project: FlatMatvec, direction: Float[Array, "dimension"], epsilon: float
) -> Float[Array, "dimension"]:
    """Project a direction; exactly zero if only rounding noise remains of it."""
    largest = jnp.max(abs(direction))
    direction = direction / jnp.where(largest > 0, largest, 1.0)
    projected = project(direction)
    floor = _BREAKDOWN * epsilon * jnp.linalg.norm(direction)
    return jnp.where(jnp.linalg.norm(projected) > floor, projected, 0.0)


def select_pairs(
    ritz: RitzDecomposition, project: FlatMatvec, num_pairs: int
) -> tuple[Float[Array, "pairs dimension"], Bool[Array, "pairs"]]:
    """Unit Ritz vectors of the `num_pairs` smallest and largest Ritz values, with a mask of those that exist."""
    vectors, exists = _ritz_vectors(ritz, num_pairs)
    return _normalise(jax.lax.map(project, vectors), exists)


@partial(jax.jit, static_argnames="num_pairs")
def _ritz_vectors(
    ritz: RitzDecomposition, num_pairs: int
) -> tuple[Float[Array, "pairs dimension"], Bool[Array, "pairs"]]:
    ends = jnp.arange(num_pairs)
    indices = jnp.concatenate([ends, ritz.num_steps - num_pairs + ends])
    exists = (indices >= 0) & (indices < ritz.num_steps)
    coordinates = jnp.where(exists, ritz.coordinates[:, jnp.where(exists, indices, 0)], 0.0)
    return coordinates.T @ ritz.basis, exists


@jax.jit
def _normalise(
    vectors: Float[Array, "pairs dimension"], exists: Bool[Array, "pairs"]
) -> tuple[Float[Array, "pairs dimension"], Bool[Array, "pairs"]]:
    """Normalise Ritz vectors; one that loses more than half of its length in projection was not in the subspace."""
    lengths = jnp.linalg.norm(vectors, axis=1)
    exists = exists & (lengths > 0.5)
    return jnp.where(exists[:, None], vectors / jnp.where(exists, lengths, 1.0)[:, None], 0.0), exists


@jax.jit
def confirm_pairs(
    vectors: Float[Array, "pairs dimension"],
    products: Float[Array, "pairs dimension"],
    exists: Bool[Array, "pairs"],
    scale: Float[Array, ""],
    tolerance: float | Float[Array, ""],
) -> Pairs:
    """Rayleigh quotients and residuals from a fresh product with each vector.

    For a symmetric operator some eigenvalue lies within `||A v - theta v||` of theta (v a unit vector).

    Args:
        vectors: unit vectors v.
        products: `A v` for each vector.
        exists: which vectors to use; the others get NaN with an infinite residual.
        scale: size of the operator, to keep squares within range.
        tolerance: a pair counts as converged when its residual is at most this times the largest ||A v||.

    Returns:
        The confirmed pairs.
    """
    products = products / scale
    values = jnp.sum(vectors * products, axis=1)
    residuals = jnp.linalg.norm(products - values[:, None] * vectors, axis=1)
    exists = exists & jnp.isfinite(residuals)
    size = jnp.max(jnp.where(exists, jnp.linalg.norm(products, axis=1), 0.0))
    return Pairs(
        values=jnp.where(exists, values * scale, jnp.nan),
        vectors=jnp.where(exists[:, None], vectors, jnp.nan),
        residuals=jnp.where(exists, residuals * scale, jnp.inf),
        converged=exists & (residuals <= tolerance * size),
    )
