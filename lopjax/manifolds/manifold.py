"""A manifold seen from one of its points: the orthogonal projector onto its tangent space, and what follows from it.

Vectors are trees like the parameters; inner products and norms are those of all their entries together.
"""

from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from lopjax.arguments.numbers import takes_numbers
from lopjax.curvature import check_same_tree, check_size
from lopjax.curvature.guards import DENSE_LIMIT_BYTES
from lopjax.tolerance import drift_tolerance

Params = PyTree[Float[Array, "..."]]
Projector = Callable[[Params], Params]


class ManifoldKind(Enum):
    """The kind of a manifold; the value is its name in reports."""

    LEAF = "leaf"
    FAMILY = "V"
    FROZEN = "frozen"
    LEVEL_SET = "level set"
    OTHER = "custom"


class Subspace(NamedTuple):
    """A linear space of parameter changes.

    Attributes:
        project: orthogonal projector onto it.
        dimension: its dimension, known from the wiring.
    """

    project: Projector
    dimension: int


class CloneNormals(NamedTuple):
    """The three orthogonal components of the normal space of a leaf M_D (theory: arXiv 2510.00304, appendix A.2).

    P averages over clusters along the axes of one side of an array, Q = I - P. Together with the tangent space of the
    leaf, `P_in P_out`, the components span everything (on an intersection with frozen units: everything not frozen).

    Attributes:
        incoming: `P_in Q_out`, clones with different incoming totals; normal to V. For arrays without an input axis
            (biases, norm parameters): `Q_out`.
        outgoing: `Q_in P_out`, clones with different outgoing totals; normal to V.
        gauge: `Q_in Q_out`, redistributions that change neither totals nor any activation; tangent to V.
    """

    incoming: Subspace
    outgoing: Subspace
    gauge: Subspace


class Manifold(NamedTuple):
    """A manifold of parameters, seen from one of its points.

    Only the first two fields are needed by the library; the constructors of this package fill in the others.

    Attributes:
        origin: the point.
        project: orthogonal projector onto the tangent space at `origin`: linear, idempotent, self-adjoint.
        tangent_dimension: dimension of the tangent space; `None` if it is not known from the structure.
        space: name for reports: "leaf" or "V" (cloned units), "frozen", "leaf & frozen", "weighted leaf", "level set"
            and so on, or a name of the user's own. No decision depends on it.
        normals: for cloned units, the components of the leaf's normal space, whichever `space` is used.
        structure: for cloned and frozen units, the clusters and masks that define the manifold.
        rank_loss: for level sets, the number of constraints whose gradients are not independent of the others; if
            nonzero, the level set need not be a manifold at `origin`. `None` for other manifolds, or under a trace.
        kind: the kind that the constructor makes; `OTHER` for the user's own manifolds.
        is_affine: whether the manifold is `origin + range(project)`; `None` if unknown. Away from a critical point the
            curvature of a loss gives no verdict about a manifold that may be curved.
    """

    origin: Params
    project: Projector
    tangent_dimension: int | None = None
    space: str = "custom"
    normals: CloneNormals | None = None
    structure: Any = None
    rank_loss: int | None = None
    kind: ManifoldKind = ManifoldKind.OTHER
    is_affine: bool | None = None


def num_parameters(manifold: Manifold) -> int:
    """Dimension of the ambient parameter space."""
    return sum(leaf.size for leaf in jax.tree.leaves(manifold.origin))


def dimension(manifold: Manifold, max_bytes: int = DENSE_LIMIT_BYTES) -> int:
    """Dimension of the tangent space.

    It is known for the manifolds of this package; for a user's own projector it is the trace, which takes a dense
    matrix.

    Args:
        manifold: any manifold.
        max_bytes: refuse a dense matrix larger than this.

    Raises:
        ValueError: the trace is needed and the matrix would exceed `max_bytes`.
    """
    if manifold.tangent_dimension is not None:
        return manifold.tangent_dimension
    return round(float(jnp.trace(_dense(manifold.project, manifold.origin, max_bytes))))


def codimension(manifold: Manifold) -> int:
    """Dimension of the normal space."""
    return num_parameters(manifold) - dimension(manifold)


@takes_numbers(vector=None)
def tangent_part(manifold: Manifold, vector: Params) -> Params:
    """Component of a vector along the manifold.

    Raises:
        ValueError: the vector does not match the parameters.
    """
    check_same_tree(manifold.origin, vector, "vector")
    return manifold.project(vector)


@takes_numbers(vector=None)
def normal_part(manifold: Manifold, vector: Params) -> Params:
    """Component of a vector that leaves the manifold, `v - P v`.

    Raises:
        ValueError: the vector does not match the parameters.
    """
    return jax.tree.map(jnp.subtract, vector, tangent_part(manifold, vector))


@takes_numbers(params=None)
def distance(manifold: Manifold, params: Params) -> Float[Array, ""]:
    """Euclidean distance from parameters to an affine manifold.

    For a level set it is the distance to the tangent plane at its origin, first order in the displacement.

    Args:
        manifold: any manifold.
        params: the parameters, a tree like its origin.

    Raises:
        ValueError: the parameters do not match the manifold's.
    """
    check_same_tree(manifold.origin, params, "params")
    normal = normal_part(manifold, jax.tree.map(jnp.subtract, params, manifold.origin))
    scale, divide = _scaling(normal)
    return scale * tree_norm(divide(normal))


@takes_numbers(vector=None)
def tangency_residual(manifold: Manifold, vector: Params) -> Float[Array, ""]:
    """Fraction of a vector that is normal to the manifold, `||P_N v|| / ||v||`, between 0 and 1.

    If it is 0 for a gradient, gradient descent does not leave the manifold to first order, and an affine manifold not
    at all. Zero at one point is necessary, not sufficient: it is zero at every critical point. For another optimizer,
    pass the update.

    Args:
        manifold: any manifold.
        vector: a tree like its origin, of any magnitude: it is first scaled by its largest entry.

    Returns:
        A scalar, at least float32. 0 if the vector is 0; infinite if it has an entry that is not finite.

    Raises:
        ValueError: the vector does not match the parameters.

    References:
        arXiv 2510.00304, definition of a loss-of-plasticity manifold, section 3.
    """
    check_same_tree(manifold.origin, vector, "vector")
    return _residual(manifold.project, vector)


@partial(jax.jit, static_argnums=0)
def _residual(project: Projector, vector: Params) -> Float[Array, ""]:
    scale, divide = _scaling(vector)
    norm = tree_norm(divide(vector))
    # Project before scaling: compiled together, a scaled difference is rounded once, and equal entries do not cancel.
    normal = jax.tree.map(jnp.subtract, vector, project(vector))
    residual = tree_norm(divide(normal)) / jnp.where(norm > 0, norm, 1)
    return jnp.where(jnp.isfinite(scale), residual, jnp.inf)


def normal_basis(manifold: Manifold, max_bytes: int = DENSE_LIMIT_BYTES) -> Float[Array, "codimension parameters"]:
    """Orthonormal basis of the normal space of a small network, one vector per row.

    Coordinates are those of `jax.flatten_util.ravel_pytree(params)`.

    Args:
        manifold: any manifold.
        max_bytes: refuse a dense projector (parameters squared) larger than this.

    Raises:
        ValueError: the projector would exceed `max_bytes`; or `project` is not an
            orthogonal projector (an eigenvalue far from 0 and 1).
    """
    projector = _dense(manifold.project, manifold.origin, max_bytes)
    normal = jnp.eye(len(projector), dtype=projector.dtype) - (projector + projector.T) / 2
    eigenvalues, vectors = jnp.linalg.eigh(normal)
    slack = drift_tolerance(projector.dtype)
    if not bool(jnp.all(jnp.minimum(jnp.abs(eigenvalues), jnp.abs(eigenvalues - 1)) < slack)):
        raise ValueError("manifold.project is not an orthogonal projector: it has eigenvalues other than 0 and 1")
    return vectors[:, eigenvalues > 0.5].T


def random_normal_vector(key: Key[Array, ""], manifold: Manifold) -> Params:
    """A unit vector normal to the manifold, uniform on the sphere of the normal space.

    Args:
        key: random key; vmap over keys gives many.
        manifold: any manifold.

    Raises:
        ValueError: the manifold has no normal direction.
    """
    if manifold.tangent_dimension == num_parameters(manifold):
        raise ValueError("the manifold fills the parameter space: it has no normal directions")
    flat, unravel = ravel_pytree(manifold.origin)
    draw = unravel(jax.random.normal(key, flat.shape, flat.dtype))
    # The second projection removes the rounding errors of the first.
    normal = normal_part(manifold, normal_part(manifold, draw))
    norm = tree_norm(normal)
    return jax.tree.map(lambda leaf: leaf / norm.astype(leaf.dtype), normal)


@jax.jit
def tree_norm(tree: Params) -> Float[Array, ""]:
    """Euclidean norm of all entries of a tree, accumulated in at least float32."""
    dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(tree)), jnp.float32)
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(dtype))) for leaf in jax.tree.leaves(tree)))


def _scaling(tree: Params) -> tuple[Float[Array, ""], Callable[[Params], Params]]:
    """The largest absolute entry, and a function that divides by it: norms then neither overflow nor underflow."""
    leaves = jax.tree.leaves(tree)
    dtype = jnp.promote_types(jnp.result_type(*leaves), jnp.float32)
    # The last of the sorted ones, not the maximum: this XLA copies, all leaves included, into the kernel of every leaf.
    scale = jnp.sort(jnp.stack([jnp.max(jnp.abs(leaf), initial=0).astype(dtype) for leaf in leaves]))[-1]
    usable = jnp.where((scale >= jnp.finfo(dtype).tiny) & jnp.isfinite(scale), scale, 1)
    return scale, lambda tree: jax.tree.map(lambda leaf: (leaf.astype(dtype) / usable).astype(leaf.dtype), tree)


def _dense(project: Projector, origin: Params, max_bytes: int) -> Float[Array, "parameters parameters"]:
    flat, unravel = ravel_pytree(origin)
    shape = (flat.size, flat.size)
    check_size("dense projector", shape, flat.dtype, max_bytes, "use project, normal_part or random_normal_vector")
    return jax.vmap(lambda row: ravel_pytree(project(unravel(row)))[0])(jnp.eye(flat.size, dtype=flat.dtype))
