"""The claims of a network's labels, each tested on the network itself.

Every function takes a `Probe`, a network at generic parameters, and returns one sentence for each claim that fails.
Only forward passes of one compiled program are needed: parameters, activations and pre-activations are changed, and
quantities that should not change according to the labels are compared. Names, shapes and the order of layers are
not used.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np

from lopjax.wiring import In, Label, Out, Path, Wiring

Arrays = Mapping[Path, np.ndarray]
Shifts = Mapping[str, tuple[np.ndarray | None, np.ndarray | None]]
"""Shifts added to pre- and to post-activations, per site."""


class Seen(NamedTuple):
    """One forward pass.

    Attributes:
        logits: logits of the network.
        pre: pre-activations per site, units last.
        post: activations per site.
    """

    logits: np.ndarray
    pre: Mapping[str, np.ndarray]
    post: Mapping[str, np.ndarray]


class Probe(NamedTuple):
    """A network to be tested.

    Attributes:
        wiring: the claims.
        run: `(arrays, shifts) -> Seen`.
        arrays: generic parameters and statistics, by path.
        seen: the pass without any change.
        inputs: inputs of all passes, in float64 if they are floating point numbers.
        tolerance: relative difference that rounding can cause.
        is_cloned_as_labelled: whether the network with two copies of every unit of a space, made by its labels,
            computes the same; False where there is no wider network.
        pieces: paths of the pieces of arrays on one of whose axes several spaces lie.
    """

    wiring: Wiring
    run: Callable[[Arrays, Shifts], Seen]
    arrays: Arrays
    seen: Seen
    inputs: np.ndarray
    tolerance: float
    is_cloned_as_labelled: Callable[[str], bool] = lambda space: False
    pieces: frozenset[Path] = frozenset()

    def label(self, path: Path) -> Label:
        """The label of an array."""
        return dict(self.wiring.labels)[path]

    def differs(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Whether two arrays differ by more than rounding; non-finite arrays always differ."""
        size = max(float(np.abs(one).max(initial=0.0)), float(np.abs(other).max(initial=0.0)))
        return one.shape != other.shape or not float(np.abs(one - other).max(initial=0.0)) <= self.tolerance * size


def name(path: Path) -> str:
    """A path as one string."""
    return "/".join(path)


def site_to_name(probe: Probe, path: Path, site: str) -> str:
    """What an array's label lacks to name a site; for a piece of a fused array, in the label of the whole."""
    if path not in probe.pieces:
        return f"site={site!r}"
    return f"site={{{dict(probe.wiring.sites)[site].space!r}: {site!r}}} for {name(path[:-1])}"


def shape_faults(probe: Probe) -> list[str]:
    """Every site carries one number for each unit of its space, units last."""
    faults = []
    for site, (space, _) in probe.wiring.sites:
        shape = probe.seen.pre[site].shape
        if not shape or shape[-1] != probe.wiring.size(space):
            faults.append(
                f"site {site!r} carries an array of shape {shape}, whose last axis must be the "
                f"{probe.wiring.size(space)} units of {space!r}: tap another space, or move the units last"
            )
    return faults


# --- Symmetry: exchanging the units of a space --------------------


def symmetry_faults(probe: Probe) -> list[str]:
    """Exchanging the units of a space, in every array at once, exchanges its activations and nothing else."""
    free = [space for space in probe.wiring.spaces if space not in probe.wiring.fixed]
    if _is_symmetric(probe, free, probe.arrays):
        return []
    faults = []
    for space in free:
        if not _is_symmetric(probe, [space], probe.arrays):
            faults.append(
                _culprit(probe, space)
                or f"unit space {space!r}: exchanging its units in {_having(probe.wiring, space)} changes what the "
                "network does; one of these labels is wrong, an array is missing, or something distinguishes its units"
            )
    return faults


def _is_symmetric(probe: Probe, spaces: Sequence[str], arrays: Arrays, but: tuple[Path, int] | None = None) -> bool:
    """Whether units may be exchanged; `but` toggles one axis of one array."""
    moved = {}
    for path, array in arrays.items():
        axes = {axis.index for axis in probe.label(path).unit_axes(spaces)}
        if but is not None and but[0] == path:
            axes ^= {but[1]}
        # One long cycle: a random permutation of two or three units is often the identity.
        moved[path] = np.roll(array, 1, tuple(axes)) if axes else array
    seen = probe.run(moved, {})
    same = not probe.differs(seen.logits, probe.seen.logits)
    for site, (space, _) in probe.wiring.sites:
        expected = np.roll(probe.seen.pre[site], 1, -1) if space in spaces else probe.seen.pre[site]
        # Other units may index what a unit does at a site (its coordinates, groups), whose exchange shows there.
        sizes = {probe.wiring.size(each) for each in spaces}
        axes = [axis for axis, size in enumerate(expected.shape[:-1]) if axis and size in sizes]
        chosen = chain.from_iterable(combinations(axes, number) for number in range(len(axes) + 1))
        same = same and (
            any(not probe.differs(seen.pre[site], np.roll(expected, 1, each)) for each in chosen)
            or not probe.differs(_in_any_order(seen.pre[site]), _in_any_order(expected))
        )
    return same


def _in_any_order(pre: np.ndarray) -> np.ndarray:
    """What every unit does at all of its coordinates, sorted: others may index a part of them, beside a padding."""
    return np.sort(pre.reshape(len(pre), -1, pre.shape[-1]), 1)


def _culprit(probe: Probe, space: str) -> str:
    """The one axis whose label alone would have to change; empty if there is none or several."""
    possible = [
        (path, index)
        for path, array in probe.arrays.items()
        for index, (size, axis) in enumerate(zip(array.shape, probe.label(path).axes, strict=True))
        if size == probe.wiring.size(space) and axis in (None, In(space), Out(space))
    ]
    guesses = [each for each in possible if _is_symmetric(probe, [space], probe.arrays, each)]
    if len(guesses) != 1:
        return ""
    ((path, index),) = guesses
    claimed = probe.label(path).axes[index]
    truth = "indexes" if claimed is None else "does not index"
    return f"{name(path)}: axis {index} is labelled {claimed}, but it {truth} the units of {space!r}"


# --- Cloning: reads are summed, writes are not --------------------


def cloning_faults(probe: Probe) -> list[str]:
    """Spaces where units with equal incoming slices act differently, or more than the sum of outgoing ones matters.

    The first two units of each space are compared. If neither fault occurs, repeating units and dividing the arrays
    that read them preserves the function; if changing the label of one axis would remove a fault, that label is named.
    """
    faults = []
    for space in _of_two(probe, probe.wiring.cloneable):
        equal = copied(probe, space)
        before = probe.run(equal, {})
        sites = [site for site, (other, _) in probe.wiring.sites if other == space]
        if any(probe.differs(before.pre[site][..., 0], before.pre[site][..., 1]) for site in sites):
            writers = [name(path) for path, _ in probe.wiring.incoming(space)]
            faults.append(
                _hidden_writer(probe, space, sites, equal)
                or f"unit space {space!r}: units with equal slices of {writers} do not act alike: an axis that writes "
                "it lacks the label, or is labelled In"
            )
        elif not _same(probe, probe.run(moved_between(probe, space, equal), {}), before):
            readers = [name(path) for path, _ in probe.wiring.outgoing(space)]
            faults.append(
                f"unit space {space!r}: of units that act alike, more matters than the sum of their slices of "
                f"{readers}: it is read elsewhere, or what reads it is not a sum (label it as fixed)"
            )
        faults += _roles(probe, space, equal, before)
    return faults


def _hidden_writer(probe: Probe, space: str, sites: Sequence[str], equal: Arrays) -> str:
    """The array that is labelled as reading a space although it writes it; empty if it does not explain the fault."""
    for path, index in probe.wiring.outgoing(space):
        seen = probe.run({**equal, path: with_equal_units(equal[path], index)}, {})
        if not any(probe.differs(seen.pre[site][..., 0], seen.pre[site][..., 1]) for site in sites):
            return f"{name(path)}: axis {index} is labelled In({space!r}), but it writes the space: Out({space!r})"
    return ""


def _roles(probe: Probe, space: str, equal: Arrays, before: Seen) -> list[str]:
    """Arrays that are labelled as writing a space although they read it."""
    faults = []
    for path, index in probe.wiring.incoming(space):
        array = equal[path]
        for_first, for_both = np.zeros(array.shape[index]), np.zeros(array.shape[index])
        for_first[0], for_both[:2] = 0.7, (0.7, -0.7)
        has_effect = not _same(probe, probe.run({**equal, path: scaled(array, index, for_first)}, {}), before)
        is_sum = has_effect and _same(probe, probe.run({**equal, path: scaled(array, index, for_both)}, {}), before)
        # Of clones of an expert only the sum matters, but the softmax that weights them divides already.
        if is_sum and not probe.is_cloned_as_labelled(space):
            faults.append(
                f"{name(path)}: axis {index} is labelled Out({space!r}), but it reads the space: In({space!r})"
            )
    return faults


def copied(probe: Probe, space: str) -> dict[Path, np.ndarray]:
    """The network with its second unit equal to the first, in all arrays that write it."""
    arrays = dict(probe.arrays)
    for path, index in probe.wiring.incoming(space):
        arrays[path] = with_equal_units(arrays[path], index)
    return arrays


def with_equal_units(array: np.ndarray, axis: int) -> np.ndarray:
    """An array whose second slice along an axis is the first."""
    order = np.arange(array.shape[axis])
    order[1] = 0
    return np.take(array, order, axis=axis)


def moved_between(probe: Probe, space: str, arrays: Arrays) -> dict[Path, np.ndarray]:
    """The network with a part of what reads its second unit moved to the first one."""
    moved = dict(arrays)
    for path, index in probe.wiring.outgoing(space):
        rows = np.moveaxis(moved[path].copy(), index, 0)
        part = 0.7 * rows[1]
        rows[0], rows[1] = rows[0] + part, rows[1] - part
        moved[path] = np.moveaxis(rows, 0, index)
    return moved


def coupling_faults(probe: Probe) -> list[str]:
    """A unit that nothing reads has no influence, unless its space is declared as averaged over."""
    faults = []
    for space in _of_two(probe, probe.wiring.cloneable):
        if space in probe.wiring.coupled:
            continue
        other = dict(probe.arrays)
        for path, index in probe.wiring.incoming(space):
            other[path] = scaled(other[path], index, np.eye(other[path].shape[index])[1])
        unread = [dict(probe.arrays), other]
        for arrays in unread:
            for path, index in probe.wiring.outgoing(space):
                arrays[path] = scaled(arrays[path], index, -np.eye(arrays[path].shape[index])[1])
        first, second = (probe.run(arrays, {}) for arrays in unread)
        if probe.differs(first.logits, second.logits):
            faults.append(
                f"unit space {space!r}: a unit that no labelled array reads still acts on the others: something "
                "averages over the units (say so with lopjax.models.couple), or reads them without a label"
            )
    return faults


def _of_two(probe: Probe, spaces: Iterable[str]) -> list[str]:
    return [space for space in spaces if probe.wiring.size(space) > 1]


def scaled(array: np.ndarray, axis: int, by: np.ndarray) -> np.ndarray:
    """Slices along an axis times `1 + by`."""
    return array * (1 + np.expand_dims(by, [other for other in range(array.ndim) if other != axis]))


def _same(probe: Probe, one: Seen, other: Seen) -> bool:
    pairs = [(one.logits, other.logits), *((one.post[site], other.post[site]) for site in one.post)]
    return not any(probe.differs(*pair) for pair in pairs)


def _having(wiring: Wiring, space: str) -> list[str]:
    return sorted({name(path) for path, _ in (*wiring.incoming(space), *wiring.outgoing(space))})
