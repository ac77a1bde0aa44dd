"""Coordinates of the normal space of cloned units, and the base network that a point of BC belongs to.

The normal directions that concern unit j are, for each pattern c over its clones with sum 0, changes `c_a u` of the
incoming parameters (u constant over the clones of the sources) and `c_a r` of the outgoing ones. At a point of BC every
pattern sees the same block M_j, so one pattern is enough: (+, -, 0, ...)/sqrt(2).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.cloning import Clusters, mean_over_clusters
from lopjax.model import Params, Variables
from lopjax.wiring import Label, Wiring, along

UnitRows = dict[str, jax.Array]
"""Per space with clones, `(units, dimension)`: coordinates u of every unit, then r, in the order of `unit_columns`."""


class ArrayColumns(NamedTuple):
    """Which columns of a space's rows hold the coordinates of one array.

    Attributes:
        leaf: index of the array in `jax.tree.leaves(params)`.
        axis: the axis that indexes the units of the space.
        is_outgoing: whether the array reads the space.
        start: first column.
        shape: shape of the base network's array with `axis` moved to the front.
    """

    leaf: int
    axis: int
    is_outgoing: bool
    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """One past the last column."""
        return self.start + int(np.prod(self.shape[1:]))


def clone_counts(clusters: Mapping[str, Clusters]) -> dict[str, np.ndarray]:
    """The number of clones n_j of every unit of the base network, per space with clones."""
    return {space: np.bincount(partition.ids) for space, partition in clusters.items()}


def unit_columns(params: Params, wiring: Wiring, clusters: Mapping[str, Clusters]) -> dict[str, list[ArrayColumns]]:
    """The incoming parameters of every space with clones, then the outgoing ones, in the order of the leaves.

    Args:
        params: parameters of the cloned network.
        wiring: its wiring.
        clusters: clusters of every space with clones.
    """
    labels, leaves = wiring.labels_of(params), jax.tree.leaves(params)
    columns: dict[str, list[ArrayColumns]] = {}
    for space in clusters:
        columns[space], start = [], 0
        for is_outgoing in (False, True):
            for index, (label, leaf) in enumerate(zip(labels, leaves, strict=True)):
                for axis, *_ in label.unit_axes((space,), is_read=is_outgoing):
                    shape = [_base_size(label, other, size, clusters) for other, size in enumerate(leaf.shape)]
                    shape = (shape[axis], *shape[:axis], *shape[axis + 1 :])
                    columns[space].append(ArrayColumns(index, axis, is_outgoing, start, shape))
                    start = columns[space][-1].stop
    return columns


def make_lift(
    params: Params, wiring: Wiring, clusters: Mapping[str, Clusters]
) -> tuple[Callable[[UnitRows], Params], UnitRows]:
    """The isometry from unit coordinates to parameter changes of the cloned network, and zeros to call it with.

    Its transpose (`jax.linear_transpose`) reads the coordinates back. Clusters of one unit have no pattern: their rows
    map to zero.

    Args:
        params: parameters of the cloned network.
        wiring: its wiring.
        clusters: clusters of every space with clones.
    """
    labels, (leaves, structure) = wiring.labels_of(params), jax.tree.flatten(params)
    columns = unit_columns(params, wiring, clusters)
    counts = clone_counts(clusters)
    shared = {space: counts[space][own.ids] ** -0.5 for space, own in clusters.items()}
    patterns = {space: _pattern(own) for space, own in clusters.items()}

    def lift(rows: UnitRows) -> Params:
        totals = [jnp.zeros_like(leaf) for leaf in leaves]
        for space, places in columns.items():
            for place in places:
                block = jnp.moveaxis(rows[space][:, place.start : place.stop].reshape(place.shape), 0, place.axis)
                for axis, other, _ in labels[place.leaf].unit_axes(clusters):
                    weight = patterns[other] if axis == place.axis else shared[other]
                    block = jnp.take(block, clusters[other].ids, axis=axis)
                    block = block * along(jnp.asarray(weight, block.dtype), axis, block.ndim)
                totals[place.leaf] = totals[place.leaf] + block
        return structure.unflatten(totals)

    dtype = jnp.result_type(*leaves)
    zero = {
        space: jnp.zeros((len(clusters[space].leaders), places[-1].stop if places else 0), dtype)
        for space, places in columns.items()
    }
    return lift, zero


def block_constant_residual(variables: Variables, wiring: Wiring, clusters: Mapping[str, Clusters]) -> float:
    """`max over arrays and clusters of ||W - P W|| / ||W||` on the slices of one cluster: 0 on BC.

    P is the average over clusters along every unit axis. Each cluster is measured relative to its own slices, so a
    cluster with large entries elsewhere in the array hides nothing. NaN if any entry is NaN.
    """

    def residual(label: Label, array: jax.Array) -> float:
        values, worst = np.asarray(array, np.float64), 0.0
        if not np.isfinite(values).all():
            return np.nan
        roles = [(axis, clusters[space]) for axis, space, _ in label.unit_axes(clusters)]
        mean = values
        for axis, own in roles:
            mean = mean_over_clusters(mean, axis, own)
        for axis, own in roles:
            off, size = (_cluster_lengths(part, axis, own) for part in (values - mean, values))
            worst = max(worst, float(np.max(off / np.where(size > 0, size, 1))))
        return worst

    return float(np.max(jax.tree.leaves(wiring.map(residual, variables))))


def _cluster_lengths(array: np.ndarray, axis: int, clusters: Clusters) -> np.ndarray:
    """Norm of the slices of every cluster along one axis, scaled by its largest entry against underflow."""
    rows = np.abs(np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1))
    largest, squares = np.zeros(len(clusters.leaders)), np.zeros(len(clusters.leaders))
    np.maximum.at(largest, clusters.ids, rows.max(axis=1, initial=0.0))
    scaled = rows / np.where(largest > 0, largest, 1)[clusters.ids][:, None]
    np.add.at(squares, clusters.ids, (scaled**2).sum(axis=1))
    return largest * np.sqrt(squares)


def _pattern(clusters: Clusters) -> np.ndarray:
    """+1/sqrt(2) on the first unit of every cluster of two or more, -1/sqrt(2) on the second, 0 elsewhere."""
    pattern = np.zeros(len(clusters.ids))
    for size, units in clusters.members.items():
        if size > 1:
            pattern[units[:, 0]], pattern[units[:, 1]] = 0.5**0.5, -(0.5**0.5)
    return pattern


def _base_size(label: Label, axis: int, size: int, clusters: Mapping[str, Clusters]) -> int:
    sizes = [len(clusters[space].leaders) for index, space, _ in label.unit_axes(clusters) if index == axis]
    return sizes[0] if sizes else size
