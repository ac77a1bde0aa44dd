"""Manifolds that trap training: equal or weighted clones, frozen units, level sets, fixed points of symmetries.

`functional_codimension` bounds what other manifolds there can be.
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
from lopjax.manifolds.isometric import Isometry, fixed_point_manifold, isometric_manifold
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
from lopjax.manifolds.weighted import Multiples, weighted_manifold

__all__ = [
    "AffineStructure",
    "CloneNormals",
    "Clusters",
    "FrozenUnits",
    "FunctionalCodimension",
    "Isometry",
    "Manifold",
    "ManifoldKind",
    "Multiples",
    "Subspace",
    "check_partition",
    "cloned_manifold",
    "cluster_mean",
    "codimension",
    "conserved_drift",
    "dimension",
    "distance",
    "fixed_point_manifold",
    "frozen_manifold",
    "functional_codimension",
    "homogeneous_conserved",
    "intersection",
    "isometric_manifold",
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
    "weighted_manifold",
]
