"""Move the mean output of a removed unit into the biases of the arrays that read it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from lopjax.arguments.numbers import check_numbers
from lopjax.model import Params
from lopjax.wiring import In, Out, Path, Wiring, tree_paths


def biases(wiring: Wiring) -> dict[Path, Path]:
    """The bias of each weight array that has one.

    It is the array of the same module that has the same output axes and reads nothing; modules with several are
    skipped.
    """
    biases_beside: dict[Path, Path] = {}
    for path, label in wiring.labels:
        outputs = tuple(axis for axis in label.axes if isinstance(axis, Out))
        beside = [
            other
            for other, one in wiring.labels
            if other[:-1] == path[:-1] and not one.reads() and outputs == tuple(a for a in one.axes if a is not None)
        ]
        if label.reads() and outputs and len(beside) == 1:
            biases_beside[path] = beside[0]
    return biases_beside


def move_means_into_biases(
    wiring: Wiring,
    params: Params,
    units: Mapping[str, Bool[Array, " units"]],
    means: Mapping[str, Float[Array, " units"]],
) -> Params:
    r"""Add the mean outputs of chosen units to the biases of their readers: `b += sum over units of mean * w_out`.

    Done where the wiring says that a weight array reads the units' site directly (`Label.source`) and has a bias.
    Before a batch norm this is unnecessary in train mode, since the norm removes means; in eval mode its running mean
    has to adapt. Where pooling, a layer norm or a residual sum stands between, the mean at the site is not what is
    read, and nothing is moved.

    A convolution adds it at every position, which is too much at the border, where part of the kernel reads zeros.

    Args:
        wiring: wiring of the network.
        params: parameters, with outgoing weights not yet set to zero.
        units: by space, the chosen units.
        means: by space, mean activations.

    Returns:
        Parameters with changed biases.

    Raises:
        ValueError: parameters of another network; not one truth value and one mean for every unit of a space.
    """
    wiring.labels_of(params, partial=True)
    if missing := [space for space in units if space not in means]:
        raise ValueError(f"means of {missing} are missing: give them for every space of which units are given")
    for space in units:
        for name, given in (("units", units[space]), ("means", means[space])):
            check_numbers(f"{name}[{space!r}]", given, ranks=1)
            if jnp.shape(given) != (wiring.size(space),):
                raise ValueError(
                    f"{name}[{space!r}] has shape {np.shape(given)}: must have one number for each of the "
                    f"{wiring.size(space)} units"
                )
    paths, (leaves, structure) = tree_paths(params), jax.tree.flatten(params)
    place: dict[Path, int] = {("params", *path): index for index, path in enumerate(paths)}
    labels, beside = dict(wiring.labels), biases(wiring)
    for path, bias in beside.items():
        label = labels[path]
        for space, chosen in units.items():
            if In(space) in label.axes and label.source in wiring.sites_of(space):
                activation = jnp.where(chosen, means[space], 0).astype(leaves[place[bias]].dtype)
                # The axes before the outputs (the unit's own and kernel offsets) are summed over.
                moved = jnp.moveaxis(leaves[place[path]], label.axes.index(In(space)), 0)
                total = jnp.tensordot(activation, moved, 1)
                surplus = total.ndim - leaves[place[bias]].ndim
                leaves[place[bias]] = leaves[place[bias]] + jnp.sum(total, axis=tuple(range(surplus)))
    return structure.unflatten(leaves)


def zero_biases(wiring: Wiring, params: Params, incoming: PyTree) -> Params:
    """Set marked entries of the biases of weight arrays to zero."""
    chosen = set(biases(wiring).values())
    leaves, structure = jax.tree.flatten(params)
    masks = structure.flatten_up_to(incoming)
    return structure.unflatten(
        [
            jnp.where(mask, 0, leaf) if ("params", *path) in chosen else leaf
            for path, leaf, mask in zip(tree_paths(params), leaves, masks, strict=True)
        ]
    )
