"""Run a program with some values in parts, one for each entry of a leaf; what is run is traced once more.

A primitive that treats the entries alike is applied to each of them, at the shapes that it has where the leaf is a
single entry. A loop over them is unrolled. Whatever cannot be done entry by entry is done with the parts put together,
so the result is the program's in any case; how much is found in it depends on how long the parts stay apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lopjax.tracing.atoms import Atom, expand, find, leaves
from lopjax.tracing.interpret import entrywise_call, is_elementwise
from lopjax.tracing.jaxprs import CUSTOM_RULES, REMAT, Block, Node, at_source_of, rebind, scan_counts, words
from lopjax.tracing.primitives import ELEMENTWISE, Type
from lopjax.tracing.types import Typing
from lopjax.tracing.wide import Sizes

_ENTRY_BY_ENTRY = ELEMENTWISE | words("transpose broadcast_in_dim reshape squeeze dot_general reduce_sum reduce_max")
_SUMMED: dict[str, Callable[[Any, Any], Any]] = {
    "dot_general": jnp.add,
    "reduce_sum": jnp.add,
    "reduce_max": jnp.maximum,
}


@jax.tree_util.register_pytree_node_class
class Parts:
    """A value, one array for each entry of a leaf, of the shape that it has where the leaf is a single entry."""

    def __init__(self, leaf: Atom, entries: Sequence[Any]):
        self.leaf, self.entries = leaf, list(entries)

    def tree_flatten(self) -> tuple[list[Any], Atom]:
        """For `jax.checkpoint`."""
        return self.entries, self.leaf

    @classmethod
    def tree_unflatten(cls, leaf: Atom, entries: Sequence[Any]) -> "Parts":
        """The way back."""
        return cls(leaf, entries)


class Place(NamedTuple):
    """Where a leaf is: the axis, and the numbers of entries in front of it and behind it on the axis."""

    axis: int
    outer: int
    inner: int


def place_of(axes: Type, leaf: Atom) -> Place | None:
    """Where a leaf is in a value, if it is there once, as a factor of an axis."""
    if [each for axis in axes for each in leaves(axis)].count(leaf) != 1:
        return None
    for index, axis in enumerate(axes):
        factors = [find(atom) for atom in expand(axis)]
        if leaf in factors:
            at = factors.index(leaf)
            return Place(index, prod(a.size for a in factors[:at]), prod(a.size for a in factors[at + 1 :]))
    return None


def run_apart(typing: Typing, params: Sequence[Any], chosen: Sequence[Atom | None], inputs: Sequence[Any]) -> list[Any]:
    """The outputs of a program.

    Args:
        typing: axes of the program.
        params: arrays, or lists of parts.
        chosen: the leaf that a list of parts is one of each entry of.
        inputs: arrays.
    """
    program = typing.program
    run = _Run(typing)
    values: dict[int, Any] = dict(zip(program.block.inputs[len(params) :], inputs, strict=True))
    for value, given, leaf in zip(program.block.inputs, params, chosen, strict=False):
        shape = program.shape(value) if leaf is None else run.sizes(leaf).shape(value)
        values[value] = given if leaf is None else Parts(leaf, [part.reshape(shape) for part in given])
    run.block(program.block, values)
    return [run.whole(value, run.value(values, value)) for value in program.block.outputs]


@dataclass(eq=False)
class _Run:
    """What all nodes are run with."""

    typing: Typing
    made: dict[Atom, Sizes] = field(default_factory=dict)

    def sizes(self, leaf: Atom) -> Sizes:
        """The program's shapes where a leaf is a single entry."""
        return self.made.setdefault(leaf, Sizes(self.typing, {leaf: 1}))

    def value(self, values: dict[int, Any], value: int) -> Any:
        """A value so far, or a constant."""
        return values[value] if value in values else self.typing.program.constants[value]

    def whole(self, value: int, given: Any) -> Any:
        """A value whose parts are put together."""
        if not isinstance(given, Parts):
            return given
        place = place_of(self.typing.of(value), given.leaf)
        assert place is not None
        shape = self.typing.program.shape(value)
        long = (*shape[: place.axis], place.outer, 1, place.inner, *shape[place.axis + 1 :])
        return jnp.concatenate([part.reshape(long) for part in given.entries], place.axis + 1).reshape(shape)

    def apart(self, value: int, given: Any, leaf: Atom) -> list[Any] | None:
        """A value for each entry; one that does not have the leaf is the same for all; None if it cannot be."""
        if isinstance(given, Parts):
            return given.entries
        axes = self.typing.of(value)
        if not any(leaf is each for axis in axes for each in leaves(axis)):
            return [given] * leaf.size
        place = place_of(axes, leaf)
        if place is None:
            return None
        shape, small = self.typing.program.shape(value), self.sizes(leaf).shape(value)
        long = (*shape[: place.axis], place.outer, leaf.size, place.inner, *shape[place.axis + 1 :])
        array = jnp.reshape(given, long)
        return [
            jax.lax.index_in_dim(array, index, place.axis + 1, keepdims=True).reshape(small)
            for index in range(leaf.size)
        ]

    # --- Nodes --------------------------------------

    def block(self, block: Block, values: dict[int, Any]) -> None:
        """Run a block; `values` grows."""
        for node in block.nodes:
            with at_source_of(node):
                self.node(node, values)

    def node(self, node: Node, values: dict[int, Any]) -> None:
        """Run a node."""
        given = [self.value(values, value) for value in node.inputs]
        parted = dict.fromkeys(each.leaf for each in given if isinstance(each, Parts))
        if parted and node.is_call and self.call(node, given, values):
            return
        made = None
        if len(parted) == 1 and not node.blocks:
            made = self.entry_by_entry(node, given, next(iter(parted)))
        elif parted and node.name == "scan":
            made = self.scan(node, given)
        if made is None:
            made = rebind(node, [self.whole(value, each) for value, each in zip(node.inputs, given, strict=True)])
        values.update(zip(node.outputs, made, strict=True))

    def call(self, node: Node, given: Sequence[Any], values: dict[int, Any]) -> bool:
        """A call with parts among its operands: its inside; one with a derivative of its own if it is entrywise."""
        if node.name in CUSTOM_RULES:
            leaf = next(each.leaf for each in given if isinstance(each, Parts))
            rows = [self.apart(value, each, leaf) for value, each in zip(node.inputs, given, strict=True)]
            kept = all(place_of(self.typing.of(value), leaf) for value in node.outputs)
            if not kept or any(row is None for row in rows) or not is_elementwise(self.sizes(leaf), node):
                return False
            made = [entrywise_call(node, list(each)) for each in zip(*rows, strict=True)]
            values.update(
                (value, Parts(leaf, each)) for value, each in zip(node.outputs, zip(*made, strict=True), strict=True)
            )
            return True
        if node.name not in REMAT:
            self.block(node.blocks[0], values)
            return True

        def inside(*given: Any) -> list[Any]:
            own = dict(zip(node.inputs, given, strict=True))
            self.block(node.blocks[0], own)
            return [self.value(own, value) for value in node.outputs]

        policy, prevent = node.params.get("policy"), node.params.get("prevent_cse", True)
        made = jax.checkpoint(inside, policy=policy, prevent_cse=prevent)(*given)
        values.update(zip(node.outputs, made, strict=True))
        return True

    def entry_by_entry(self, node: Node, given: Sequence[Any], leaf: Atom) -> list[Any] | None:
        """What a primitive makes of each entry; None if it cannot be applied so."""
        taken = self.taken(node, given, leaf)
        if taken is not None or node.name not in _ENTRY_BY_ENTRY | {"slice", "split", "concatenate", "stack"}:
            return taken
        rows = [self.apart(value, each, leaf) for value, each in zip(node.inputs, given, strict=True)]
        if any(row is None for row in rows) or self.meets(node, leaf):
            return None
        places = [place_of(self.typing.of(value), leaf) for value in node.outputs]
        if any(leaf is each for value in node.outputs for axis in self.typing.of(value) for each in leaves(axis)):
            if None in places:
                return None
        elif node.name not in _SUMMED:
            return None
        params = self.sizes(leaf).params(node)
        made = [rebind(node, list(each), params) for each in zip(*rows, strict=True)]
        if None in places:
            return [reduce(_SUMMED[node.name], each) for each in zip(*made, strict=True)]
        return [Parts(leaf, each) for each in zip(*made, strict=True)]

    def meets(self, node: Node, leaf: Atom) -> bool:
        """Whether a node cuts or joins the axis that the leaf is on."""
        along = {"split": "axis", "concatenate": "dimension"}.get(node.name)
        for value in node.inputs:
            place, shape = place_of(self.typing.of(value), leaf), self.typing.program.shape(value)
            if place is not None and along is not None and node.params[along] == place.axis:
                return True
            if place is not None and node.name == "slice":
                bounds = [node.params[key][place.axis] for key in ("start_indices", "limit_indices")]
                if bounds != [0, shape[place.axis]] or (node.params["strides"] or (1,) * len(shape))[place.axis] != 1:
                    return True
        return False

    def taken(self, node: Node, given: Sequence[Any], leaf: Atom) -> list[Any] | None:
        """The entries that a node takes out of an axis of the leaf alone, if it does just that."""
        if node.name not in ("slice", "split", "unstack") or not isinstance(given[0], Parts):
            return None
        value = node.inputs[0]
        place, shape = place_of(self.typing.of(value), leaf), self.typing.program.shape(value)
        if place is None or (place.outer, place.inner) != (1, 1):
            return None
        entries = given[0].entries
        if node.name == "unstack":
            return [part.squeeze(place.axis) for part in entries] if node.params["axis"] == place.axis else None
        if node.name == "split":
            is_one_by_one = node.params["axis"] == place.axis and set(node.params["sizes"]) == {1}
            return list(entries) if is_one_by_one else None
        bounds = list(zip(*(node.params[key] for key in ("start_indices", "limit_indices")), strict=True))
        start, stop = bounds[place.axis]
        rest = [pair == (0, size) for index, (pair, size) in enumerate(zip(bounds, shape)) if index != place.axis]
        if stop - start != 1 or not all(rest) or set(node.params["strides"] or (1,)) != {1}:
            return None
        return [entries[start]]

    # --- Loops --------------------------------------

    def scan(self, node: Node, given: Sequence[Any]) -> list[Any] | None:
        """A loop over the parts, unrolled; None if it is over something else."""
        (body,) = node.blocks
        num_consts, num_carry = scan_counts(node)
        consts, carry, xs = given[:num_consts], list(given[num_consts:][:num_carry]), given[num_consts + num_carry :]
        values = node.inputs[num_consts + num_carry :]
        if not any(self.is_over(value, x) for value, x in zip(values, xs, strict=True)):
            return None
        xs = [x if self.is_over(value, x) else self.whole(value, x) for value, x in zip(values, xs, strict=True)]
        steps = range(node.params["length"])
        made: list[list[Any]] = [[] for _ in steps]
        for step in reversed(steps) if node.params["reverse"] else steps:
            here = [x.entries[step].squeeze(0) if isinstance(x, Parts) else x[step] for x in xs]
            own = dict(zip(body.inputs, (*consts, *carry, *here), strict=True))
            self.block(body, own)
            results = [self.whole(value, self.value(own, value)) for value in body.outputs]
            carry, made[step] = results[:num_carry], results[num_carry:]
        return [*carry, *(jnp.stack(each) for each in zip(*made, strict=True))]

    def is_over(self, value: int, given: Any) -> bool:
        """Whether a value is in parts along its first axis."""
        if not isinstance(given, Parts):
            return False
        return place_of(self.typing.of(value), given.leaf) == Place(0, 1, 1)
