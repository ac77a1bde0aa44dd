"""Rules for cutting and concatenating axes: direct sums."""

from itertools import pairwise

import numpy as np

from lopjax.tracing.atoms import Axis, Entry, Position, cut, expand, fresh, is_pinned, pin, reshape, sum_of, unify
from lopjax.tracing.jaxprs import Node, Program
from lopjax.tracing.primitives import Type


def segment(axis: Axis, start: int, stop: int, size: int, reason: str) -> Axis:
    """The part of an axis between two positions.

    Args:
        axis: the axis.
        start: first position.
        stop: position after the last one.
        size: length of the axis.
        reason: why atoms that are cut here would be fixed.
    """
    if start == stop:
        return fresh(0, reason)
    if start > 0:
        _, axis = cut(axis, start, reason)
    if stop < size:
        axis, _ = cut(axis, stop - start, reason)
    return axis


def slice_rule(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """A cut of an axis makes it a direct sum; every second entry of it is one of a pair, and pairs are the units."""
    shape = program.shape(node.inputs[0])
    starts, stops = (map(int, node.params[key]) for key in ("start_indices", "limit_indices"))
    strides = node.params["strides"] or (1,) * len(shape)
    out = []
    for axis, size, start, stop, stride in zip(types[0], shape, starts, stops, strides, strict=True):
        if stride != 1 and size > 1:
            out.append(every_nth(axis, (start, stop, stride), size, f"{node.where}: takes every {stride}th entry"))
        else:
            out.append(segment(axis, start, stop, size, f"{node.where}: cuts through units"))
    return [tuple(out)]


def period(bounds: tuple[int, int, int], size: int) -> tuple[int, int] | None:
    """The part of an axis that a slice with a stride takes one entry of each stride of; None if it does not fit in."""
    start, stop, stride = bounds
    first = start - start % stride
    last = first + stride * -(-(stop - start) // stride)
    return (first, last) if first < last <= size else None


def every_nth(axis: Axis, bounds: tuple[int, int, int], size: int, why: str) -> Axis:
    """One entry of each stride: the axis is so many units of a stride each, whose entries are told apart."""
    reason = Position(why)
    start, stop, stride = bounds
    part = period(bounds, size)
    if is_pinned(axis) or part is None:
        pin(axis, reason)
        return fresh(-(-(stop - start) // stride), reason)
    part_axis = segment(axis, *part, size, why)
    number = (part[1] - part[0]) // stride
    units, inner = reshape([part_axis], (number, stride), reason)
    if (rebuilt := (*units, *inner)) != tuple(expand(part_axis)):
        unify(part_axis, rebuilt, reason)  # where units were cut, both are pinned
    pin(inner, reason)
    return units


def split(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Equivalent to several slices."""
    along, sizes = node.params["axis"], node.params["sizes"]
    ends = np.cumsum([0, *sizes]).tolist()
    parts = [
        segment(types[0][along], start, stop, ends[-1], f"{node.where}: cuts through units")
        for start, stop in pairwise(ends)
    ]
    return [(*types[0][:along], part, *types[0][along + 1 :]) for part in parts]


def concatenate(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """The concatenated axes form a direct sum, the others are permuted alike."""
    along = node.params["dimension"]
    lengths = [program.shape(value)[along] for value in node.inputs]
    for other in types[1:]:
        for index, axis in enumerate(other):
            if index != along:
                unify(types[0][index], axis, node.where)
    parts = [(length, each[along]) for length, each in zip(lengths, types, strict=True) if length]
    whole = sum_of(parts, node.where) if parts else fresh(0, node.where)
    return [(*types[0][:along], whole, *types[0][along + 1 :])]


def stack(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Arrays side by side along a new axis, whose entries are told apart; their own axes are permuted alike."""
    first, *others = types
    for other in others:
        for one, axis in zip(first, other, strict=True):
            unify(one, axis, node.where)
    new = fresh(len(types), Position(f"{node.where}: puts arrays side by side"))
    along = node.params["axis"]
    return [(*first[:along], new, *first[along:])]


def unstack(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Entries along an axis, taken one by one."""
    (operand,), along = types, node.params["axis"]
    pin(operand[along], Entry(f"{node.where}: its entries are taken one by one"))
    return [(*operand[:along], *operand[along + 1 :])] * len(node.outputs)


def tile(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """So many copies of an axis: a product with copies that may be permuted at will."""
    return [tuple((*fresh(number), *axis) for number, axis in zip(node.params["reps"], types[0], strict=True))]


def padded(program: Program, node: Node, types: list[Type]) -> list[tuple[Axis, Axis, Axis]]:
    """For each axis, the padding before it, the axis, and the padding after it. The entries of a padding are equal."""
    out = []
    config = [tuple(map(int, each)) for each in node.params["padding_config"]]
    for axis, size, (low, high, interior) in zip(types[0], program.shape(node.inputs[0]), config, strict=True):
        if (interior and size > 1) or low < 0 or high < 0:
            pin(axis, f"{node.where}: moves the entries apart")
            length = low + high + size + interior * max(size - 1, 0)
            out.append(((), fresh(length, f"{node.where}: moves the entries apart"), ()))
        else:
            out.append((fresh(low) if low > 1 else (), axis, fresh(high) if high > 1 else ()))
    return out
