"""Which units are clones of one another: partitions as users write them, and clusters as the library uses them."""

from collections.abc import Collection, Mapping, Sized
from dataclasses import dataclass

import numpy as np

from lopjax.arguments.integers import as_integer
from lopjax.arguments.numbers import takes_numbers
from lopjax.wiring import Wiring

Partition = Mapping[str, tuple[int, ...]]
"""Cluster id of every unit, per unit space; a space that is absent has no clones."""

# Longer runs are not unrolled into slices.
LONGEST_RUN = 16


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters of the units of one space, of equal sizes or not, prepared for averaging.

    Hashable, and equal where the units are divided alike, so it can be a static argument of a jitted function.

    Attributes:
        ids: cluster of every unit, numbered from 0 by first appearance.
        leaders: first unit of every cluster.
        members: `{size: (clusters of that size, size) units}`.
        run: the common size, if all clusters have the same small size and each consists of adjacent units; else 0.
    """

    ids: np.ndarray
    leaders: np.ndarray
    members: Mapping[int, np.ndarray]
    run: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Clusters) and np.array_equal(self.ids, other.ids)

    def __hash__(self) -> int:
        return hash(tuple(self.ids.tolist()))


def make_clusters(ids: tuple[int, ...]) -> Clusters:
    """Prepare the clusters given by the cluster id of every unit."""
    _, leaders, labels = np.unique(np.asarray(ids), return_index=True, return_inverse=True)
    order = np.argsort(leaders)
    labels = np.argsort(order)[labels]
    sizes = np.bincount(labels)
    by_cluster = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    members = {int(size): np.stack([units for units in by_cluster if len(units) == size]) for size in np.unique(sizes)}
    is_run = len(members) == 1 and max(members) <= LONGEST_RUN and bool((np.diff(labels) >= 0).all())
    return Clusters(labels, leaders[order], members, int(sizes[0]) if is_run else 0)


def check_partition(
    wiring: Wiring, partition: Partition, allowed: Collection[str] | None = None
) -> dict[str, Clusters]:
    """Clusters of every space that has a cluster of two or more units.

    Args:
        wiring: wiring of the network.
        partition: cluster id of every unit, per space; a space that is absent has singletons.
        allowed: spaces that may have clusters; by default the permutable ones, in which equal units stay equal. Callers
            that rely on the function being unchanged by cloning, and not only on the symmetry, pass `wiring.cloneable`.

    Raises:
        ValueError: an unknown space, not one integer per unit, or a cluster in a space where none is allowed.
    """
    if not isinstance(partition, Mapping):
        kind = type(partition).__name__
        raise ValueError(
            f"partition is a {kind}: must map unit spaces to cluster ids, such as {{'hidden_0': (0, 0, 1)}}"
        )
    permitted, clusters = wiring.permutable if allowed is None else allowed, {}
    for space, ids in partition.items():
        size = wiring.size(space)
        if getattr(ids, "ndim", int(isinstance(ids, Sized))) != 1:
            raise ValueError(f"partition of {space!r}: {ids!r}; give one cluster id per unit, {size} in all")
        if len(ids) != size:
            raise ValueError(f"partition of {space!r}: {len(ids)} cluster ids for {size} units; give one per unit")
        refusal = f"partition of {space!r}: cluster id {{!r}}; ids must be integers, one per unit"
        lowest = np.iinfo(int).min
        own = make_clusters(tuple(as_integer(entry, lowest, refusal.format(entry)) for entry in ids))
        if len(own.leaders) == size:
            continue
        if space not in permitted:
            raise ValueError(
                f"partition of {space!r}: it is {wiring.why_not_cloneable(space)}, so its units are no clones: give it "
                f"singletons or leave it out; cloneable spaces are {list(wiring.cloneable)}"
            )
        clusters[space] = own
    return clusters


@takes_numbers(array=None)
def mean_over_clusters(array: np.ndarray, axis: int, clusters: Clusters) -> np.ndarray:
    """Replace every slice along an axis by the mean over its cluster, in NumPy.

    The mean is taken of the differences from the cluster's first unit, so constant slices are returned bit for bit.

    Args:
        array: a floating point array.
        axis: the axis that indexes the units.
        clusters: clusters of those units.
    """
    rows = np.moveaxis(array, axis, 0)
    leader = rows[clusters.leaders]
    sums = np.zeros_like(leader)
    np.add.at(sums, clusters.ids, rows - leader[clusters.ids])
    counts = np.bincount(clusters.ids).reshape(-1, *[1] * (rows.ndim - 1))
    return np.moveaxis((leader + sums / counts)[clusters.ids], 0, axis)
