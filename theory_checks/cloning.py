"""Cloned units.

Units that receive the same totals from every cluster of sources (RE) and send the same totals to every cluster of
targets (CE) stay clones of each other under gradient descent, on any data, in any architecture. V is the linear space of
all such parameters; its block-constant points (BC) are the ones with *equal* weights.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.cloning import clone_variables, widen
from lopjax.losses import mean_cross_entropy
from lopjax.model import Model, Taps, Variables
from lopjax.probes import observe
from theory_checks.architectures import Architecture, architectures, random_batches, random_variables
from theory_checks.check import Check, Row, Size
from theory_checks.clusters import Points, cloned_points, departure, spread, unequal_partition

PAPER = "arXiv 2510.00304"
ROUNDING, SIGNAL = 1e-13, 1e-3


class Residuals(NamedTuple):
    """At one point, the largest over batches and sites: what leaves the leaf, and what differs inside clusters."""

    gradient: float
    forward: float
    backward: float


@partial(jax.jit, static_argnums=(0, 1))
def gradients_and_signals(
    model: Model, train: bool, points: Variables, inputs: jax.Array, labels: jax.Array
) -> tuple[Variables, Taps, Taps]:
    """Gradients, activations and backward signals at every point on every batch: arrays get two axes in front."""

    def at(point: Variables, batch: tuple[jax.Array, jax.Array]):
        def loss(params, perturbations):
            state = {**point, "params": params}
            logits, _, taps = model.apply(state, batch[0], train=train, perturbations=perturbations)
            return mean_cross_entropy(logits, batch[1]), taps

        shapes = jax.eval_shape(lambda: model.apply(point, batch[0], train=train)[2])
        nothing = jax.tree.map(lambda tap: jnp.zeros(tap.shape, tap.dtype), shapes)
        (gradient, backward), taps = jax.grad(loss, argnums=(0, 1), has_aux=True)(point["params"], nothing)
        return gradient, taps, backward

    return jax.lax.map(lambda point: jax.lax.map(lambda batch: at(point, batch), (inputs, labels)), points)


def measure(architecture: Architecture, size: Size) -> dict[str, Residuals]:
    """Residuals at points of BC, V, RE and elsewhere, over random batches."""
    model = architecture.build()
    partition = unequal_partition(model.wiring)
    points = cloned_points(model.wiring, partition, random_variables(model))
    batches = random_batches(architecture.input_shape, 3 if size == "small" else 20)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    found = jax.device_get(gradients_and_signals(model, architecture.train, stacked, *batches))

    def at(point: int, batch: int) -> Residuals:
        gradient, forward, backward = jax.tree.map(lambda leaf: leaf[point, batch], found)
        return Residuals(
            departure(model.wiring, partition, gradient).leaf,
            max(spread(tap.post, partition[tap.space]) for tap in forward.values()),
            max(spread(tap.pre, partition[tap.space]) for tap in backward.values()),
        )

    return {
        name: Residuals(*np.max([at(point, batch) for batch in range(len(batches[0]))], axis=0))
        for point, name in enumerate(Points._fields)
    }
