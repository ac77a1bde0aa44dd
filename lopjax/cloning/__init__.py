"""Cloning a network, merging the clones again, and finding the clones in any network.

Cloning is the two generic rules of the wiring: repeat every cloned axis, and divide by the number of clones along input
axes. Nothing here knows what a convolution, a residual stream or an attention head is.
"""

from lopjax.cloning.clone import (
    Copies,
    Factor,
    clone_factors,
    clone_variables,
    collapse,
    factor_for_widths,
    uniform_partition,
    widen,
)
from lopjax.cloning.clusters import Clusters, Partition, check_partition, make_clusters, mean_over_clusters
from lopjax.cloning.find import ClonesFound, cluster_rows, find_clones, refine_partition, unit_coordinates
from lopjax.cloning.quotient import clip_by_cloned_norm, cloned_norm, multiplicities, quotient_optimizer

__all__ = [
    "ClonesFound",
    "Clusters",
    "Copies",
    "Factor",
    "Partition",
    "check_partition",
    "clip_by_cloned_norm",
    "clone_factors",
    "clone_variables",
    "cloned_norm",
    "cluster_rows",
    "collapse",
    "factor_for_widths",
    "find_clones",
    "make_clusters",
    "mean_over_clusters",
    "multiplicities",
    "quotient_optimizer",
    "refine_partition",
    "uniform_partition",
    "unit_coordinates",
    "widen",
]
