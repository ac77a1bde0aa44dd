"""The wiring in the formats of other tools: matching of networks, networks over weights, pruning, sharding.

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
    """Which axes one permutation of units acts on together; the fields of git-re-basin (arXiv 2209.04836).

    Attributes:
        perm_to_axes: by permutation, the `(array, axis)` that it acts on.
        axes_to_perm: by array, the permutation of each axis; None for one that must stay as it is.
    """

    perm_to_axes: dict[str, list[tuple[str, int]]]
    axes_to_perm: dict[str, tuple[str | None, ...]]


class GroupMember(NamedTuple):
    """One axis of one array whose slices belong to the units of a space.

    Attributes:
        path: path of the array, the collection first.
        axis: which axis.
        is_read: whether the array reads the unit (its outgoing weights) or writes it (incoming weights, bias, norm,
            statistics).
    """

    path: Path
    axis: int
    is_read: bool


def permutation_spec(wiring: Wiring) -> PermutationSpec:
    """The permutations under which the parameters keep their function, for weight or activation matching.

    Every space that is not fixed is a permutation by its own name. Arrays are named by their path below the
    collection, `"hidden_0/kernel"`. Batch statistics are left out: they are recomputed after matching.

    Args:
        wiring: wiring of the network.

    Raises:
        ValueError: an array with two axes of one space, which that format cannot hold.

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
            raise ValueError(f"{name}: two of its axes index units of one space, {perms}; the format has one a space")
        axes_to_perm[name] = perms
        for axis, perm in enumerate(perms):
            if perm is not None:
                perm_to_axes.setdefault(perm, []).append((name, axis))
    return PermutationSpec(perm_to_axes, axes_to_perm)


def unf_spec(wiring: Wiring, params: PyTree) -> PyTree:
    """The permutation of every axis as an integer, a tuple for each array: `perm_spec` of universal neural functionals.

    Axes of one space have its number; an axis that indexes no units (the offsets of a kernel) has a number of its own.
    The format has no word for an axis that must stay as it is, so inputs, outputs and offsets count as permutable too:
    what is equivariant under the larger group is equivariant under the network's.

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
    """What must be removed together with a unit: by permutable space, every axis of every array that has a slice of it.

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
    """Arrays with the slices of the units that are kept, in the order given: structured pruning.

    Removing a unit whose outgoing weights are zero does not change the function, except where a norm averages over the
    units of its space (`Wiring.coupled`). The model that takes the result is `model.resize` to the new sizes.

    Args:
        wiring: wiring of the network.
        variables: parameters or variables.
        kept: by unit space, indices of the units to keep; spaces left out keep all.

    Returns:
        A tree of smaller arrays.

    Raises:
        ValueError: an unknown or fixed space, no unit kept, an index out of range or twice.
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
    """How to spread units over the axes of a mesh: a `PartitionSpec` for every array.

    Of two axes of an array whose spaces go to one mesh axis, the one that writes is spread: the array's product is then
    computed where its units are.

    Args:
        wiring: wiring of the network.
        variables: parameters or variables, or shapes of them.
        mesh_axes: by unit space, the name of the mesh axis that its units are spread over; others are on every device.

    Returns:
        A tree like `variables` of `PartitionSpec`, for `jax.sharding.NamedSharding`.

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
