"""How far the variables of a network are from clones: RE, CE and BC of every array, in its worst block."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax
import numpy as np

from lopjax.cloning.equality import violations
from lopjax.manifolds import Clusters
from lopjax.model import Variables
from lopjax.wiring import Label, Wiring, tree_paths

KINDS = ("re", "ce", "bc")


class ArrayResiduals(NamedTuple):
    """Violations in the worst block of one array, relative to that block's own size (0 for blocks of equal entries).

    A block holds the entries from one cluster (or single unit) of the sources to one of the targets, at one kernel
    offset or position. Its size is its largest entry, or the size that its row and column suggest
    (`lopjax.cloning.equality.block_sizes`).

    Attributes:
        re: row equality: largest difference between the means that two units of a cluster get from a source cluster.
        ce: column equality: largest difference between the means that two units of a cluster give to a target cluster.
        bc: block constancy: largest difference between two entries; 0 means RE, CE and equal entries.
        gradient: the gradient's component normal to the leaf in the worst cluster's slices of this array, over that
            cluster's whole gradient. `None` without a batch.
        counted: whether the verdict uses this array.
        worst: where nonzero `re`, `ce` and `bc` occur, as `(kind, space, first unit of the cluster)`.
        blind: whether CE and BC ignore what is constant along the output axes, because the loss cannot see it.
    """

    re: float
    ce: float
    bc: float
    gradient: float | None
    counted: bool
    worst: tuple[tuple[str, str, int], ...] = ()
    blind: bool = False


def array_residuals(
    variables: Variables,
    wiring: Wiring,
    clusters: Mapping[str, Clusters],
    excluded: Collection[str],
    gradients: Mapping[str, float],
    blind: Collection[str] = (),
) -> dict[str, ArrayResiduals]:
    """Residuals of every array with a clustered axis, statistics included.

    Args:
        variables: variables in float32 or float64; compared in float64.
        wiring: wiring of the network.
        clusters: clusters of every space with clones.
        excluded: paths that are not counted.
        gradients: `ArrayResiduals.gradient` by path.
        blind: paths of arrays whose constants along the output axes are ignored.
    """
    ids = {space: own.ids for space, own in clusters.items()}
    residuals = {}
    leaves = jax.tree.leaves(variables)
    for path, label, leaf in zip(tree_paths(variables), wiring.labels_of(variables), leaves, strict=True):
        name = "/".join(path)
        if any(space in clusters for space in (*label.reads(), *label.writes())):
            by_kind = violations(np.asarray(leaf, np.float64), label, ids, name in blind)
            re, ce, bc = (float(np.max(blocks)) for blocks in by_kind)
            worst = tuple(
                (kind, *_where(label, blocks, kind, clusters)) for kind, blocks in zip(KINDS, by_kind) if np.max(blocks)
            )
            residuals[name] = ArrayResiduals(
                re, ce, bc, gradients.get(name), name not in excluded, worst, name in blind
            )
    return residuals


def _where(label: Label, blocks: np.ndarray, kind: str, clusters: Mapping[str, Clusters]) -> tuple[str, int]:
    """Space and first unit of the cluster with the worst block.

    Args:
        label: label of the array.
        blocks: sizes of its violations, with one entry for each cluster along every axis of units.
        kind: "re", "ce" or "bc".
        clusters: clusters of every space.
    """
    index = np.unravel_index(np.argmax(blocks), blocks.shape)
    for is_read in {"re": (False,), "ce": (True,), "bc": (False, True)}[kind]:
        for axis, space, _ in label.unit_axes(clusters, is_read=is_read):
            return space, int(clusters[space].leaders[index[axis]])
    return "", -1
