"""Rules for contractions, convolutions and sliding windows."""

from lopjax.tracing.atoms import Axis, Position, expand, fresh, pin, reshape, size_of, unify
from lopjax.tracing.jaxprs import Node, Program
from lopjax.tracing.primitives import Type, unknown


def dot_general(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Contracted axes, and batch axes, are permuted alike in both operands."""
    left, right = types
    (contract_l, contract_r), (batch_l, batch_r) = node.params["dimension_numbers"]
    for one, other in zip((*contract_l, *batch_l), (*contract_r, *batch_r), strict=True):
        unify(left[one], right[other], node.where)
    batch = [left[index] for index in batch_l]
    free_l = [axis for index, axis in enumerate(left) if index not in (*contract_l, *batch_l)]
    free_r = [axis for index, axis in enumerate(right) if index not in (*contract_r, *batch_r)]
    return [(*batch, *free_l, *free_r)]


def convolution(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Channels behave as in a product, positions are pinned; with g groups, channels are g times those of a group."""
    image, kernel = types
    numbers = node.params["dimension_numbers"]
    (batch, channels, *places) = numbers.lhs_spec
    (written, read, *offsets) = numbers.rhs_spec
    (out_batch, out_channels, *out_places) = numbers.out_spec
    if node.params["batch_group_count"] != 1:
        return unknown(program, node, types)
    reason = Position(f"{node.where}: positions of a convolution")
    for axis in (*(image[index] for index in places), *(kernel[index] for index in offsets)):
        pin(axis, reason)
    groups = node.params["feature_group_count"]
    image_channels, kernel_channels = image[channels], kernel[written]
    if groups > 1:
        (group, inner), (other, _) = (_groups(axis, groups, node.where) for axis in (image_channels, kernel_channels))
        unify(group, other, node.where)
        image_channels = inner
    unify(image_channels, kernel[read], node.where)
    shape = program.shape(node.outputs[0])
    out: list[Axis] = [()] * len(shape)
    out[out_batch], out[out_channels] = image[batch], kernel_channels
    for index in out_places:
        out[index] = fresh(shape[index], reason)
    return [tuple(out)]


def _groups(axis: Axis, groups: int, reason: str) -> tuple[Axis, Axis]:
    """An axis as a number of groups times the rest."""
    size = size_of(axis)
    outer, inner = reshape([axis], (groups, size // groups), f"{reason}: groups cut through units")
    if (rebuilt := (*outer, *inner)) != tuple(expand(axis)):
        unify(axis, rebuilt, reason)  # if a cut divides units, both parts are pinned
    return outer, inner


def window(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Axes with a window of one entry pass through, the others are positions."""
    operand = types[0]
    reason = Position(f"{node.where}: positions of a window")
    shape_in, shape = program.shape(node.inputs[0]), program.shape(node.outputs[0])
    sizes = node.params["window_dimensions"]
    strides = node.params.get("window_strides") or (1,) * len(shape)
    dilations = node.params.get("base_dilation") or (1,) * len(shape)
    out = []
    for index, axis in enumerate(operand):
        if (sizes[index], strides[index], dilations[index]) == (1, 1, 1) and shape_in[index] == shape[index]:
            out.append(axis)
        else:
            pin(axis, reason)
            out.append(fresh(shape[index], reason))
    return [tuple(out) for _ in node.outputs]
