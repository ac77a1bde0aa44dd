"""The wiring in the formats of other tools: network matching, weight-space networks, pruning, sharding.

Muon's dimension numbers need more than the wiring's axes: `lopjax.optim.muon_dimension_numbers`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from lopjax.wiring.diagram import Wiring
from lopjax.wiring.labels import Path


class PermutationSpec(NamedTuple):
    """The axes on which each permutation of units acts; the fields are those of git-re-basin (arXiv 2209.04836).

    Attributes:
        perm_to_axes: by permutation, the pairs `(array, axis)` on which it acts.
        axes_to_perm: by array, the permutation of each axis; None for an axis that must not be permuted.
    """

    perm_to_axes: dict[str, list[tuple[str, int]]]
    axes_to_perm: dict[str, tuple[str | None, ...]]


class GroupMember(NamedTuple):
    """One axis of one array whose slices belong to the units of a space.

    Attributes:
        path: path of the array, the collection first.
        axis: index of the axis.
        is_read: whether the array reads the unit (its outgoing weights) or writes it (incoming weights, bias, norm,
            statistics).
    """

    path: Path
    axis: int
    is_read: bool


def permutation_spec(wiring: Wiring) -> PermutationSpec:
    """The permutations of parameters that preserve the function, for weight or activation matching.

    Every space that is not fixed gives a permutation of the same name. Arrays are named by their path without the
    collection, `"hidden_0/kernel"`. Batch statistics are left out: they are recomputed after matching.

    Args:
        wiring: wiring of the network.

    Raises:
        ValueError: an array with two axes of the same space, which the format cannot represent.

    References:
        Ainsworth, Hayase and Srinivasa, arXiv 2209.04836.
    """
    permutable = set(wiring.permutable)
    axes_to_perm: dict[str, tuple[str | None, ...]] = {}
    perm_to_axes: dict[str, list[tuple[str, int]]] = {}
    for path, label in wiring.labels:
        if path[0] != "params":
            continue
        name = "/".join(path[1:])
        perms = tuple(None if axis is None or axis.space not in permutable else axis.space for axis in label.axes)
        if len(set(perms) - {None}) < sum(perm is not None for perm in perms):
            raise ValueError(f"{name}: two of its axes index units of one space, {perms}; the format has one per space")
        axes_to_perm[name] = perms
        for axis, perm in enumerate(perms):
            if perm is not None:
                perm_to_axes.setdefault(perm, []).append((name, axis))
    return PermutationSpec(perm_to_axes, axes_to_perm)


def unf_spec(wiring: Wiring, params: PyTree) -> PyTree:
    """The permutation of every axis as an integer, one tuple per array: `perm_spec` of universal neural functionals.

    Axes of the same space share a number; an axis that does not index units (the offsets of a kernel) has a number of
    its own. The format cannot express that an axis must not be permuted, so inputs, outputs and offsets count as
    permutable too: a map that is equivariant under the larger group is equivariant under the network's.

    Args:
        wiring: wiring of the network.
        params: parameters (or variables, or shapes of them).

    Returns:
        A tree like `params` with a tuple of integers for every array.

    Raises:
        ValueError: as in `Wiring.map`.

    References:
        Zhou, Finn and Harrison, arXiv 2402.05232.
    """
    numbers = {space: number for number, space in enumerate(wiring.spaces)}
    count = iter(range(len(numbers), len(numbers) + sum(len(label.axes) for _, label in wiring.labels)))
    return wiring.map(
        lambda label, _: tuple(next(count) if axis is None else numbers[axis.space] for axis in label.axes), params
    )


def pruning_groups(wiring: Wiring) -> dict[str, tuple[GroupMember, ...]]:
    """The slices to be removed together with a unit: by permutable space, every axis of every array that has it.

    Args:
        wiring: wiring of the network.
    """
    return {
        space: tuple(
            GroupMember(path, axis.index, axis.is_read)
            for path, label in wiring.labels
            for axis in label.unit_axes((space,))
        )
        for space in wiring.permutable
    }


def keep_units(wiring: Wiring, variables: PyTree, kept: Mapping[str, Sequence[int]]) -> PyTree:
    """Structured pruning: arrays with the slices of the units that are kept, in the order given.

    Removing a unit whose outgoing weights are zero does not change the function, except where a norm averages over the
    units of its space (`Wiring.coupled`). The model for the result is `model.resize` at the new sizes.

    Args:
        wiring: wiring of the network.
        variables: parameters or variables.
        kept: by unit space, indices of the units to keep; spaces left out keep all.

    Returns:
        A tree of smaller arrays.

    Raises:
        ValueError: an unknown or fixed space, no unit kept, or an index that is out of range or repeated.
    """
    for space, units in kept.items():
        size = wiring.size(space)
        if space not in wiring.permutable:
            raise ValueError(f"kept[{space!r}]: its units cannot be removed: {wiring.why_not_cloneable(space)}")
        indices = np.asarray(units)
        fits = indices.ndim == 1 and indices.size and np.issubdtype(indices.dtype, np.integer)
        if not fits or len(set(indices.tolist())) < len(indices) or indices.min() < 0 or indices.max() >= size:
            raise ValueError(f"kept[{space!r}]={units!r}: must be distinct units from 0 to {size - 1}, at least one")

    def slices(label: Any, array: Any) -> Any:
        for axis, space, _ in label.unit_axes(kept):
            array = jnp.take(array, jnp.asarray(kept[space]), axis=axis)
        return array

    return wiring.map(slices, variables)


def sharding_rules(wiring: Wiring, variables: PyTree, mesh_axes: Mapping[str, str]) -> PyTree:
    """Sharding of units over the axes of a mesh: a `PartitionSpec` for every array.

    If the spaces of two axes of an array are assigned to the same mesh axis, the axis that writes is sharded: the
    array's product is then computed on the device that holds its units.

    Args:
        wiring: wiring of the network.
        variables: parameters or variables, or shapes of them.
        mesh_axes: by unit space, the name of the mesh axis over which its units are sharded; others are replicated.

    Returns:
        A tree of `PartitionSpec` like `variables`, for `jax.sharding.NamedSharding`.

    Raises:
        ValueError: an unknown space.
    """
    for space in mesh_axes:
        wiring.size(space)

    def spec(label: Any, _: Any) -> PartitionSpec:
        places: list[str | None] = [None] * len(label.axes)
        for axis in sorted(label.unit_axes(mesh_axes), key=lambda axis: axis.is_read):
            name = mesh_axes[axis.space]
            places[axis.index] = None if name in places else name
        return PartitionSpec(*places)

    return wiring.map(spec, variables)
