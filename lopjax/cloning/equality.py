"""How far an array is from equal totals (RE, CE) and equal entries (BC), block by block.

Clusters of units cut an array into blocks. Each block's violation is measured relative to the block's own size, so that
clusters or sources with large entries do not hide others, and rescaling a unit changes no verdict.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lopjax.wiring import Label, along

Ids = Mapping[str, np.ndarray]
"""Cluster of every unit, numbered from 0 by first appearance, per space; a space that is absent has singletons."""


class Violations(NamedTuple):
    """Of one array, per block: an axis of a clustered space is indexed by cluster, every other one as in the array.

    Attributes:
        re: largest difference between a unit's mean over a source cluster and the same mean of the first unit of its
            cluster.
        ce: the same for outgoing entries: a unit's means over target clusters.
        bc: largest difference between an entry and the first one of its block.
    """

    re: np.ndarray
    ce: np.ndarray
    bc: np.ndarray


def violations(array: np.ndarray, label: Label, ids: Ids, modulo_constants: bool = False) -> Violations:
    """Violations of RE, CE and BC, each over `block_sizes`; exactly 0 where entries are equal.

    Args:
        array: float64; 16-bit and float32 values are exact there.
        label: its axes.
        ids: clusters.
        modulo_constants: for CE and BC, ignore what is constant along the output axes, which a loss that depends only
            on differences between outputs does not see.
    """
    reads, writes = label.input_axes, label.output_axes
    sources, targets = (_clustered(label, axes, ids) for axes in (reads, writes))
    with np.errstate(all="ignore"):
        received, given = _from_first(array, label, targets, ids), _from_first(array, label, sources, ids)
        entries = _from_first(array, label, (*sources, *targets), ids)
        if modulo_constants and writes:
            given = given - given.mean(axis=writes, keepdims=True)
            entries = np.maximum(np.abs(received), np.abs(given))
        sizes = block_sizes(array, label, ids)
        by_kind = [
            _shrink(np.maximum, np.abs(_means(received, label, sources, ids)), label, targets, ids),
            _shrink(np.maximum, np.abs(_means(given, label, targets, ids)), label, sources, ids),
            _shrink(np.maximum, np.abs(entries), label, (*sources, *targets), ids),
        ]
        return Violations(*(np.where(each == 0, 0.0, each / np.where(sizes == 0, 1.0, sizes)) for each in by_kind))


def block_sizes(array: np.ndarray, label: Label, ids: Ids) -> np.ndarray:
    """What counts as the size of each block: its largest entry, or the size that its row and column suggest.

    With R, C and F the largest entries of the block's row (one source, kernel offset or position), of its column (one
    target) and of the array, the expected size is `R C / F`: for `W = diag(r) G diag(c)`, G of entries near 1, it is
    `r c`, however unequal r and c are. A block near 0 among others of size 1 is measured against 1.

    Args:
        array: float64.
        label: its axes.
        ids: clusters.
    """
    size = _shrink(np.maximum, np.abs(array), label, range(array.ndim), ids)
    writes = label.output_axes
    others = tuple(axis for axis in range(array.ndim) if axis not in writes)
    largest = size.max()
    if not largest > 0:
        return size
    rows, columns = size.max(axis=writes, keepdims=True), size.max(axis=others, keepdims=True)
    return np.maximum(size, rows * (columns / largest))


def totals(array: np.ndarray, label: Label, axis: int, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    """What each unit of one axis gets from (or gives to) every cluster, and the sizes to measure it by.

    For an output axis only input axes are averaged, and the reverse; a second axis of the same role is kept entry by
    entry, because equal means over it would not make the blocks equal.

    Args:
        array: float64.
        label: its axes.
        axis: the units' axis.
        ids: clusters; those of the units' own space determine which units are compared.

    Returns:
        Two arrays `(units, features)`.
    """
    own, across = label.input_axes, label.output_axes
    if axis in across:
        own, across = across, own
    means = _means(array, label, _clustered(label, across, ids), ids)
    sizes = block_sizes(array, label, ids)
    for other in _clustered(label, own, ids):
        sizes = np.take(sizes, ids[_space(label, other)], axis=other)
    return tuple(np.moveaxis(each, axis, 0).reshape(array.shape[axis], -1) for each in (means, sizes))  # type: ignore


def _space(label: Label, axis: int) -> str:
    role = label.axes[axis]
    return "" if role is None else role.space


def _clustered(label: Label, axes: tuple[int, ...], ids: Ids) -> tuple[int, ...]:
    return tuple(axis for axis in axes if _space(label, axis) in ids)


def _from_first(array: np.ndarray, label: Label, axes: tuple[int, ...], ids: Ids) -> np.ndarray:
    """Every entry minus that of the first units of its clusters along these axes."""
    first = array
    for axis in axes:
        cluster = ids[_space(label, axis)]
        _, leaders = np.unique(cluster, return_index=True)
        first = np.take(first, leaders[cluster], axis=axis)
    return array - first


def _means(array: np.ndarray, label: Label, axes: tuple[int, ...], ids: Ids) -> np.ndarray:
    summed = _shrink(np.add, array, label, axes, ids)
    for axis in axes:
        counts = np.bincount(ids[_space(label, axis)])
        summed = summed / along(counts, axis, array.ndim)
    return summed


def _shrink(ufunc: np.ufunc, array: np.ndarray, label: Label, axes: "tuple[int, ...] | range", ids: Ids) -> np.ndarray:
    """Sum or maximum over the members of every cluster along these axes."""
    for axis in axes:
        cluster = ids.get(_space(label, axis))
        if cluster is not None:
            order = np.argsort(cluster, kind="stable")
            starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
            array = ufunc.reduceat(np.take(array, order, axis=axis), starts, axis=axis)
    return array
