"""Rules for cutting and concatenating axes: direct sums."""

from itertools import pairwise

import numpy as np

from lopjax.tracing.atoms import Axis, Position, cut, fresh, pin, sum_of, unify
from lopjax.tracing.jaxprs import Node, Program
from lopjax.tracing.primitives import Type


def segment(axis: Axis, start: int, stop: int, size: int, reason: str) -> Axis:
    """The part of an axis between two positions."""
    if start == stop:
        return fresh(0, reason)
    if start > 0:
        _, axis = cut(axis, start, reason)
    if stop < size:
        axis, _ = cut(axis, stop - start, reason)
    return axis


def slice_rule(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """A cut of an axis makes it a direct sum; taking every second entry does not."""
    shape = program.shape(node.inputs[0])
    starts, stops = (map(int, node.params[key]) for key in ("start_indices", "limit_indices"))
    strides = node.params["strides"] or (1,) * len(shape)
    out = []
    for axis, size, start, stop, stride in zip(types[0], shape, starts, stops, strides, strict=True):
        if stride != 1 and size > 1:
            pin(axis, reason := Position(f"{node.where}: takes every {stride}th entry"))
            out.append(fresh(-(-(stop - start) // stride), reason))
        else:
            out.append(segment(axis, start, stop, size, f"{node.where}: cuts through units"))
    return [tuple(out)]


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
