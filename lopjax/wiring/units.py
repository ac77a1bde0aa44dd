"""Slices of units: the parameters that write a unit, those that read it, and operations on both.

Every array that has the axis `Out(space)` holds one *incoming* slice for each unit of the space, batch statistics
included; every array with `In(space)` holds one *outgoing* slice. `Label.unit_axes` finds their axes.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from lopjax.arguments.numbers import check_numbers
from lopjax.wiring.diagram import Wiring
from lopjax.wiring.labels import Label, along, sum_per_unit


class UnitMasks(NamedTuple):
    """Which entries of a tree belong to chosen units.

    Attributes:
        incoming: a boolean array for each array of the tree, True on the slices that write a chosen unit; in the
            collection `"batch_stats"` these are the units' statistics.
        outgoing: the same for the slices that read a chosen unit.
    """

    incoming: PyTree
    outgoing: PyTree


def unit_masks(wiring: Wiring, tree: PyTree, units: Mapping[str, Bool[ArrayLike, " units"]]) -> UnitMasks:
    """Masks of the slices of chosen units, over all arrays.

    Args:
        wiring: wiring of the network.
        tree: parameters or variables, or a tree like them.
        units: by unit space, which of its units are chosen; may be traced. A space that is left out has none.

    Returns:
        Two trees like `tree`.

    Raises:
        ValueError: an unknown space, or a mask whose length is not the number of the space's units; as in
            `Wiring.map`.
    """
    for space, chosen in units.items():
        if jnp.shape(chosen) != (wiring.size(space),):
            raise ValueError(
                f"mask of unit space {space!r} has shape {jnp.shape(chosen)}: must be ({wiring.size(space)},), one "
                "entry per unit"
            )

    def mask(is_read: bool) -> Callable[[Label, Any], jax.Array]:
        def of(label: Label, array: Any) -> jax.Array:
            shape = jnp.shape(array)
            chosen = [
                along(jnp.asarray(units[axis.space]), axis.index, len(shape))
                for axis in label.unit_axes(units, is_read=is_read)
            ]
            return jnp.broadcast_to(reduce(jnp.logical_or, chosen, jnp.zeros((), bool)), shape)

        return of

    return UnitMasks(wiring.map(mask(is_read=False), tree), wiring.map(mask(is_read=True), tree))


def unit_norms(wiring: Wiring, tree: PyTree, space: str) -> tuple[Float[Array, " units"], Float[Array, " units"]]:
    """Euclidean norm of every unit's incoming and outgoing parameters, over all arrays that have the space.

    Args:
        wiring: wiring of the network.
        tree: parameters (statistics are not counted), or a tree like them, such as a gradient.
        space: a unit space.

    Returns:
        `(incoming, outgoing)`, zeros where no array writes or reads the space.

    Raises:
        ValueError: an unknown space; as in `Wiring.map`.
    """
    size = wiring.size(space)
    labels, leaves = wiring.labels_of(tree), jax.tree.leaves(tree)

    def norm(is_read: bool) -> jax.Array:
        slices = [
            (jnp.asarray(array), axis.index)
            for label, array in zip(labels, leaves, strict=True)
            for axis in label.unit_axes((space,), is_read=is_read)
        ]
        # Scaled by the largest entry of all, or the squares of a saturated unit's gradient would underflow.
        largest = reduce(jnp.maximum, (jnp.max(jnp.abs(array), initial=0) for array, _ in slices), jnp.zeros(()))
        safe = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
        squares = [sum_per_unit(jnp.square(array / safe.astype(array.dtype)), index) for array, index in slices]
        return safe * jnp.sqrt(sum(squares, start=jnp.zeros(size)))

    return norm(is_read=False), norm(is_read=True)


def where(mask: PyTree, chosen: PyTree, others: PyTree) -> PyTree:
    """Array by array, entries of `chosen` where the mask is True and of `others` elsewhere.

    Args:
        mask: tree of boolean arrays, or of single values that hold for a whole array.
        chosen: a tree of the same structure, with arrays of the shapes of `others` or single numbers.
        others: tree of arrays.

    Returns:
        Arrays with the shapes and dtypes of `others`.

    Raises:
        ValueError: a leaf that is not an array of numbers, or whose shape does not fit that of `others`.
    """
    for name, tree in {"mask": mask, "chosen": chosen, "others": others}.items():
        check_numbers(name, tree)

    def one(m: Any, a: Any, b: Any) -> jax.Array:
        shapes = [jnp.shape(each) for each in (m, a, b)]
        if any(jnp.ndim(each) and shape != shapes[2] for each, shape in zip((m, a), shapes)):
            raise ValueError(f"mask, chosen and others have shapes {shapes}: they must be the same, or single numbers")
        return jnp.where(m, jnp.asarray(a, jnp.asarray(b).dtype), b)

    return jax.tree.map(one, mask, chosen, others)
