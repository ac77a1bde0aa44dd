"""The normal space of a manifold at a point, and the part of it that is flat by algebra."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lopjax.curvature.products import Params
from lopjax.manifolds import CloneNormals, Manifold, ManifoldKind, Subspace
from lopjax.tolerance import relative_tolerance


class NormalSpace(NamedTuple):
    """The directions that remain to be examined once those that are flat by algebra are known.

    Attributes:
        whole: the manifold with its tangent space.
        deflated: the same with the gauge counted as tangent.
        gauge: redistributions among clones that change no activation; None where there are none, or off V.
    """

    whole: Manifold
    deflated: Manifold
    gauge: Subspace | None

    def choose(self, is_flat: bool) -> tuple[Manifold, int]:
        """The manifold whose normal space remains to be examined, and the number of zeros that this leaves out."""
        return (self.deflated, self.gauge.dimension) if self.gauge is not None and is_flat else (self.whole, 0)


def normal_space(params: Params, manifold: Manifold) -> NormalSpace:
    """The normal space of a manifold at one of its points, with the gauge where the point lies on V."""
    # Along the gauge (redistributions among clones that change no activation) the Hessian on V is zero by algebra, so
    # these directions are counted, not computed: in floating point their eigenvalues would be rounding, of either sign.
    # Off V the argument does not hold, and they stay in the normal space like any others.
    normals = manifold.normals
    if (
        normals is None
        or manifold.kind is not ManifoldKind.LEAF
        or not normals.gauge.dimension
        or not _is_on_family(params, normals)
    ):
        return NormalSpace(manifold, manifold, None)

    def project(vector: Params) -> Params:
        return jax.tree.map(jnp.add, manifold.project(vector), normals.gauge.project(vector))

    known = manifold.tangent_dimension
    deflated = manifold._replace(
        project=project, tangent_dimension=None if known is None else known + normals.gauge.dimension
    )
    return NormalSpace(manifold, deflated, normals.gauge)


def _is_on_family(params: Params, normals: CloneNormals) -> bool:
    """Whether RE and CE hold: no array has an incoming or outgoing component beyond rounding."""
    incoming, outgoing = normals.incoming.project(params), normals.outgoing.project(params)
    off = jax.tree.map(lambda one, other: float(jnp.linalg.norm(jnp.ravel(one + other))), incoming, outgoing)
    triples = zip(jax.tree.leaves(off), jax.tree.leaves(params), strict=True)
    return all(part <= relative_tolerance(leaf.dtype) * float(jnp.linalg.norm(leaf.ravel())) for part, leaf in triples)
