"""Wider networks from the user's own constructor, compared with the wiring read from the program."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax

from lopjax.tracing.network import parameter_paths
from lopjax.tracing.spaces import Diagram
from lopjax.tracing.view import Factor, Layout

Make = Callable[..., tuple[Callable[[Any, Any], Any], Any]]


@dataclass(eq=False)
class Constructor:
    """A user's constructor and the unit spaces that it sets.

    Attributes:
        make: `make(**sizes) -> (apply, params)`.
        sizes: the arguments that make the network that was traced.
        spaces: the unit spaces that grow with each size.
    """

    make: Make
    sizes: Mapping[str, int]
    spaces: Mapping[str, tuple[str, ...]]

    def at(self, units: Mapping[str, int], diagram: Diagram) -> tuple[Callable[[Any, Any], Any], Any]:
        """The function and the shapes of its parameters with other numbers of units.

        Raises:
            ValueError: spaces that one size of the constructor sets together, asked for in different multiples; or a
                space that no size sets.
        """
        own = {space.name: space.size for space in diagram.spaces}
        sizes = dict(self.sizes)
        unset = set(units)
        for name, spaces in self.spaces.items():
            ratios = {units.get(space, own[space]) / own[space] for space in spaces}
            if len(ratios) > 1:
                raise ValueError(f"make({name}=...) sets the spaces {list(spaces)} together: widen them alike")
            if spaces:
                sizes[name] = round(sizes[name] * ratios.pop())
                unset -= set(spaces)
        if unset:
            raise ValueError(f"no size of make sets the spaces {sorted(unset)}; its sizes set {dict(self.spaces)}")
        apply, shapes = shaped(self.make, sizes)
        _compare(diagram, units, shapes)
        return apply, shapes


def shaped(make: Make, sizes: Mapping[str, int]) -> tuple[Callable[[Any, Any], Any], Any]:
    """The function that a constructor makes, and the shapes of its parameters, which are not computed."""
    functions: list[Callable[[Any, Any], Any]] = []

    def params() -> Any:
        apply, made = make(**sizes)
        functions.append(apply)
        return jax.tree.map(
            lambda leaf: leaf if hasattr(leaf, "aval") else jax.numpy.zeros(leaf.shape, leaf.dtype), made
        )

    shapes = jax.eval_shape(params)
    return functions[-1], shapes


def read_constructor(make: Make, sizes: Mapping[str, int], diagram: Diagram) -> Constructor:
    """Find which unit spaces each size of a constructor sets: those that grow when it is doubled.

    Raises:
        ValueError: an array that does not grow as the program implies; both shapes are given.
    """
    spaces = {}
    for name, size in sizes.items():
        _, shapes = shaped(make, {**sizes, name: 2 * size})
        grown = [leaf.shape for leaf in jax.tree.leaves(shapes)]
        chosen = tuple(space.name for space in diagram.spaces if _doubles(diagram.layouts, grown, space.name))
        own = {space.name: space.size for space in diagram.spaces}
        _compare(diagram, {space: 2 * own[space] for space in chosen}, shapes)
        spaces[name] = chosen
    return Constructor(make, dict(sizes), spaces)


def _doubles(layouts: Sequence[Layout], grown: Sequence[tuple[int, ...]], space: str) -> bool:
    """Whether every axis of the space has grown, and has doubled if nothing else is on it."""
    for layout, shape in zip(layouts, grown, strict=True):
        for axis, size in zip(layout.axes, shape, strict=True):
            before = prod(factor.size for factor in axis)
            if _has(axis, space) and (size != 2 * before if len(axis) == 1 and not axis[0].parts else size <= before):
                return False
    return True


def _has(factors: Sequence[Factor], space: str) -> bool:
    return any(factor.space == space or any(_has(part, space) for part in factor.parts) for factor in factors)


def _compare(diagram: Diagram, units: Mapping[str, int], shapes: Any) -> None:
    for path, layout, leaf in zip(parameter_paths(shapes), diagram.layouts, jax.tree.leaves(shapes), strict=True):
        inferred = layout.resized(units).shape
        if inferred != leaf.shape:
            raise ValueError(
                f"make sets other axes than the program says: {'/'.join(path)}: {inferred} inferred, {leaf.shape} "
                "constructed; pass sizes that set one unit space each, or widen without make"
            )
