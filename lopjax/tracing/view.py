"""The user's arrays in pieces with pure axes, and back, by slices and reshapes.

A piece is one choice of a summand in each direct sum of an array's axes; its axes are the factors of products. Entries
are only reordered, so gradients, inner products and Hessians are those of the user's arrays.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lopjax.tracing.atoms import Atom, Axis, expand, is_pinned, leaves


class Factor(NamedTuple):
    """A factor of an axis: units of one space, entries that are not units, or a direct sum.

    Attributes:
        size: number of entries.
        space: the units' space; None if the entries are not units.
        parts: the factors of each summand; empty if it is not a sum.
    """

    size: int
    space: str | None = None
    parts: tuple[tuple["Factor", ...], ...] = ()

    def resized(self, sizes: Mapping[str, int]) -> "Factor":
        """The same with other numbers of units."""
        if self.parts:
            parts = tuple(tuple(factor.resized(sizes) for factor in part) for part in self.parts)
            return Factor(sum(prod(factor.size for factor in part) for part in parts), None, parts)
        return self._replace(size=sizes.get(self.space, self.size) if self.space is not None else self.size)


Run = tuple[Atom, ...]
"""The leaves of one factor: a single free one, or neighbouring pinned ones."""


def runs(axis: Axis) -> list[Run | list[list[Any]]]:
    """The factors of an axis: runs of leaves; a direct sum is the list of its summands' factors.

    An axis of length 1 is an empty run, so that arrays keep their numbers of axes.
    """
    groups: list[Any] = []
    for atom in expand(axis):
        if is_pinned((atom,)):
            own = tuple(leaves((atom,)))
            if groups and isinstance(groups[-1], tuple) and groups[-1][0].reason is not None:
                groups[-1] += own
            else:
                groups.append(own)
        elif atom.parts is None:
            groups.append((atom,))
        else:
            groups.append([runs(part) for _, part in atom.parts])
    return groups or [()]


def runs_of_pieces(axes: Sequence[Axis]) -> Iterator[tuple[Run, ...]]:
    """The runs of each piece of an array, in the order of `Layout.split`."""

    def flat(items: list[Any]) -> Iterator[tuple[Run, ...]]:
        at = next((index for index, item in enumerate(items) if isinstance(item, list)), None)
        if at is None:
            yield tuple(items)
            return
        for part in items[at]:
            yield from flat([*items[:at], *part, *items[at + 1 :]])

    yield from flat([item for axis in axes for item in runs(axis)])


def factors(axis: Axis, spaces: Mapping[Run, str]) -> tuple[Factor, ...]:
    """The factors of an axis, with the names of their spaces."""

    def named(item: Any) -> Factor:
        if isinstance(item, list):
            parts = tuple(tuple(named(each) for each in part) for part in item)
            return Factor(sum(prod(factor.size for factor in part) for part in parts), None, parts)
        return Factor(prod(leaf.size for leaf in item), spaces.get(item))

    return tuple(named(item) for item in runs(axis))


@dataclass(frozen=True)
class Layout:
    """How one array is cut into pieces; static.

    Attributes:
        axes: the factors of each axis.
    """

    axes: tuple[tuple[Factor, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole array."""
        return tuple(prod(factor.size for factor in axis) for axis in self.axes)

    def resized(self, sizes: Mapping[str, int]) -> "Layout":
        """The layout of the array in a network with other numbers of units."""
        return Layout(tuple(tuple(factor.resized(sizes) for factor in axis) for axis in self.axes))

    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the pieces."""
        return [tuple(factor.size for factor in piece) for piece in _flat_pieces(self._flat())]

    def split(self, array: Any) -> list[Any]:
        """The pieces of an array."""
        return _split(self._flat(), array.reshape([factor.size for factor in self._flat()]))

    def merge(self, pieces: Sequence[Any]) -> Any:
        """The array whose pieces these are."""
        return _merge(self._flat(), iter(pieces)).reshape(self.shape)

    def _flat(self) -> tuple[Factor, ...]:
        return tuple(factor for axis in self.axes for factor in axis)


def _opened(flat: tuple[Factor, ...]) -> tuple[int, list[tuple[Factor, ...]]] | None:
    """The position of the first direct sum, and the factors with each of its summands substituted for it."""
    at = next((index for index, factor in enumerate(flat) if factor.parts), None)
    return None if at is None else (at, [(*flat[:at], *part, *flat[at + 1 :]) for part in flat[at].parts])


def _flat_pieces(flat: tuple[Factor, ...]) -> list[tuple[Factor, ...]]:
    opened = _opened(flat)
    return [flat] if opened is None else [piece for part in opened[1] for piece in _flat_pieces(part)]


def _split(flat: tuple[Factor, ...], array: Any) -> list[Any]:
    opened = _opened(flat)
    if opened is None:
        return [array]
    at, parts = opened
    sizes = [prod(factor.size for factor in part) for part in flat[at].parts]
    ends = np.cumsum([0, *sizes]).tolist()
    before = (slice(None),) * at
    return [
        piece
        for part, start, stop in zip(parts, ends[:-1], ends[1:], strict=True)
        for piece in _split(part, array[(*before, slice(start, stop))].reshape([factor.size for factor in part]))
    ]


def _merge(flat: tuple[Factor, ...], pieces: Iterator[Any]) -> Any:
    opened = _opened(flat)
    if opened is None:
        return next(pieces).reshape([factor.size for factor in flat])
    at, parts = opened
    shape = [factor.size for factor in flat]
    merged = []
    for part, summand in zip(parts, flat[at].parts, strict=True):
        size = prod(factor.size for factor in summand)
        merged.append(_merge(part, pieces).reshape([*shape[:at], size, *shape[at + 1 :]]))
    join = np.concatenate if all(isinstance(each, np.ndarray) for each in merged) else jnp.concatenate
    return join(merged, at)
