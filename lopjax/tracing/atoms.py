"""The structure of an axis: products and direct sums of leaves, found as the program is read.

An axis is a row-major product of atoms. An atom is a *leaf* (units that may be permuted alike wherever the leaf
occurs), a product (found by a reshape) or a direct sum (found by a slice, a split, a concatenation). Atoms that the
program forces to be permuted alike are united; what is learned later holds everywhere, since only the structure of
atoms changes, never the atoms that an axis has. A *pinned* leaf cannot be permuted at all, and records why.
"""

from math import prod

import numpy as np

Axis = tuple["Atom", ...]


class Position(str):
    """The reason of a leaf whose entries are positions (offsets of a kernel, steps of a loop), not units."""


class Entry(Position):
    """The reason of a leaf whose entries are taken one by one: what is behind them need not be alike."""


class Atom:
    """A factor of an axis. Call `find` on it before reading it, as it may have been united with another.

    Attributes:
        size: number of entries, more than 1.
        product: the axis of its factors, or None.
        parts: the axes that it is a direct sum of, with their sizes; or None.
        reason: why it is pinned; None if it is not. For leaves only.
    """

    __slots__ = ("parent", "parts", "product", "reason", "size")

    def __init__(self, size: int, reason: str | None = None):
        self.size, self.reason = size, reason
        self.parent: Atom | None = None
        self.product: Axis | None = None
        self.parts: list[tuple[int, Axis]] | None = None

    @property
    def is_leaf(self) -> bool:
        """Whether no structure has been found."""
        return self.product is None and self.parts is None


def find(atom: Atom) -> Atom:
    """The representative of all atoms united with this one."""
    while atom.parent is not None:
        if atom.parent.parent is not None:
            atom.parent = atom.parent.parent
        atom = atom.parent
    return atom


def fresh(size: int, reason: str | None = None) -> Axis:
    """A new axis of one leaf, pinned if a reason is given; axes of length 1 have no atoms."""
    return () if size == 1 else (Atom(size, reason),)


def size_of(axis: Axis) -> int:
    """Length of an axis."""
    return prod(atom.size for atom in axis)


def expand(axis: Axis) -> list[Atom]:
    """The factors of an axis, with products resolved: leaves and sums.

    A sum whose entries are all pinned, or of size 1, is a pinned leaf.
    """
    expanded: list[Atom] = []
    for atom in map(find, axis):
        if atom.parts is not None and all(is_pinned(part) for _, part in atom.parts):
            known = [leaf.reason for _, part in atom.parts for leaf in leaves(part)]
            atom.parts, atom.reason = None, known[0] if known else Entry("its entries are taken one by one")
        expanded += [atom] if atom.product is None else expand(atom.product)
    return expanded


def leaves(axis: Axis) -> list[Atom]:
    """All leaves under an axis, every occurrence."""
    flat: list[Atom] = []
    for atom in expand(axis):
        flat += [atom] if atom.parts is None else [leaf for _, part in atom.parts for leaf in leaves(part)]
    return flat


def pin(axis: Axis, reason: str) -> None:
    """Record that nothing under an axis may be permuted."""
    for leaf in leaves(axis):
        if leaf.reason is None:
            leaf.reason = reason


def is_pinned(axis: Axis) -> bool:
    """Whether nothing under an axis may be permuted."""
    return all(leaf.reason is not None for leaf in leaves(axis))


# --- Refinement: a leaf turns out to be a product or a sum -------------------


def split_product(leaf: Atom, outer: int) -> Axis:
    """Refine a leaf into a factor of size `outer` times the rest."""
    leaf.product = (*fresh(outer, leaf.reason), *fresh(leaf.size // outer, leaf.reason))
    leaf.reason = None
    return leaf.product


def sum_of(parts: list[tuple[int, Axis]], reason: str) -> Axis:
    """The direct sum of axes; one pinned leaf if all are pinned."""
    if len(parts) == 1:
        return parts[0][1]
    size = sum(length for length, _ in parts)
    if all(is_pinned(part) for _, part in parts):
        known = [leaf.reason for _, part in parts for leaf in leaves(part)]
        return fresh(size, known[0] if known else Position(reason))
    atom = Atom(size)
    atom.parts = parts
    return (atom,)


def cut(axis: Axis, at: int, reason: str) -> tuple[Axis, Axis]:
    """The axes before and after a position; both are pinned where the cut cannot be expressed."""
    size = size_of(axis)
    factors = expand(axis)
    inner = prod(atom.size for atom in factors[1:])
    if not is_pinned(axis) and factors:
        if len(factors) == 1:
            return _cut_atom(factors[0], at, reason)
        if at % inner == 0:
            left, right = _cut_atom(factors[0], at // inner, reason)
            return (*left, *factors[1:]), (*right, *factors[1:])
        pin(axis, reason)
    known = next((leaf.reason for leaf in leaves(axis)), None) or reason
    return fresh(at, known), fresh(size - at, known)


def _cut_atom(atom: Atom, at: int, reason: str) -> tuple[Axis, Axis]:
    if atom.is_leaf:
        if atom.reason is not None:
            return fresh(at, atom.reason), fresh(atom.size - at, atom.reason)
        atom.parts = [(at, fresh(at)), (atom.size - at, fresh(atom.size - at))]
    assert atom.parts is not None
    start = 0
    for index, (length, part) in enumerate(atom.parts):
        if start < at < start + length:
            left, right = cut(part, at - start, reason)
            atom.parts[index : index + 1] = [(at - start, left), (start + length - at, right)]
            break
        start += length
    ends = np.cumsum([length for length, _ in atom.parts]).tolist()
    index = ends.index(at) + 1
    return sum_of(atom.parts[:index], reason), sum_of(atom.parts[index:], reason)


def equal_segments(atom: Atom, reason: str) -> bool:
    """Turn a sum of n axes of equal length into n times one axis: segments are united, their index is pinned."""
    assert atom.parts is not None
    if len({length for length, _ in atom.parts}) != 1:
        return False
    parts, atom.parts = atom.parts, None
    (_, first), *others = parts
    atom.product = (*fresh(len(parts), Position(reason)), *first)
    for _, other in others:
        unify(first, other, reason)
    return True


# --- Unification: two axes are permuted alike --------------------


def unify(left: Axis, right: Axis, reason: str) -> None:
    """Record that two axes of the same length are permuted alike; if their structures do not fit, both are pinned."""
    one, other = expand(left), expand(right)
    while one and other:
        # An atom that occurs twice on an axis may have been united or refined since its first occurrence was handled.
        a, b = find(one.pop(0)), find(other.pop(0))
        if a.product is not None or b.product is not None:
            one[:0], other[:0] = expand((a,)), expand((b,))
            continue
        if a is b:
            continue
        if a.size == b.size:
            _unite(a, b, reason)
            continue
        swapped = a.size < b.size
        big, small = (b, a) if swapped else (a, b)
        rest = _front(big, small.size, reason)
        if rest is None:
            for atom in (a, b, *one, *other):
                pin((atom,), reason)
            return
        (other if swapped else one)[:0] = rest
        (one if swapped else other).insert(0, small)
    assert not any(atom.size > 1 for atom in (*one, *other)), "axes of different lengths"


def _front(atom: Atom, size: int, reason: str) -> list[Atom] | None:
    """The factors of an atom, the first of a given smaller size or of a divisor of it; None if that is impossible."""
    if atom.size % size:
        return None
    if atom.is_leaf:
        return list(split_product(atom, size))
    if atom.parts is not None:
        number = len(atom.parts)
        if (number % size == 0 or size % number == 0) and equal_segments(atom, reason):
            return expand((atom,))
    return None


def _unite(a: Atom, b: Atom, reason: str) -> None:
    """Unite two atoms of the same size, leaves or sums."""
    if not a.is_leaf and not b.is_leaf:
        _unite_sums(a, b, reason)
        return
    leaf, other = (a, b) if a.is_leaf else (b, a)
    leaf.parent = other
    if leaf.reason is not None:
        pin((other,), leaf.reason)


def _unite_sums(a: Atom, b: Atom, reason: str) -> None:
    for one, other in ((a, b), (b, a)):
        assert one.parts is not None
        for at in np.cumsum([length for length, _ in one.parts])[:-1].tolist():
            _cut_atom(other, at, reason)
    assert a.parts is not None
    assert b.parts is not None
    if [length for length, _ in a.parts] != [length for length, _ in b.parts]:
        pin((a, b), reason)
        return
    pairs = list(zip(a.parts, b.parts, strict=True))
    b.parts, b.parent = None, a
    for (_, one), (_, other) in pairs:
        unify(one, other, reason)


# --- Reshapes ----------------------------------------


def reshape(axes: list[Axis], sizes: tuple[int, ...], reason: str) -> list[Axis]:
    """The axes of a reshaped array. Where no factors of the old axes multiply to a new one, the group is pinned."""
    atoms = [atom for axis in axes for atom in expand(axis)]
    made: list[Axis] = []
    todo = list(sizes)
    if 0 in sizes:
        pin(tuple(atoms), reason)
        return [fresh(size, reason) for size in sizes]
    while todo:
        before, taken = list(atoms), _take(atoms, todo[0], reason)
        if taken is not None:
            made.append(taken)
            todo.pop(0)
            continue
        # The smallest group of old and new axes with equal numbers of entries.
        atoms, group, count, total = before, [], 0, 1
        while count == 0 or prod(atom.size for atom in group) != total:
            if prod(atom.size for atom in group) < total or not todo[count:]:
                group.append(atoms.pop(0))
            else:
                total *= todo[count]
                count += 1
        pin(tuple(group), reason)
        made += [fresh(size, reason) for size in todo[:count]]
        todo = todo[count:]
    return made


def _take(atoms: list[Atom], size: int, reason: str) -> Axis | None:
    """Take factors with a given product off the front of a list; None if there are none (the list is then spoilt)."""
    taken: list[Atom] = []
    while size > 1:
        atom = find(atoms.pop(0))
        if atom.product is not None:
            atoms[:0] = expand((atom,))
        elif size % atom.size == 0:
            taken.append(atom)
            size //= atom.size
        else:
            front = _front(atom, size, reason)
            if front is None:
                return None
            atoms[:0] = front
    return tuple(taken)
