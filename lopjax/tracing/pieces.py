"""An axis in pieces: one for each choice of a summand in its direct sums, in the order of its entries.

Properties of a whole piece (how it scales when units are cloned, its role) are kept in a small array with the axes of
the value itself and one entry per piece, so that transposing, slicing and reshaping apply to it as to the value.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lopjax.tracing.atoms import Atom, Axis, expand, is_pinned, leaves
from lopjax.tracing.primitives import Type


def pieces(axis: Axis) -> list[tuple[Atom, ...]]:
    """The leaves of each piece of an axis; an axis that is entirely pinned is one piece."""
    combinations: list[tuple[Atom, ...]] = [()]
    for atom in expand(axis):
        if atom.parts is None:
            options = [(atom,)]
        elif is_pinned((atom,)):
            options = [tuple(leaves((atom,)))]
        else:
            options = [piece for _, part in atom.parts for piece in pieces(part)]
        combinations = [one + other for one in combinations for other in options]
    return combinations


def counts(axes: Type) -> tuple[int, ...]:
    """Number of pieces of each axis."""
    return tuple(len(pieces(axis)) for axis in axes)


def piece_of(axis: Axis, length: int) -> np.ndarray:
    """The number of the piece that contains each entry of an axis, `(length,)`."""
    if length == 0 or len(pieces(axis)) == 1:
        return np.zeros(length, int)
    indices = np.zeros(1, int)
    for atom in expand(axis):
        if atom.parts is None or is_pinned((atom,)):
            inner, number = np.zeros(atom.size, int), 1
        else:
            lists, number = [], 0
            for size, part in atom.parts:
                lists.append(piece_of(part, size) + number)
                number += len(pieces(part))
            inner = np.concatenate(lists)
        indices = (indices[:, None] * number + inner).reshape(-1)
    return indices


Merge = Callable[[Any, Any], Any]
"""Combines the properties of two pieces that become one."""


def apply(function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """Apply a function to the entries of arrays, with broadcasting."""
    made = np.frompyfunc(function, len(arrays), 1)(*arrays)
    if isinstance(made, np.ndarray):
        return made
    return full((), made)


def full(shape: tuple[int, ...], entry: Any) -> np.ndarray:
    """An array with the same object in every entry."""
    made = np.empty(shape, object)
    for index in np.ndindex(shape):
        made[index] = entry
    return made


def merged(array: np.ndarray, axis: int, merge: Merge) -> np.ndarray:
    """All pieces of an axis merged into one, of size 1 along it."""
    rows = np.moveaxis(array, axis, 0)
    total = rows[0]
    for row in rows[1:]:
        total = apply(merge, np.asarray(total, object), np.asarray(row, object))
    if not isinstance(total, np.ndarray):
        total = full((), total)
    return np.expand_dims(total, axis)


def fit(array: np.ndarray, shape: tuple[int, ...], merge: Merge) -> np.ndarray:
    """An array with the requested numbers of pieces: several are merged into one, or one is repeated."""
    for axis, number in enumerate(shape):
        if array.shape[axis] != number and array.shape[axis] != 1:
            array = merged(array, axis, merge)
    return np.broadcast_to(array, shape)


def rearranged(
    arrays: Sequence[np.ndarray], sources: Sequence[np.ndarray], target: np.ndarray, axis: int, merge: Merge
) -> np.ndarray:
    """Pieces along an axis whose entries come from other arrays.

    Args:
        arrays: the arrays from which the entries come, in order.
        sources: for each array, the piece that contains each of its entries.
        target: the piece that contains each entry of the result.
        axis: the axis.
        merge: as in `merged`.
    """
    starts = np.cumsum([0, *(len(source) for source in sources)])
    made = []
    for piece in range(int(target.max(initial=0)) + 1):
        parts = []
        for array, source, start in zip(arrays, sources, starts, strict=False):
            inside = target[start : start + len(source)] == piece
            parts += [np.take(array, [each], axis) for each in np.unique(source[inside])]
        made.append(merged(np.concatenate(parts, axis), axis, merge))
    return np.concatenate(made, axis)
