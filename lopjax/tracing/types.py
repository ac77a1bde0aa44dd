"""The axes of every value of a program, found in one pass."""

from dataclasses import dataclass, field

from lopjax.tracing.atoms import Axis, Entry, Position, fresh, is_pinned, leaves, pin, sum_of, unify
from lopjax.tracing.jaxprs import Block, Node, Program, scan_counts
from lopjax.tracing.primitives import Type, unknown
from lopjax.tracing.rules import RULES, constant
from lopjax.tracing.rules_sums import padded

INPUT, OUTPUT = "network input", "network output"


@dataclass(eq=False)
class Typing:
    """The structure of the axes of every value.

    Attributes:
        program: the program whose values these are.
        types: per value, one axis (a product of atoms) for each axis of the array.
        paddings: per `pad`, the padding before and after each axis.
        data: the values that depend on the network's inputs; the others depend on parameters only.
    """

    program: Program
    types: dict[int, Type] = field(default_factory=dict)
    paddings: dict[Node, list[tuple[Axis, Axis, Axis]]] = field(default_factory=dict)
    data: set[int] = field(default_factory=set)

    def of(self, value: int) -> Type:
        """The axes of a value; a constant gets its own when it is first seen."""
        if value not in self.types:
            known = self.program.constants.get(value)
            self.types[value] = tuple(fresh(n) for n in self.program.shape(value)) if known is None else constant(known)
        return self.types[value]


def infer_types(program: Program, num_parameters: int, *, pin_outputs: bool = True) -> Typing:
    """Types of all values. The first inputs are parameters, the others the network's inputs.

    Args:
        program: what was traced.
        num_parameters: how many of its inputs are parameters.
        pin_outputs: whether units of the outputs are distinguished, as they are in a network.
    """
    typing = Typing(program)
    for index, value in enumerate(program.block.inputs):
        is_input = index >= num_parameters
        typing.types[value] = tuple(fresh(n, INPUT if is_input else None) for n in program.shape(value))
        if is_input:
            typing.data.add(value)
    _mark_data(program.block, typing.data)
    _infer(typing, program.block)
    if pin_outputs:
        _pin_all(typing, program.block.outputs, OUTPUT)
    return typing


def _infer(typing: Typing, block: Block) -> None:
    for node in block.nodes:
        if node.blocks:
            _infer_blocks(typing, node)
            continue
        types = [typing.of(value) for value in node.inputs]
        if node.name == "pad":
            typing.paddings[node] = parts = padded(typing.program, node, types)
            made = [tuple(_padded_axis(part, config, node) for part, config in zip(parts, _pads(typing, node)))]
        else:
            made = RULES.get(node.name, unknown)(typing.program, node, types)
        for value, axes in zip(node.outputs, made, strict=True):
            typing.types[value] = axes


def _pads(typing: Typing, node: Node) -> list[tuple[int, int, int]]:
    """For each axis, the lengths of the padding before it, of the axis, and of the padding after it."""
    lengths = []
    for size, whole, (low, high, interior) in zip(
        typing.program.shape(node.inputs[0]),
        typing.program.shape(node.outputs[0]),
        node.params["padding_config"],
        strict=True,
    ):
        lengths.append((0, whole, 0) if (interior and size > 1) or low < 0 or high < 0 else (int(low), size, int(high)))
    return lengths


def _padded_axis(part: tuple[Axis, Axis, Axis], lengths: tuple[int, int, int], node: Node) -> Axis:
    kept = [(length, axis) for length, axis in zip(lengths, part, strict=True) if length]
    if not kept:
        return fresh(0, node.where)
    if is_pinned(part[1]) and len(kept) > 1:
        # Positions: entries added to them are positions, too.
        return fresh(sum(lengths), next((leaf.reason for leaf in leaves(part[1])), Position(node.where)))
    return sum_of(kept, node.where)


def _pin_all(typing: Typing, values: tuple[int, ...], reason: str) -> None:
    for value in values:
        for axis in typing.of(value):
            pin(axis, reason)


def _unify_values(typing: Typing, one: Type, other: Type, reason: str) -> None:
    for left, right in zip(one, other, strict=True):
        unify(left, right, reason)


# --- Calls, loops and branches --------------------------------------


def _infer_blocks(typing: Typing, node: Node) -> None:
    if node.is_call:
        _infer(typing, node.blocks[0])
    elif node.name == "scan":
        _scan(typing, node)
    elif node.name == "while":
        _while(typing, node)
    else:
        _cond(typing, node)


def _scan(typing: Typing, node: Node) -> None:
    """Constants and carries pass through; arrays scanned over lose their first axis, whose order matters."""
    (body,) = node.blocks
    reason = Entry(f"{node.where}: steps of a loop")
    num_consts, num_carry = scan_counts(node)
    for index, (inner, outer) in enumerate(zip(body.inputs, node.inputs, strict=True)):
        axes = typing.of(outer)
        if index >= num_consts + num_carry:
            pin(axes[0], reason)
            axes = axes[1:]
        typing.types[inner] = axes
    _infer(typing, body)
    carries = body.inputs[num_consts : num_consts + num_carry]
    for carry, result in zip(carries, body.outputs[:num_carry], strict=True):
        _unify_values(typing, typing.of(carry), typing.of(result), node.where)
    for outer, carry in zip(node.outputs, carries):
        typing.types[outer] = typing.of(carry)
    for outer, made in zip(node.outputs[num_carry:], body.outputs[num_carry:], strict=True):
        typing.types[outer] = (fresh(node.params["length"], reason), *typing.of(made))


def _while(typing: Typing, node: Node) -> None:
    """A carry is permuted alike in every iteration."""
    condition, body = node.blocks
    split = node.params["cond_nconsts"], node.params["body_nconsts"]
    given = [typing.of(value) for value in node.inputs]
    carry = given[sum(split) :]
    for block, consts in ((condition, given[: split[0]]), (body, given[split[0] : sum(split)])):
        typing.types |= zip(block.inputs, (*consts, *carry), strict=True)
        _infer(typing, block)
    for axes, result, outer in zip(carry, body.outputs, node.outputs, strict=True):
        _unify_values(typing, axes, typing.of(result), node.where)
        typing.types[outer] = axes


def _cond(typing: Typing, node: Node) -> None:
    """All branches are read, and must have the same axes."""
    for block in node.blocks:
        typing.types |= zip(block.inputs, (typing.of(value) for value in node.inputs[1:]), strict=True)
        _infer(typing, block)
    first, *others = node.blocks
    for index, outer in enumerate(node.outputs):
        typing.types[outer] = typing.of(first.outputs[index])
        for other in others:
            _unify_values(typing, typing.types[outer], typing.of(other.outputs[index]), node.where)


def _mark_data(block: Block, data: set[int]) -> None:
    """Add the values that depend on data, iterating loops until nothing changes."""
    for node in block.nodes:
        if node.is_call:
            _mark_data(node.blocks[0], data)
            continue
        if not node.blocks:
            if any(value in data for value in node.inputs):
                data.update(node.outputs)
            continue
        _mark_inside(node, data)


def _mark_inside(node: Node, data: set[int]) -> None:
    before = -1
    while len(data) != before:
        before = len(data)
        for block in node.blocks:
            outer = node.inputs
            if node.name == "cond":
                outer = node.inputs[1:]
            elif node.name == "while":
                num_cond, num_body = node.params["cond_nconsts"], node.params["body_nconsts"]
                consts = node.inputs[:num_cond] if block is node.blocks[0] else node.inputs[num_cond:][:num_body]
                outer = (*consts, *node.inputs[num_cond + num_body :])
            data.update(i for i, o in zip(block.inputs, outer, strict=True) if o in data)
            _mark_data(block, data)
        body = node.blocks[-1]
        if node.name == "cond":
            chosen = node.inputs[0] in data
            for index, outer in enumerate(node.outputs):
                if chosen or any(block.outputs[index] in data for block in node.blocks):
                    data.add(outer)
            continue
        first, num_carry = node.params.get("body_nconsts", 0), len(node.outputs)
        if node.name == "scan":
            first, num_carry = scan_counts(node)
        for index, (outer, made) in enumerate(zip(node.outputs, body.outputs, strict=True)):
            if made in data or (index < num_carry and body.inputs[first + index] in data):
                data.add(outer)
                if index < num_carry:
                    data.add(body.inputs[first + index])
