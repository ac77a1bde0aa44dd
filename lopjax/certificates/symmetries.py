"""Changes that a loss cannot see: constants added to outgoing weights, and orthogonal maps of units.

If `theta -> U theta + t` with U orthogonal leaves the loss of every batch unchanged, gradient descent and momentum are
equivariant under it. So if clones are trapped at `U theta + t`, they are trapped at theta as well. Whether a map leaves
the loss unchanged is tested on the loss itself at random parameters: two analytic functions that agree there agree
everywhere, with probability one.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lopjax.arguments.batches import as_batch
from lopjax.arguments.precision import all_digits
from lopjax.certificates.batch_evidence import Loss, run
from lopjax.cloning import unit_coordinates
from lopjax.cloning.rounding import CERTAIN_FROM, signal_tolerance
from lopjax.losses import Batch, check_inputs, mean_cross_entropy
from lopjax.model import Model, Params, Variables
from lopjax.wiring import Label, Wiring, along, tree_paths

DRAWS = 3

Change = Callable[[str, Label, np.ndarray], np.ndarray]
"""`(path, label, array) -> array`."""


class Alignment(NamedTuple):
    """Orthogonal maps of units that align the units of a network's clusters.

    Attributes:
        maps: `{(path, units' axis): (units, d, d)}`, to be applied to the coordinates of each unit's slice.
        coordinates: `{(path, units' axis): axis of the coordinates, or None if units have one}`.
    """

    maps: Mapping[tuple[str, int], np.ndarray]
    coordinates: Mapping[tuple[str, int], int | None]

    def __call__(self, path: str, label: Label, array: np.ndarray) -> np.ndarray:
        """The array with every unit's slice mapped."""
        for axis in range(array.ndim):
            if (path, axis) in self.maps:
                array = _applied(self.maps[path, axis], array, axis, self.coordinates[path, axis])
        return array


def changed(wiring: Wiring, change: Change, tree: Any) -> Any:
    """Apply a change to every array of a tree; computed in float64, kept in the tree's types."""
    names = iter("/".join(path) for path in tree_paths(tree))
    return wiring.map(
        lambda label, leaf: jax.numpy.asarray(change(next(names), label, np.asarray(leaf, np.float64)), leaf.dtype),
        tree,
    )


def is_invisible(
    move: Callable[[Variables], Variables],
    wiring: Wiring,
    variables: Variables,
    loss: Callable[[Variables], jax.Array],
    tolerance: float,
) -> bool | None:
    """Whether a change of variables leaves the loss unchanged at random parameters while noise of its size does not.

    Args:
        move: an affine map of variables.
        wiring: wiring of the network.
        variables: variables that provide shapes and statistics.
        loss: function of variables, on a fixed batch.
        tolerance: relative difference of losses that counts as zero.

    Returns:
        `None` if noise of that size does not change the loss either, or if the difference is within ten tolerances.
    """
    random, answer = np.random.default_rng(0), True
    for _ in range(DRAWS):
        drawn = {**variables, "params": _drawn(wiring, variables["params"], random)}
        moved = move(drawn)
        noisy = jax.tree.map(lambda a, b, random=random: _with_noise(a, b, random), drawn, moved)
        here, there, elsewhere = (float(loss(each)) for each in (drawn, moved, noisy))
        scale = max(abs(here), abs(elsewhere - here))
        if not abs(elsewhere - here) > CERTAIN_FROM**2 * tolerance * abs(here):
            return None
        if abs(there - here) >= CERTAIN_FROM * tolerance * scale:
            return False
        answer = answer if abs(there - here) <= tolerance * scale else None
    return answer


@all_digits()
def leaves_loss_unchanged(
    model: Model,
    variables: Variables,
    batch: Batch,
    isometry: Callable[[Params], Params],
    *,
    loss: Loss = mean_cross_entropy,
    train: bool = False,
) -> bool | None:
    """Whether a map of parameters is a symmetry of the loss, as `isometric_manifold` assumes.

    Tested on the loss itself on this batch, at three draws of random parameters. For an analytic network that decides
    the question for all parameters with probability one, and for other batches as far as this one is generic. It is
    evidence, not proof: an effect that only some inputs would show, or a ReLU region that no draw reaches, goes
    unnoticed.

    Args:
        model: the network.
        variables: variables that provide shapes and statistics.
        batch: `(inputs, labels)`.
        isometry: the map.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        train: run the batch in train mode; dropout stays off.

    Returns:
        `None` if undecided: the loss changes by about as much as rounding, or noise changes it no more.

    Raises:
        ValueError: inputs that the network does not take, labels that the loss does not.
    """
    batch = as_batch(batch)
    check_inputs(model, variables, batch[0])

    def move(given: Variables) -> Variables:
        return {**given, "params": isometry(given["params"])}

    tolerance = signal_tolerance(variables["params"], model.wiring)
    on_batch = lambda given: run(model, given, batch, loss, train).loss  # noqa: E731
    return is_invisible(move, model.wiring, variables, on_batch, tolerance)


def constants(path: str, seed: int) -> Change:
    """Add numbers that are constant along the output axes of one array, and random along the others."""

    def change(name: str, label: Label, array: np.ndarray) -> np.ndarray:
        if name != path:
            return array
        shape = [1 if axis in label.output_axes else size for axis, size in enumerate(array.shape)]
        size = float(np.sqrt(np.mean(np.square(array)))) or 1.0
        return array + size * np.random.default_rng(seed).normal(size=shape)

    return change


def align(
    wiring: Wiring, variables: Variables, clusters: Mapping[str, np.ndarray], blind: Collection[str] = ()
) -> Alignment:
    """The orthogonal map of each unit, array by array, that brings it closest to the first unit of its cluster.

    For units with one coordinate it is a sign. If an array does not determine the map (a bias of a head), one of the
    maps of the unit's other arrays is used.

    Args:
        wiring: wiring of the network.
        variables: its variables.
        clusters: cluster of every unit, per space.
        blind: paths of arrays whose constants along the output axes are irrelevant to the units that they read.
    """
    names = ["/".join(path) for path in tree_paths(variables)]
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(variables)]
    labels, maps, coordinates = wiring.labels_of(variables), {}, {}
    for space, ids in clusters.items():
        width = unit_coordinates(variables["params"], wiring, space)
        slices = {}
        for name, label, leaf in zip(names, labels, leaves, strict=True):
            for axis, _, is_read in label.unit_axes((space,)):
                behind = _coordinate_axis(wiring, label, leaf.shape, width)
                if width == 1 or behind is not None:
                    coordinates[name, axis] = behind
                    own = leaf - _mean_over_outputs(label, leaf) if name in blind and is_read else leaf
                    slices[name, axis] = _units_first(own, axis, behind)
        _, leaders = np.unique(ids, return_index=True)
        by_unit = [_maps_of_unit(list(slices.values()), int(leaders[ids[u]]), u, width) for u in range(len(ids))]
        for index, key in enumerate(slices):
            maps[key] = np.stack([of_unit[index] for of_unit in by_unit])
    return Alignment(maps, coordinates)


def _maps_of_unit(slices: Sequence[np.ndarray], leader: int, unit: int, width: int) -> list[np.ndarray]:
    """Per array, the orthogonal R that makes `slice[unit] R` closest to the leader's.

    Args:
        slices: per array, the slices of all units, `(units, rows, coordinates)`.
        leader: first unit of the cluster.
        unit: the unit that is mapped.
        width: number of coordinates of a unit; 1 for units that are numbers, of which R is a sign.

    Returns:
        Per array, R of shape `(width, width)`.
    """
    if unit == leader or not slices:
        return [np.eye(width)] * len(slices)
    pairs = [(units[leader], units[unit]) for units in slices]
    products = [own.T @ first for first, own in pairs]
    sizes = [np.linalg.svd(product, compute_uv=False) for product in products]
    is_fixed = [size[-1] > 1e-3 * size[0] for size in sizes]
    polar = [left @ right for left, _, right in (np.linalg.svd(product) for product in products)]
    candidates = [one for one, fixed in zip(polar, is_fixed) if fixed] or [np.eye(width)]
    return [
        one if fixed else min(candidates, key=lambda each: float(np.linalg.norm(own @ each - first)))
        for one, fixed, (first, own) in zip(polar, is_fixed, pairs)
    ]


def _mean_over_outputs(label: Label, array: np.ndarray) -> np.ndarray:
    return array.mean(axis=label.output_axes, keepdims=True)


def _coordinate_axis(wiring: Wiring, label: Label, shape: tuple[int, ...], width: int) -> int | None:
    """The axis that holds the coordinates of larger units, such as the width of heads; None if there is none.

    Args:
        wiring: wiring of the network.
        label: label of the array.
        shape: its shape.
        width: number of coordinates of a unit.
    """
    axes = [index for index, axis in enumerate(label.axes) if wiring.is_coordinate(axis) and shape[index] == width]
    return axes[0] if width > 1 and len(axes) == 1 else None


def _units_first(array: np.ndarray, axis: int, behind: int | None) -> np.ndarray:
    """`(units, rows, coordinates)`."""
    if behind is None:
        return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1, 1)
    moved = np.moveaxis(array, (axis, behind), (0, -1))
    return moved.reshape(moved.shape[0], -1, moved.shape[-1])


def _applied(maps: np.ndarray, array: np.ndarray, axis: int, behind: int | None) -> np.ndarray:
    """An array with every unit's slice mapped.

    Args:
        maps: `(units, coordinates, coordinates)`.
        array: the array.
        axis: its axis of units.
        behind: its axis of coordinates; None where a unit has only one.
    """
    if behind is None:
        return array * along(maps[:, 0, 0], axis, array.ndim)
    moved = np.moveaxis(array, (axis, behind), (0, -1))
    mapped = np.einsum("u...a,uab->u...b", moved, maps)
    return np.moveaxis(mapped, (0, -1), (axis, behind))


def _drawn(wiring: Wiring, params: Any, random: np.random.Generator) -> Any:
    """Parameters of size 1 over the square root of the number of summands, none of them near zero."""

    def draw(label: Label, leaf: jax.Array) -> jax.Array:
        size = random.uniform(0.5, 1.5, leaf.shape) * random.choice([-1.0, 1.0], leaf.shape)
        return jax.numpy.asarray(size / np.sqrt(max(label.num_summed(leaf.shape), 1)), leaf.dtype)

    return wiring.map(draw, params)


def _with_noise(array: jax.Array, moved: jax.Array, random: np.random.Generator) -> jax.Array:
    """The array with noise as large as the effect of a change on it."""
    size = np.sqrt(np.mean(np.square(np.asarray(moved, np.float64) - np.asarray(array, np.float64))))
    return array + jax.numpy.asarray(size * random.normal(size=array.shape), array.dtype)
