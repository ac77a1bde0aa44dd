"""Wider networks from the user's own constructor, compared with the wiring read from the program."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from lopjax.tracing.network import parameter_paths
from lopjax.tracing.spaces import CLONEABLE, Diagram

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


def read_constructor(
    make: Make, sizes: Mapping[str, int], diagram: Diagram, trace: Callable[[Any, Any], Diagram]
) -> Constructor:
    """Find which unit spaces each size of a constructor sets: those that double with it, by the program that it makes.

    Shapes alone would not tell twice as many heads from heads twice as wide.

    Args:
        make: the constructor.
        sizes: with which it makes the network that was traced.
        diagram: diagram of that network.
        trace: the diagram of a function with parameters of given shapes.

    Raises:
        ValueError: an array that does not grow as the program implies; both shapes are given.
    """
    spaces = {}
    own = {space.name: space.size for space in diagram.spaces}
    for name, size in sizes.items():
        apply, shapes = shaped(make, {**sizes, name: 2 * size})
        wide = {space.name: space.size for space in trace(apply, shapes).spaces}
        spaces[name] = tuple(
            space.name
            for space in diagram.spaces
            if space.state == CLONEABLE and wide.get(space.name) == 2 * space.size
        )
        _compare(diagram, {space: 2 * own[space] for space in spaces[name]}, shapes)
    return Constructor(make, dict(sizes), spaces)


def _compare(diagram: Diagram, units: Mapping[str, int], shapes: Any) -> None:
    for path, layout, leaf in zip(parameter_paths(shapes), diagram.layouts, jax.tree.leaves(shapes), strict=True):
        inferred = layout.resized(units).shape
        if inferred != leaf.shape:
            raise ValueError(
                f"make sets other axes than the program says: {'/'.join(path)}: {inferred} inferred, {leaf.shape} "
                "constructed; pass sizes that set one unit space each, or widen without make"
            )
