"""Manifolds that trap training: cloned units, frozen units, level sets; projectors, dimensions, residuals.

Whether there is any beyond those known, `functional_codimension` says.
"""

from lopjax.manifolds.affine import (
    AffineStructure,
    FrozenUnits,
    cloned_manifold,
    frozen_manifold,
    intersection,
    resolve_frozen_units,
)
from lopjax.manifolds.clusters import Clusters, check_partition, cluster_mean, make_clusters
from lopjax.manifolds.level_sets import conserved_drift, homogeneous_conserved, level_set_manifold
from lopjax.manifolds.lie_rank import FunctionalCodimension, functional_codimension
from lopjax.manifolds.manifold import (
    CloneNormals,
    Manifold,
    ManifoldKind,
    Subspace,
    codimension,
    dimension,
    distance,
    normal_basis,
    normal_part,
    num_parameters,
    random_normal_vector,
    tangency_residual,
    tangent_part,
    tree_norm,
)

__all__ = [
    "AffineStructure",
    "CloneNormals",
    "Clusters",
    "FrozenUnits",
    "FunctionalCodimension",
    "Manifold",
    "ManifoldKind",
    "Subspace",
    "check_partition",
    "cloned_manifold",
    "cluster_mean",
    "codimension",
    "conserved_drift",
    "dimension",
    "distance",
    "frozen_manifold",
    "functional_codimension",
    "homogeneous_conserved",
    "intersection",
    "level_set_manifold",
    "make_clusters",
    "normal_basis",
    "normal_part",
    "num_parameters",
    "random_normal_vector",
    "resolve_frozen_units",
    "tangency_residual",
    "tangent_part",
    "tree_norm",
]
