"""Pairs of units that are clones or nearly so: where they would be equal, and the directions that separate them.

A pair is a unit i, a unit j and a number c: unit i is c times unit j. On the manifold of such clones both the incoming
and the outgoing parameters of i are c times those of j (c = 1 for plain clones, -1 for mirror twins of odd activations,
any c > 0 for homogeneous ones), and gradient descent never leaves it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from lopjax.model import Params
from lopjax.wiring import Wiring


class Pair(NamedTuple):
    """A pair of units of one space; every field may be traced.

    Attributes:
        first: i.
        second: j.
        multiple: c.
        is_near: whether the pair counts; results for a pair that does not are zero.
    """

    first: Int[Array, ""]
    second: Int[Array, ""]
    multiple: Float[Array, ""]
    is_near: Bool[Array, ""]


class Place(NamedTuple):
    """One axis that indexes the units of a space.

    Attributes:
        leaf: index of the array in `jax.tree.leaves`.
        axis: its axis.
        is_outgoing: whether the array reads the space.
    """

    leaf: int
    axis: int
    is_outgoing: bool


Rows = dict[str, list[Array]]
"""By space, one slice for every place: coordinates of the directions that separate a pair."""


def places_of(wiring: Wiring, tree: PyTree, space: str) -> list[Place]:
    """The axes that index a space's units in a tree of parameters or variables.

    Raises:
        ValueError: an array that both reads and writes the space: its two slices would overlap.
    """
    places = [
        Place(index, axis, is_read)
        for index, label in enumerate(wiring.labels_of(tree))
        for axis, _, is_read in label.unit_axes((space,))
    ]
    if len({place.leaf for place in places}) != len(places):
        raise ValueError(f"unit space {space!r}: an array reads and writes it at once; leave it out with spaces=")
    return places


def merged(wiring: Wiring, tree: PyTree, space: str, pair: Pair) -> PyTree:
    """The nearest point at which the pair are clones: `(p_j + c p_i) / (1 + c²)` for j, and c times that for i.

    The sum `c a_i + a_j` of outgoing parameters is kept, so the function changes only as far as the incoming ones do.

    Args:
        wiring: wiring of the network.
        tree: its parameters, or a tree like them.
        space: the unit space of the pair.
        pair: units i (`first`) and j (`second`), and the multiple c; the tree stays as it is unless `is_near`.

    Returns:
        A tree with the shapes and dtypes of `tree`.
    """
    leaves, structure = jax.tree.flatten(tree)
    for leaf, axis, _ in places_of(wiring, tree, space):
        array, c = leaves[leaf], pair.multiple.astype(leaves[leaf].dtype)
        first, second = (jnp.take(array, unit, axis=axis) for unit in (pair.first, pair.second))
        shared = (second + c * first) / (1 + c**2)
        moved = _put(_put(array, axis, pair.first, c * shared), axis, pair.second, shared)
        leaves[leaf] = jnp.where(pair.is_near, moved, array)
    return structure.unflatten(leaves)


def zero_rows(wiring: Wiring, params: Params, spaces: tuple[str, ...]) -> Rows:
    """Zero coordinates."""
    leaves = jax.tree.leaves(params)
    return {
        space: [
            jnp.zeros_like(jnp.take(leaves[leaf], 0, axis=axis)) for leaf, axis, _ in places_of(wiring, params, space)
        ]
        for space in spaces
    }


def parting(wiring: Wiring, params: Params, pairs: dict[str, Pair], rows: Rows) -> Params:
    """The change of parameters with these coordinates: `(u, -c u) / sqrt(1 + c²)` on i and j. An isometry."""
    leaves, structure = jax.tree.flatten(jax.tree.map(jnp.zeros_like, params))
    for space, slices in rows.items():
        pair = pairs[space]
        for (leaf, axis, _), row in zip(places_of(wiring, params, space), slices, strict=True):
            c = pair.multiple.astype(row.dtype)
            row = jnp.where(pair.is_near, row, 0) / jnp.sqrt(1 + c**2)
            change = _put(jnp.zeros_like(leaves[leaf]), axis, pair.first, row)
            leaves[leaf] = leaves[leaf] + _put(change, axis, pair.second, -c * row)
    return structure.unflatten(leaves)


def outgoing_part(wiring: Wiring, params: Params, rows: Rows) -> Rows:
    """The same coordinates without the incoming ones."""
    return {
        space: [
            row if place.is_outgoing else jnp.zeros_like(row)
            for place, row in zip(places_of(wiring, params, space), slices, strict=True)
        ]
        for space, slices in rows.items()
    }


def push_length(wiring: Wiring, params: Params, space: str, unit: Int[Array, ""]) -> Float[Array, ""]:
    """Euclidean norm of one unit's outgoing parameters or, if that is 0, as after a reset, of its incoming ones."""
    leaves = jax.tree.leaves(params)

    def norm(wanted: bool) -> Array:
        squares = [
            jnp.sum(jnp.square(jnp.take(leaves[leaf], unit, axis=axis)))
            for leaf, axis, is_outgoing in places_of(wiring, params, space)
            if is_outgoing == wanted
        ]
        return jnp.sqrt(sum(squares, start=jnp.zeros(())))

    outgoing = norm(True)
    return jnp.where(outgoing > 0, outgoing, norm(False))


def _put(array: Array, axis: int, unit: Int[Array, ""], row: Array) -> Array:
    """An array with one slice along an axis replaced."""
    return jnp.moveaxis(jnp.moveaxis(array, axis, 0).at[unit].set(row.astype(array.dtype)), 0, axis)
