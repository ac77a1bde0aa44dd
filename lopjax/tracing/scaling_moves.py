"""How powers follow the entries of arrays that are moved: one rule per primitive."""

from itertools import pairwise
from math import prod

import numpy as np

from lopjax.tracing.jaxprs import Node
from lopjax.tracing.pieces import apply, counts, fit, full, merged, piece_of, pieces, rearranged
from lopjax.tracing.scaling import Scaling, all_same


def broadcast_powers(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """New axes consist of one piece."""
    shape = [1] * len(node.params["shape"])
    for index, number in zip(node.params["broadcast_dimensions"], given[0].shape, strict=True):
        shape[index] = number
    return given[0].reshape(shape)


def transpose_powers(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """Axes in another order."""
    return given[0].transpose(node.params["permutation"])


def _segment(
    scaling: Scaling, node: Node, powers: np.ndarray, result: int, axis: int, entries: np.ndarray
) -> np.ndarray:
    """The pieces of chosen entries of an axis.

    Args:
        scaling: powers of all values so far.
        node: the operation that chooses.
        powers: powers of its operand, piece by piece.
        result: which of its results.
        axis: the axis along which it chooses.
        entries: positions of the chosen entries in the operand.
    """
    program, typing = scaling.typing.program, scaling.typing
    before = piece_of(typing.of(node.inputs[0])[axis], program.shape(node.inputs[0])[axis])
    after = piece_of(typing.of(node.outputs[result])[axis], program.shape(node.outputs[result])[axis])
    if powers.shape[axis] == 1 or not len(after):
        return np.take(powers, [0], axis)
    return rearranged([powers], [before[entries]], after, axis, scaling.same(node))


def slice_powers(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """The pieces that remain."""
    (powers,) = given
    strides = node.params["strides"] or (1,) * powers.ndim
    for axis, bounds in enumerate(zip(node.params["start_indices"], node.params["limit_indices"], strides)):
        powers = _segment(scaling, node, powers, 0, axis, np.arange(*bounds))
    return powers


def split_powers(scaling: Scaling, node: Node, powers: np.ndarray) -> list[np.ndarray]:
    """The powers of each of the parts into which an array is split, one array `powers` for each."""
    axis, ends = node.params["axis"], np.cumsum([0, *node.params["sizes"]]).tolist()
    entries = [np.arange(*bounds) for bounds in pairwise(ends)]
    return [_segment(scaling, node, powers, index, axis, each) for index, each in enumerate(entries)]


def concatenate_powers(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """The pieces of all parts, which have equal powers across the other axes."""
    typing, program, along = scaling.typing, scaling.typing.program, node.params["dimension"]
    parts = [piece_of(typing.of(value)[along], program.shape(value)[along]) for value in node.inputs]
    shape = np.broadcast_shapes(*((*powers.shape[:along], 1, *powers.shape[along + 1 :]) for powers in given))
    wide = [np.broadcast_to(each, (*shape[:along], each.shape[along], *shape[along + 1 :])) for each in given]
    kept = [(each, part) for each, part in zip(wide, parts, strict=True) if len(part)]
    (out,) = node.outputs
    target = piece_of(typing.of(out)[along], program.shape(out)[along])
    if not kept:
        return given[0]
    return rearranged([each for each, _ in kept], [part for _, part in kept], target, along, scaling.same(node))


def stack_powers(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """What is put side by side has equal powers."""
    return np.expand_dims(all_same(scaling, node, given), node.params["axis"])


def pad_powers(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """A padding has the powers of what it is made of."""
    powers, value = given
    typing, program = scaling.typing, scaling.typing.program
    (out,) = node.outputs
    for axis, (low, high, interior) in enumerate(node.params["padding_config"]):
        size = program.shape(node.inputs[0])[axis]
        if not (low or high or interior):
            continue
        if (powers.shape[axis] == 1 and len(pieces(typing.of(out)[axis])) == 1) or low < 0 or high < 0 or interior:
            powers = apply(scaling.same(node), merged(powers, axis, scaling.same(node)), value)
            continue
        filled = full((1,) * powers.ndim, value[()])
        filled = np.broadcast_to(filled, [1 if index == axis else n for index, n in enumerate(powers.shape)])
        arrays = [filled, powers, filled]
        sources = [np.zeros(low, int), piece_of(typing.of(node.inputs[0])[axis], size), np.zeros(high, int)]
        target = piece_of(typing.of(out)[axis], program.shape(out)[axis])
        powers = rearranged(arrays, sources, target, axis, scaling.same(node))
    return powers


def reshape_powers(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """The same pieces, row-major."""
    shape = counts(scaling.typing.of(node.outputs[0]))
    (powers,) = given[:1]
    if prod(shape) == powers.size:
        return powers.reshape(shape)
    for axis in range(powers.ndim):
        powers = merged(powers, axis, scaling.same(node))
    return powers.reshape((1,) * len(shape))


def gather_powers(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """Indexed axes have one power; the indices have none."""
    apply(lambda powers: scaling.ledger.none(node, powers), given[1])
    numbers, powers = node.params["dimension_numbers"], given[0]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    for axis in gone:
        powers = merged(powers, axis, scaling.same(node))
    kept = powers.reshape([n for axis, n in enumerate(powers.shape) if axis not in gone])
    rank = len(scaling.typing.of(node.outputs[0]))
    return np.expand_dims(kept, tuple(index for index in range(rank) if index not in numbers.offset_dims))


def dynamic_slice_powers(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """The entries keep their powers; the start indices have none."""
    for other in given[1:]:
        apply(lambda powers: scaling.ledger.none(node, powers), other)
    return given[0]


def dynamic_update_slice_powers(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """The new entries have the powers of those that they replace."""
    for other in given[2:]:
        apply(lambda powers: scaling.ledger.none(node, powers), other)
    update = fit(given[1], given[0].shape, scaling.same(node))
    return apply(scaling.same(node), given[0], update)


def scatter_powers(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """All entries written have one power."""
    apply(lambda powers: scaling.ledger.none(node, powers), given[1])
    if node.name in ("scatter-mul", "scatter_mul"):
        return apply(lambda powers: scaling.ledger.none(node, powers), given[0])
    powers, updates = given[0], given[2]
    for axis in range(updates.ndim):
        updates = merged(updates, axis, scaling.same(node))
    return apply(lambda one: scaling.ledger.same(node, one, updates.reshape(-1)[0]), powers)


def first_powers(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """Powers of the first operand, for results that are linear in it or a selection of its entries."""
    return given[0]
