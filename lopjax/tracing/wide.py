"""The equations of a program at other numbers of units: shapes, offsets, constants and counting literals rewritten."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from lopjax.tracing.atoms import Atom, Axis, expand, find
from lopjax.tracing.jaxprs import Node
from lopjax.tracing.rules_sums import period
from lopjax.tracing.types import Typing


@dataclass(eq=False)
class Sizes:
    """Numbers of units in a network of the requested width.

    Attributes:
        typing: axes of the program at its own sizes.
        units: numbers of units of the leaves that change.
        growing: literals that count units, with the axes whose units they count.
    """

    typing: Typing
    units: Mapping[Atom, int] = field(default_factory=dict)
    growing: Mapping[tuple[Node, int], tuple[Axis, ...]] = field(default_factory=dict)

    def axis(self, axis: Axis) -> int:
        """Length of an axis."""
        return prod(self._atom(atom) for atom in expand(axis))

    def _atom(self, atom: Atom) -> int:
        if atom.parts is None:
            return self.units.get(find(atom), atom.size)
        return sum(self.axis(part) if part else length for length, part in atom.parts)

    def shape(self, value: int) -> tuple[int, ...]:
        """Shape of a value."""
        sizes = zip(self.typing.of(value), self.typing.program.shape(value), strict=True)
        return tuple(self.axis(axis) if axis else size for axis, size in sizes)

    def offset(self, axis: Axis, at: int) -> int:
        """The new position of a boundary between units of an axis."""
        factors = expand(axis)
        if at == 0 or not factors:
            return at
        inner, wide_inner = (prod(size(atom) for atom in factors[1:]) for size in (lambda a: a.size, self._atom))
        outer = factors[0]
        if at % inner:
            return at  # inside a pinned axis nothing grows
        place = at // inner
        if outer.parts is None:
            units = self._atom(outer)
            place = place if units == outer.size else place * units // outer.size
            return place * wide_inner
        start = moved = 0
        for length, part in outer.parts:
            if place < start + length:
                return (moved + self.offset(part, place - start)) * wide_inner
            start, moved = start + length, moved + (self.axis(part) if part else length)
        return moved * wide_inner

    def constant(self, value: int, known: Any) -> Any:
        """A known array at these sizes; it is constant along all axes that grow."""
        shape = self.shape(value)
        before = self.typing.program.shape(value)
        if shape == before:
            return known
        first = tuple(slice(1) if new != old else slice(None) for new, old in zip(shape, before, strict=True))
        return np.broadcast_to(np.asarray(known)[first], shape)

    def operand(self, node: Node, index: int, value: Any) -> Any:
        """An operand of a node; a literal that counts units grows with them."""
        axes = self.growing.get((node, index))
        if axes is None:
            return value
        before = prod(atom.size for axis in axes for atom in expand(axis))
        ratio = prod(self.axis(axis) for axis in axes) / before
        # A factor 1/n of a product or a divisor n, depending on the primitive.
        return value / ratio if node.name == "mul" else jnp.asarray(value * ratio, jnp.asarray(value).dtype)

    def params(self, node: Node) -> dict[str, Any]:
        """Parameters of a node at these sizes."""
        params, name = dict(node.params), node.name
        if name == "reshape":
            params["new_sizes"] = self.shape(node.outputs[0])
        elif name in ("broadcast_in_dim", "iota"):
            params["shape"] = self.shape(node.outputs[0])
        elif name == "slice":
            bounds = [self._sliced(node, index) for index in range(len(params["start_indices"]))]
            params["start_indices"], params["limit_indices"] = tuple(zip(*bounds, strict=True)) or ((), ())
        elif name == "tile":
            shapes = self.shape(node.outputs[0]), self.shape(node.inputs[0])
            params["reps"] = tuple(new // max(old, 1) for new, old in zip(*shapes, strict=True))
        elif name == "split":
            params["sizes"] = tuple(self.shape(value)[params["axis"]] for value in node.outputs)
        elif name == "dynamic_slice":
            params["slice_sizes"] = self.shape(node.outputs[0])
        elif name == "gather":
            params["slice_sizes"] = self._looked_up(node)
        elif name == "conv_general_dilated":
            numbers = params["dimension_numbers"]
            image, kernel = (self.shape(value) for value in node.inputs)
            params["feature_group_count"] = image[numbers.lhs_spec[1]] // kernel[numbers.rhs_spec[1]]
        elif name == "pad":
            params["padding_config"] = tuple(
                (self.axis(low) if low else before, self.axis(high) if high else behind, between)
                for (low, _, high), (before, behind, between) in zip(
                    self.typing.paddings[node], params["padding_config"], strict=True
                )
            )
        return params

    def _sliced(self, node: Node, index: int) -> tuple[int, int]:
        """Where a slice of an axis starts and stops; with a stride, of whole strides."""
        axis, size = self.typing.of(node.inputs[0])[index], self.typing.program.shape(node.inputs[0])[index]
        start, stop = (int(node.params[key][index]) for key in ("start_indices", "limit_indices"))
        stride = int((node.params["strides"] or (1,) * (index + 1))[index])
        part = period((start, stop, stride), size) if stride > 1 else None
        if part is None:
            return self.offset(axis, start), self.offset(axis, stop)
        return self.offset(axis, part[0]) + start % stride, self.offset(axis, part[1])

    def _looked_up(self, node: Node) -> tuple[int, ...]:
        whole = self.typing.program.shape(node.inputs[0])
        wide = self.shape(node.inputs[0])
        sizes = zip(node.params["slice_sizes"], whole, wide, strict=True)
        return tuple(new if size == old else size for size, old, new in sizes)
