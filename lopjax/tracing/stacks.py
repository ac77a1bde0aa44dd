"""Arrays that are stacks of others: layers scanned over, queries, keys and values in one kernel.

Where the entries of an axis are taken one by one, what is behind them need not be alike: units of two layers are
different spaces. The types cannot say so of one array, since the leaves of an axis do not depend on the entry of
another. So such an array counts as several parameters, and the program is read with the loop unrolled and the axis
taken apart (`lopjax.tracing.unroll`). The user's own function and arrays are as they were.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.tracing.atoms import Atom, Entry, expand, find, leaves
from lopjax.tracing.jaxprs import read_program, scan_counts, walk
from lopjax.tracing.primitives import Type
from lopjax.tracing.types import Typing, infer_types
from lopjax.tracing.unroll import place_of, run_apart
from lopjax.wiring import View

MOST_ENTRIES = 64
"""Longer axes are not taken apart: a program grows with each entry."""


class Cut(NamedTuple):
    """Where an array is a stack.

    Attributes:
        axis: which of its axes has the entries as a factor.
        has_outer: whether the axis has factors in front of it, which become an axis of their own.
        has_inner: whether it has factors behind it.
        number: number of entries.
    """

    axis: int
    has_outer: bool
    has_inner: bool
    number: int

    @property
    def _at(self) -> int:
        return self.axis + self.has_outer

    def whole(self, part: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the array whose parts have this shape."""
        behind = self._at + self.has_inner
        size = int(np.prod(part[self.axis : behind], dtype=int)) * self.number
        return (*part[: self.axis], size, *part[behind:])

    def split(self, array: Any, part: tuple[int, ...]) -> list[Any]:
        """The parts of an array; of the shape alone, where it is all that is known."""
        if isinstance(array, jax.ShapeDtypeStruct):
            return [jax.ShapeDtypeStruct(part, array.dtype)] * self.number
        stacked = array.reshape((*part[: self._at], self.number, *part[self._at :]))
        return [stacked[(slice(None),) * self._at + (index,)] for index in range(self.number)]

    def merge(self, parts: Sequence[Any]) -> Any:
        """The array with these parts; its shape, where shapes are all that is known."""
        if isinstance(parts[0], jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(self.whole(parts[0].shape), parts[0].dtype)
        if len({part.shape for part in parts}) > 1:
            raise ValueError(
                f"the parts of one array have shapes {[part.shape for part in parts]}: layers of a stack must be of "
                "one width; clone the spaces of all its layers alike"
            )
        stack = np.stack if all(isinstance(part, np.ndarray) for part in parts) else jnp.stack
        return stack(parts, self._at).reshape(self.whole(parts[0].shape))


@dataclass(frozen=True, eq=False)
class Level:
    """Some arrays of a tree as stacks.

    Attributes:
        function: `function(tree, inputs)` of the whole arrays.
        shapes: the tree, in shapes.
        cuts: by number of the array, in the order of `jax.tree.leaves`.
        typing: axes of the program at one shape of inputs.
    """

    function: Callable[[Any, Any], Any]
    shapes: Any
    cuts: Mapping[int, Cut]
    typing: Typing

    @cached_property
    def part_shapes(self) -> Any:
        """The tree of the parts, in shapes: in place of a stack, `{"0": part, "1": part, ...}`."""
        flat, structure = jax.tree.flatten(self.shapes)
        inputs = self.typing.program.block.inputs
        made = []
        for index, leaf in enumerate(flat):
            cut = self.cuts.get(index)
            made.append(
                leaf if cut is None else _numbered(cut.split(leaf, _part_shape(self.typing, inputs[index], cut)))
            )
        return structure.unflatten(made)

    def parts(self, tree: Any, like: Any) -> Any:
        """The tree of the parts; `like` has their shapes, which may be those of a wider network."""
        structure, indices = self._of(tree)
        return structure.unflatten(
            [
                leaf if index not in self.cuts else _numbered(self.cuts[index].split(leaf, each["0"].shape))
                for index, leaf, each in zip(
                    indices, structure.flatten_up_to(tree), structure.flatten_up_to(like), strict=True
                )
            ]
        )

    def whole(self, tree: Any) -> Any:
        """The tree of whole arrays."""
        structure, indices = self._of(tree)
        return structure.unflatten(
            [
                each if index not in self.cuts else self.cuts[index].merge([each[str(i)] for i in range(len(each))])
                for index, each in zip(indices, structure.flatten_up_to(tree), strict=True)
            ]
        )

    def _of(self, tree: Any) -> tuple[Any, list[int]]:
        """The structure of a tree, of all collections or of parameters alone, and the numbers of its arrays."""
        keyed, structure = jax.tree_util.tree_flatten_with_path(self.shapes)
        if is_whole(self.shapes, tree):
            return structure, list(range(len(keyed)))
        own = [index for index, (path, _) in enumerate(keyed) if getattr(path[0], "key", None) == "params"]
        return jax.tree.structure(self.shapes["params"]), own

    def unrolled(self, tree: Any, inputs: Any) -> Any:
        """The function of the parts, entry by entry."""
        structure = jax.tree.structure(self.shapes)
        flat = structure.flatten_up_to(tree)
        types = [each["0"].dtype if index in self.cuts else each.dtype for index, each in enumerate(flat)]
        shapes = [jax.ShapeDtypeStruct(leaf.shape, dtype) for leaf, dtype in zip(jax.tree.leaves(self.shapes), types)]
        given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), inputs)
        program = read_program(self.function, structure.unflatten(shapes), given)
        typing = infer_types(program, len(flat))
        values = []
        for index, each in enumerate(flat):
            values.append([each[str(i)] for i in range(len(each))] if index in self.cuts else each)
        chosen = [
            _leaf(typing.of(program.block.inputs[index]), self.cuts[index]) if index in self.cuts else None
            for index in range(len(flat))
        ]
        return jax.tree.unflatten(program.tree, run_apart(typing, values, chosen, jax.tree.leaves(inputs)))


def is_whole(shapes: Any, tree: Any) -> bool:
    """Whether a tree has all collections, not the parameters alone."""
    has_collections = isinstance(shapes, Mapping) and "params" in shapes
    return not has_collections or (isinstance(tree, Mapping) and "params" in tree)


def own_view(levels: Sequence[Level], view: View, like: Any) -> View:
    """Between the user's tree and the pieces of its parts.

    Args:
        levels: what was taken apart, first to last.
        view: between the last parts and their pieces.
        like: the tree of the last parts, in shapes.
    """
    likes = [like]
    for level in reversed(levels[1:]):
        likes.insert(0, level.whole(likes[0]))

    def split(tree: Any) -> Any:
        for level, parts in zip(levels, likes, strict=False):
            tree = level.parts(tree, parts if is_whole(level.shapes, tree) else parts["params"])
        return view.split(tree)

    def merge(variables: Any) -> Any:
        tree = view.merge(variables)
        for level in reversed(levels):
            tree = level.whole(tree)
        return tree

    return View(split, merge)


def _numbered(parts: Sequence[Any]) -> dict[str, Any]:
    return {str(index): part for index, part in enumerate(parts)}


def _leaf(axes: Type, cut: Cut) -> Atom:
    """The leaf that a cut takes apart."""
    entries = [find(atom) for atom in expand(axes[cut.axis])]
    return next(atom for atom in entries if atom.size == cut.number and isinstance(atom.reason, Entry))


def _part_shape(typing: Typing, value: int, cut: Cut) -> tuple[int, ...]:
    """Shape of a part of a parameter."""
    shape, axes = typing.program.shape(value), typing.of(value)
    place = place_of(axes, _leaf(axes, cut))
    assert place is not None
    between = [size for size, is_there in ((place.outer, cut.has_outer), (place.inner, cut.has_inner)) if is_there]
    return (*shape[: cut.axis], *between, *shape[cut.axis + 1 :])


def find_cuts(typing: Typing, num_parameters: int) -> dict[int, Cut]:
    """The parameters that are stacks whose entries may have units of their own."""
    chosen = set(_taken_one_by_one(typing))
    cuts = {}
    for index, value in enumerate(typing.program.block.inputs[:num_parameters]):
        axes = typing.of(value)
        for leaf in dict.fromkeys(leaf for axis in axes for leaf in leaves(axis)):
            place = place_of(axes, leaf) if leaf in chosen else None
            if place is not None:
                cuts[index] = Cut(place.axis, place.outer > 1, place.inner > 1, leaf.size)
                break
    return cuts


def _taken_one_by_one(typing: Typing) -> Iterator[Atom]:
    """The leaves whose entries are taken one by one out of a value that has free units, too."""
    for node in walk(typing.program.block):
        if node.name in ("slice", "split", "unstack", "squeeze"):
            taken = node.inputs[:1]
        elif node.name == "scan":
            taken = node.inputs[sum(scan_counts(node)) :]
        else:
            continue
        for value in taken:
            own = [leaf for axis in typing.of(value) for leaf in leaves(axis)]
            if any(leaf.reason is None for leaf in own):
                yield from (leaf for leaf in own if isinstance(leaf.reason, Entry) and leaf.size <= MOST_ENTRIES)


def num_free(typing: Typing, num_parameters: int) -> int:
    """How many free leaves the parameters have."""
    values = typing.program.block.inputs[:num_parameters]
    own = {leaf for value in values for axis in typing.of(value) for leaf in leaves(axis)}
    return sum(leaf.reason is None for leaf in own)
