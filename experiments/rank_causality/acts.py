"""What is made of a checkpoint: functions `(model, variables, key) -> (model', variables')` that keep the outputs.

Clones lie side by side: units 2j and 2j + 1 of the wide network are made of unit j. The second of each is the *added*
one. Where an act gives a unit new weights on its way in, nothing reads it; where it redistributes what is read, the
units have the same activations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from lopjax.cloning import clone_variables, collapse, uniform_partition, widen
from lopjax.manifolds import CloneNormals, Subspace, cloned_manifold
from lopjax.model import Model, Params, Variables
from lopjax.random.normals import standard_normal
from lopjax.wiring import UnitMasks, Wiring, unit_masks, where

FACTOR = 2


class FunctionChangedError(ValueError):
    """An arm that promises the checkpoint's outputs has others."""


def untouched(model: Model, variables: Variables, key: jax.Array) -> tuple[Model, Variables]:
    """The checkpoint."""
    del key
    return model, variables


def cloned(model: Model, variables: Variables, key: jax.Array) -> tuple[Model, Variables]:
    """Every unit cloned, on the leaf of equal clones: rank as it was, and every gradient moves clones together."""
    del key
    return widen(model, FACTOR), clone_variables(variables, model.wiring, FACTOR)


def merged(model: Model, variables: Variables, key: jax.Array) -> tuple[Model, Variables]:
    """Cloned, and the clones merged: half of the units go, none of the function. NumPy arrays, no tracers."""
    wide, clones = cloned(model, variables, key)
    partition = uniform_partition(wide.wiring, FACTOR)
    return model, jax.tree.map(jnp.asarray, collapse(clones, wide.wiring, partition))


def clones_split(model: Model, variables: Variables, key: jax.Array) -> tuple[Model, Variables]:
    """Cloned, then all that is read of a unit read of its first clone: a free kick as long as what was read.

    Activations and rank as they were; the next gradient moves the clones apart.
    """
    wide, variables = cloned(model, variables, key)
    params, (first, added) = variables["params"], halves(wide.wiring, variables["params"])
    kept = where(first.outgoing, optax.tree.scale(FACTOR, params), params)
    return wide, {**variables, "params": where(added.outgoing, optax.tree.zeros_like(params), kept)}


def units_woken(model: Model, variables: Variables, key: jax.Array) -> tuple[Model, Variables]:
    """The checkpoint beside as many units that are drawn anew and not yet listened to: rank is raised at once."""
    return _beside(model, variables, widen(model, FACTOR).init(key)["params"])


def dead_units_added(model: Model, variables: Variables, key: jax.Array) -> tuple[Model, Variables]:
    """The checkpoint beside as many units without weights: they are 0 on every input, and no gradient moves them."""
    del key
    shapes = jax.eval_shape(widen(model, FACTOR).init, jax.random.key(0))["params"]
    return _beside(model, variables, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))


def _beside(model: Model, variables: Variables, drawn: Params) -> tuple[Model, Variables]:
    """The checkpoint beside added units that are drawn; nothing of the checkpoint reads them."""
    wide, variables = clones_split(model, variables, jax.random.key(0))
    _, added = halves(wide.wiring, variables["params"])
    return wide, {**variables, "params": where(added.incoming, drawn, variables["params"])}


def gauge_kick(model: Model, variables: Variables, key: jax.Array) -> tuple[Model, Variables]:
    """Cloned, then weights between clones redistributed with both sums fixed: on another leaf, as trapped as before."""
    return _kicked(model, variables, key, "gauge", 1.0)


def small_kick(model: Model, variables: Variables, key: jax.Array) -> tuple[Model, Variables]:
    """Cloned, then what is read of clones redistributed at random, by a hundredth of its length."""
    return _kicked(model, variables, key, "outgoing", 0.01)


def large_kick(model: Model, variables: Variables, key: jax.Array) -> tuple[Model, Variables]:
    """The same by as much as its length."""
    return _kicked(model, variables, key, "outgoing", 1.0)


def _kicked(model: Model, variables: Variables, key: jax.Array, component: str, size: float) -> tuple[Model, Variables]:
    """A random direction in one component of the normal space of the clones, `size` times as long as what is read."""
    wide, variables = cloned(model, variables, key)
    params, (first, added) = variables["params"], halves(wide.wiring, variables["params"])
    direction = normals_of(wide.wiring, params, component).project(normals_like(params, key))
    read = where(jax.tree.map(jnp.logical_or, first.outgoing, added.outgoing), params, optax.tree.zeros_like(params))
    length = size * optax.tree.norm(read) / optax.tree.norm(direction)
    return wide, {**variables, "params": optax.tree.add_scale(params, length, direction)}


def normals_like(params: Params, key: jax.Array) -> Params:
    """Independent standard normals in a tree like the parameters, drawn at once: array by array costs compilation."""
    flat, unravel = ravel_pytree(params)
    return unravel(standard_normal(key, flat.shape, flat.dtype))


def normals_of(wide: Wiring, params: Params, component: str) -> Subspace:
    """One component of the normal space of the leaf of equal clones (`lopjax.manifolds.CloneNormals`), by its name."""
    normals = cloned_manifold(params, wide, uniform_partition(wide, FACTOR)).normals
    assert isinstance(normals, CloneNormals)
    return getattr(normals, component)


class Halves(NamedTuple):
    """Masks of the parameters of the first of all clones, and of the added ones."""

    first: UnitMasks
    added: UnitMasks


def halves(wide: Wiring, params: Params) -> Halves:
    """Which parameters write, and which read, the first of two clones and the added one."""
    is_added = {space: np.arange(wide.size(space)) % FACTOR == 1 for space in wide.cloneable}
    return Halves(
        unit_masks(wide, params, {space: ~added for space, added in is_added.items()}),
        unit_masks(wide, params, is_added),
    )


def check_function(name: str, logits: jax.Array, expected: jax.Array) -> None:
    """Refuse an arm that has changed the outputs by more than rounding does.

    Args:
        name: name of the arm.
        logits: logits of its networks on the probe.
        expected: logits of their checkpoints.

    Raises:
        FunctionChangedError: the largest difference is above 1e-5 in float32, 1e-12 in float64, relative to the
            largest output if that is above 1; or a logit is not finite.
    """
    largest = max(1.0, float(np.max(np.abs(expected))))
    allowed = largest * (1e-12 if expected.dtype == np.float64 else 1e-5)
    change = float(np.max(np.abs(np.asarray(logits) - np.asarray(expected))))
    if not change <= allowed:
        raise FunctionChangedError(
            f"arm {name!r}: changes the logits by {change:.3g}; must be at most {allowed:.3g}, or its row in ARMS must "
            "say keeps_function=False"
        )
