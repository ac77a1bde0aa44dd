"""A program as one graph of steps, and where the units of an array go in it, unit by unit.

Calls are seen through, and so are the branches that are told apart by platform only: JAX asks that they compute the
same, so the one for any platform is read. Of a loop over stacked arrays the body is seen, of a carry only that it
leads on; of a branch on data each branch, and that one of them is taken. Of a loop of unknown length nothing is known.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from lopjax.tracing.jaxprs import CUSTOM_RULES, Block, Node, is_of_jax, scan_counts
from lopjax.tracing.types import Typing


class Place(NamedTuple):
    """Where the units of an array are in a value that depends on them unit by unit.

    Attributes:
        value: value of the program.
        axis: which of its axes.
        start: first entry.
        stop: behind the last one.
    """

    value: int
    axis: int
    start: int
    stop: int


@dataclass(eq=False)
class Step:
    """A node of the graph; an opaque one only leads from its inputs to its outputs.

    Attributes:
        node: node of the program.
        inputs: values, by the one number under which the graph knows them.
        outputs: likewise.
        is_opaque: whether nothing is known of what it does.
        is_slicing: whether it takes what a loop runs over apart, along the first axis.
        is_choice: whether what it makes is one of its inputs, as it is.
    """

    node: Node
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    is_opaque: bool = False
    is_slicing: bool = False
    is_choice: bool = False


@dataclass(eq=False)
class Flow:
    """The graph of a program; readers and makers are those that lead to its outputs.

    Attributes:
        typing: types of the program.
        steps: all of them, in order.
        outputs: outputs of the program.
        readers: the steps that read a value, with the place among their operands.
        made: the step that makes a value.
        alias: the number under which the graph knows a value that has several.
    """

    typing: Typing
    steps: list[Step] = field(default_factory=list)
    outputs: tuple[int, ...] = ()
    readers: dict[int, list[tuple[Step, int]]] = field(default_factory=dict)
    made: dict[int, Step] = field(default_factory=dict)
    alias: dict[int, int] = field(default_factory=dict)

    def known_as(self, value: int) -> int:
        """The number under which the graph knows a value."""
        while value in self.alias:
            value = self.alias[value]
        return value

    def shape(self, value: int) -> tuple[int, ...]:
        """Shape of a value."""
        return self.typing.program.shape(value)


def make_flow(typing: Typing) -> Flow:
    """The graph of a typed program."""
    flow = Flow(typing)
    flow.steps = steps = list(_steps(flow, typing.program.block))
    flow.outputs = tuple(map(flow.known_as, typing.program.block.outputs))
    live = set(flow.outputs)
    for step in reversed(steps):
        step.inputs = tuple(map(flow.known_as, step.inputs))
        step.outputs = tuple(map(flow.known_as, step.outputs))
    # A carry leads back: what is read there was live before the loop was seen, so one more turn settles it.
    for _ in range(2):
        for step in reversed(steps):
            if live.intersection(step.outputs):
                live.update(step.inputs)
    for step in steps:
        if live.intersection(step.outputs):
            flow.made |= {value: step for value in step.outputs if value not in flow.made}
            for index, value in enumerate(step.inputs):
                flow.readers.setdefault(value, []).append((step, index))
    return flow


def _steps(flow: Flow, block: Block) -> Iterator[Step]:
    for node in block.nodes:
        if node.is_call and not has_own_derivative(node):
            yield from _steps(flow, node.blocks[0])
        elif node.name == "scan":
            yield from _scan(flow, node)
        elif node.name == "cond" and (platforms := node.params.get("branches_platforms")) is not None:
            anywhere = next((i for i, each in enumerate(platforms) if each is None), len(platforms) - 1)
            branch = node.blocks[anywhere]
            flow.alias |= zip(branch.inputs, node.inputs[1:], strict=True)
            yield from _steps(flow, branch)
            flow.alias |= zip(node.outputs, branch.outputs, strict=True)
        elif node.name == "cond":
            yield from _branches(flow, node)
        else:
            yield Step(node, node.inputs, node.outputs, is_opaque=bool(node.blocks))


def _branches(flow: Flow, node: Node) -> Iterator[Step]:
    for branch in node.blocks:
        flow.alias |= zip(branch.inputs, node.inputs[1:], strict=True)
        yield from _steps(flow, branch)
    for index, output in enumerate(node.outputs):
        yield Step(node, tuple(branch.outputs[index] for branch in node.blocks), (output,), is_choice=True)
    yield Step(node, node.inputs[:1], node.outputs, is_opaque=True)


def has_own_derivative(node: Node) -> bool:
    """Whether a call has a derivative rule that is not JAX's own: what it does to a gradient is not known."""
    return node.name in CUSTOM_RULES and not is_of_jax(node)


def _scan(flow: Flow, node: Node) -> Iterator[Step]:
    (body,) = node.blocks
    num_consts, num_carry = scan_counts(node)
    ahead = num_consts + num_carry
    flow.alias |= zip(body.inputs[:num_consts], node.inputs[:num_consts], strict=True)
    carries = body.inputs[num_consts:ahead]
    if num_carry:
        yield Step(node, (*node.inputs[num_consts:ahead], *body.outputs[:num_carry]), carries, is_opaque=True)
    for inner, outer in zip(body.inputs[ahead:], node.inputs[ahead:], strict=True):
        yield Step(node, (outer,), (inner,), is_slicing=True)
    yield from _steps(flow, body)
    yield Step(node, (*body.outputs, *carries), node.outputs, is_opaque=True)


def sites_above(flow: Flow, ends: Mapping[str, tuple[int, int]]) -> dict[str, tuple[str, ...]]:
    """For every site those whose activations can reach it, in the order given.

    Args:
        flow: the graph.
        ends: pre- and post-activation of every site.
    """
    bits: dict[int, int] = {}
    for index, (_, post) in enumerate(ends.values()):
        bits[flow.known_as(post)] = bits.get(flow.known_as(post), 0) | 1 << index
    reached, before = dict(bits), -1
    while before != (before := sum(map(int.bit_count, reached.values()))):
        for step in flow.steps:
            arrived = 0
            for value in step.inputs:
                arrived |= reached.get(value, 0)
            for value in step.outputs if arrived else ():
                reached[value] = reached.get(value, 0) | arrived
    names = list(ends)
    return {
        name: tuple(other for i, other in enumerate(names) if other != name and reached.get(pre, 0) >> i & 1)
        for name, pre in ((name, flow.known_as(pre)) for name, (pre, _) in ends.items())
    }
