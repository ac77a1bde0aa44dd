"""One update of an optimizer on cloned networks, and what it leaves: measured here, judged in `optimizers`."""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import MuonDimensionNumbers

from lopjax.losses import cross_entropy
from lopjax.model import Model, Params
from lopjax.models import mlp, vit
from lopjax.wiring import In, Label
from theory_checks.architectures import random_batches, random_variables
from theory_checks.clusters import Departure, cloned_points, departure, take, unequal_partition
from theory_checks.optimizer_table import Kind, Optimizer

ROUNDING = 64 * float(np.finfo(np.float64).eps)
SIGNAL = 1e-6
HISTORY = 2
UNITS = 6
"""Three clusters of every space, of 1, 3 and 2 units. Two would not do for a stream: layer norm of two values is a
constant, and nothing behind it has a gradient. There are as many tokens, classes and coordinates of a head, so that
arrays have few shapes: operations run one by one are compiled for each shape, and this halves the time."""


class Network(NamedTuple):
    """What is trained: a model, and the shape of an input."""

    model: Model
    input_shape: tuple[int, ...]


def _mlp() -> Network:
    return Network(mlp((UNITS,), (UNITS, UNITS), UNITS, activation="tanh"), (UNITS,))


def _vit() -> Network:
    shape = (2, 2 * (UNITS - 1), 1)
    base = vit(shape, UNITS, patch=2, width=UNITS, depth=1, heads=1, mlp_ratio=1.0)
    return Network(base.resize({"heads_0": UNITS}), shape)


NETWORKS: Mapping[str, Callable[[], Network]] = MappingProxyType({"mlp": _mlp, "vit": _vit})
"""Networks in which all cloneable spaces are cloned: in the ViT its stream, heads and MLP."""


@cache
def network(name: str) -> Network:
    """One of `NETWORKS`."""
    return NETWORKS[name]()


def clusters(name: str, has_pairs: bool = False) -> dict[str, tuple[int, ...]]:
    """Clusters of 1, 3 and 2 units in every space that is cloned, or pairs."""
    wiring = network(name).model.wiring
    pairs = tuple(unit // 2 for unit in range(UNITS))
    return dict.fromkeys(wiring.cloned_by_default, pairs) if has_pairs else unequal_partition(wiring)


@cache
def raw_history(name: str, has_pairs: bool = False) -> tuple[Params, Params]:
    """Parameters along gradient descent from BC and from V, and their gradients: arrays `(2, steps, ...)`."""
    model, shape = network(name)
    points = cloned_points(model.wiring, clusters(name, has_pairs), random_variables(model))
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), points.bc["params"], points.v["params"])
    gradient = jax.jit(jax.vmap(lambda params, batch: jax.grad(cross_entropy(model, {}, batch))(params), (0, None)))
    visited = []
    for batch in zip(*random_batches(shape, HISTORY)):
        visited.append((params, gradient(params, batch)))
        params = jax.tree.map(lambda p, g: p - 0.1 * g, *visited[-1])
    return jax.device_get(jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *visited))


@cache
def history(name: str, has_pairs: bool = False) -> tuple[Params, Params]:
    """The same, with zeros for an array whose gradient is rounding alone (see `optimizers.check_rounding_errors`)."""
    params, gradients = raw_history(name, has_pairs)
    shares = shares_of_largest(gradients)
    return params, jax.tree.map(lambda leaf, share: leaf * (share > ROUNDING), gradients, shares)


@cache
def history_with_errors(name: str) -> tuple[Params, Params]:
    """The same, with random errors of that size for an array whose gradient is rounding alone.

    Real rounding errors differ with every order of summation, and may by luck be equal for clones.
    """
    params, gradients = raw_history(name)
    shares, random = shares_of_largest(gradients), np.random.default_rng(0)
    unit = np.finfo(np.float64).eps * max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients))

    def with_errors(leaf: np.ndarray, share: float) -> np.ndarray:
        return leaf if share > ROUNDING else unit * random.normal(size=leaf.shape)

    return params, jax.tree.map(with_errors, gradients, shares)


def shares_of_largest(gradients: Params) -> Params:
    """The largest entry of each array over the largest entry of all."""
    peaks = jax.tree.map(lambda leaf: np.abs(leaf).max(), gradients)
    largest = max(jax.tree.leaves(peaks))
    return jax.tree.map(lambda peak: peak / largest, peaks)


def transformation(optimizer: Optimizer, name: str) -> optax.GradientTransformation:
    """The optimizer as built for a network."""
    if optimizer.sees_wiring:
        return optimizer.make(wiring=network(name).model.wiring)
    if not optimizer.sees_matrices:
        return optimizer.make()
    axes = network(name).model.wiring.map(_rows_and_columns, take(history(name)[0], 0, 0))
    return optimizer.make(muon_weight_dimension_numbers=axes)


def _rows_and_columns(label: Label, leaf: Any) -> MuonDimensionNumbers | None:
    """Rows are the axes that a kernel sums over; columns those that it writes, the width of a head among them."""
    reads = [index for index, axis in enumerate(label.axes) if isinstance(axis, In)]
    if not reads:
        return None
    # `(positions, in, out)` or `(in, heads, head width)`: whatever comes before the units read is summed over, too.
    end = reads[-1] + 1
    return MuonDimensionNumbers(tuple(range(end)), tuple(range(end, leaf.ndim)))


class Departures(NamedTuple):
    """What one update leaves, from a point of BC and from one of V that is not on BC."""

    bc: Departure
    v: Departure


@cache
def departures(optimizer: Optimizer, name: str, has_errors: bool = False, has_pairs: bool = False) -> Departures:
    """The update after a history of gradients, from both points, with or without errors of rounding, or for pairs.

    Run operation by operation: the optimizers of the table consist of few operations on arrays of few shapes and share
    what is compiled. Those with loops of their own do not.
    """
    wiring, rule = network(name).model.wiring, transformation(optimizer, name)
    partition = clusters(name, has_pairs)
    step = jax.jit(rule.update) if optimizer.has_loops else rule.update
    params, gradients = history_with_errors(name) if has_errors else history(name, has_pairs)

    def at(tree: Params, point: int, k: int) -> Params:
        return jax.tree.map(jnp.asarray, take(tree, point, k))

    def last_update(point: int) -> Params:
        state, update = rule.init(at(params, point, 0)), None
        for k in range(HISTORY):
            update, state = step(at(gradients, point, k), state, at(params, point, k))
        return jax.device_get(update)

    return Departures(*(departure(wiring, partition, last_update(point)) for point in range(2)))


def of_kind(kind: Kind, optimizers: Mapping[str, tuple[Optimizer, ...]]) -> dict[tuple[str, Optimizer], Departures]:
    """The optimizers that keep `kind` on each network, measured, by a name that says which network."""
    return {
        (f"{name}, {optimizer.name}", optimizer): departures(optimizer, name)
        for name, rows in optimizers.items()
        for optimizer in rows
        if ((name == "vit" and optimizer.on_vit) or optimizer.keeps) == kind
    }
