"""Cloned units.

Units that receive the same totals from every cluster of sources (RE) and send the same totals to every cluster of
targets (CE) stay clones of each other under gradient descent, on any data, in any architecture. V is the linear space
of all such parameters; its block-constant points (BC) are the ones with *equal* weights. The leaf of a point W of V is
W + BC: clones keep the differences that they have, and add equal changes.
"""

from collections.abc import Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.cloning import clone_variables, widen
from lopjax.losses import mean_cross_entropy
from lopjax.model import Model, Taps, Variables
from theory_checks.architectures import Architecture, architectures, random_batches, random_variables
from theory_checks.check import Check, Row, Size
from theory_checks.clusters import Points, cloned_points, departure, spread, unequal_partition

PAPER = "arXiv 2510.00304"
ROUNDING, SIGNAL = 1e-13, 1e-3
NUM_BATCHES: Mapping[Size, int] = MappingProxyType({"small": 3, "full": 20})


class Residuals(NamedTuple):
    """At one point, the largest over batches and sites: what leaves the leaf, and what differs inside clusters."""

    gradient: float
    forward: float
    backward: float


@partial(jax.jit, static_argnums=(0, 1))
def gradients_and_signals(
    model: Model, train: bool, points: Variables, inputs: jax.Array, labels: jax.Array
) -> tuple[Variables, Taps, Taps]:
    """Gradients, activations and backward signals at every point on every batch: arrays get two axes in front.

    In place of the gradient of running statistics, which have none, stand the statistics after the batch.
    """

    def at(point: Variables, batch: tuple[jax.Array, jax.Array]):
        def loss(params, perturbations):
            state = {**point, "params": params}
            logits, after, taps = model.apply(state, batch[0], train=train, perturbations=perturbations)
            return mean_cross_entropy(logits, batch[1]), (taps, after)

        shapes = jax.eval_shape(lambda: model.apply(point, batch[0], train=train).taps)
        nothing = jax.tree.map(lambda tap: jnp.zeros(tap.shape, tap.dtype), shapes)
        (gradient, backward), (taps, after) = jax.grad(loss, argnums=(0, 1), has_aux=True)(point["params"], nothing)
        return {**after, "params": gradient}, taps, backward

    return jax.lax.map(lambda point: jax.lax.map(lambda batch: at(point, batch), (inputs, labels)), points)


def measure(architecture: Architecture, size: Size) -> dict[str, Residuals]:
    """Residuals at points of BC, V, RE and elsewhere, over random batches."""
    model = architecture.build()
    partition = unequal_partition(model.wiring)
    points = cloned_points(model.wiring, partition, random_variables(model))
    batches = random_batches(architecture.input_shape, NUM_BATCHES[size])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    signals = jax.device_get(gradients_and_signals(model, architecture.train, stacked, *batches))

    def at(point: int, batch: int) -> Residuals:
        gradient, forward, backward = jax.tree.map(lambda leaf: leaf[point, batch], signals)
        return Residuals(
            departure(model.wiring, partition, gradient["params"]).leaf,
            max(spread(tap.post, partition[tap.space]) for tap in forward.values()),
            max(spread(tap.pre, partition[tap.space]) for tap in backward.values()),
        )

    return {
        name: Residuals(*np.max([at(point, batch) for batch in range(len(batches[0]))], axis=0))
        for point, name in enumerate(Points._fields)
    }


@cache
def _table(size: Size) -> dict[str, dict[str, Residuals]]:
    return {name: measure(architecture, size) for name, architecture in architectures(size).items()}


def largest(table: dict[str, dict[str, Residuals]], name: str, points: str, field: str) -> float:
    """The largest value for an architecture over the points named."""
    return max(getattr(table[name][point], field) for point in points.split())


def least(table: dict[str, dict[str, Residuals]], point: str, field: str) -> float:
    """The smallest value over all architectures, at one point."""
    return min(getattr(values[point], field) for values in table.values())


def check_tangency(size: Size) -> list[Row]:
    """Share of the gradient that leaves the leaf, at points of BC and of V with unequal clusters."""
    table = _table(size)
    return [
        *(Row(f"{name}: at BC and V", largest(table, name, "bc v", "gradient"), ROUNDING) for name in table),
        Row("RE without CE: least of all", least(table, "re", "gradient"), SIGNAL, control=True),
        Row("no clones: least of all", least(table, "off", "gradient"), SIGNAL, control=True),
    ]


def check_forward(size: Size) -> list[Row]:
    """Differences of activations inside clusters, at every site."""
    table = _table(size)
    return [
        *(Row(f"{name}: at BC, V, RE", largest(table, name, "bc v re", "forward"), ROUNDING) for name in table),
        Row("no clones: least of all", least(table, "off", "forward"), SIGNAL, control=True),
    ]


def check_backward(size: Size) -> list[Row]:
    """Differences of backward signals inside clusters, at every site."""
    table = _table(size)
    return [
        *(Row(f"{name}: at BC and V", largest(table, name, "bc v", "backward"), ROUNDING) for name in table),
        Row("RE without CE: least of all", least(table, "re", "backward"), SIGNAL, control=True),
        Row("no clones: least of all", least(table, "off", "backward"), SIGNAL, control=True),
    ]


def check_same_function(size: Size) -> list[Row]:
    """Logits of a cloned network minus those of its base, and what they are without the division by n."""
    rows, undivided = [], []
    for name in ("mlp, tanh, batch norm", "cnn, relu", "vit, gelu, layer norm"):
        architecture = architectures(size)[name]
        base = architecture.build()
        variables = random_variables(base)
        inputs = random_batches(architecture.input_shape, 1)[0][0]
        logits = jax.jit(base.apply)(variables, inputs)[0]
        wide = widen(base, 3)
        wide_apply = jax.jit(wide.apply)
        clones = clone_variables(variables, base.wiring, 3)
        repeated = wide.wiring.map(lambda label, leaf: leaf * 3 ** len(label.reads()), clones)

        def error(state: Variables, apply=wide_apply, inputs=inputs, logits=logits) -> float:
            return float(jnp.linalg.norm(apply(state, inputs).logits - logits) / jnp.linalg.norm(logits))

        rows.append(Row(f"{name}, 3 clones per unit", error(clones), ROUNDING))
        undivided.append(error(repeated))
    return [*rows, Row("repeated without dividing: least of all", min(undivided), SIGNAL, control=True)]


CHECKS: tuple[Check, ...] = (
    Check(
        "cloning.same_function",
        "Units repeated n times, with weights divided by n along input axes, compute what the base network does.",
        f"{PAPER}, section 4",
        check_same_function,
        "A trained network can be widened without changing its outputs; the question is what training does next.",
    ),
    Check(
        "cloning.forward",
        "On RE all units of a cluster have the same activations, on every input.",
        f"{PAPER}, proposition 4.1 and appendix A.2",
        check_forward,
        "Duplicate units cost memory and time and add no feature. For units to be clones, equal *totals* are enough;"
        " their weights may differ.",
    ),
    Check(
        "cloning.backward",
        "On V all units of a cluster also receive the same backward signals; RE alone is not enough.",
        f"{PAPER}, proposition 4.1 and appendix A.2",
        check_backward,
        "To free clones, change what they send (their outgoing totals) in a way that the loss can see: then their"
        " gradients differ at the next step.",
        "This page used to omit that the loss must see the change. A constant over the classes of a softmax, or over a"
        " space that only layer norms read, breaks the outgoing totals and frees nothing (see symmetry).",
    ),
    Check(
        "cloning.tangency",
        "On V the gradient of every loss on every batch is block-constant: tangent to the leaf W + BC.",
        f"{PAPER}, proposition 4.1; unequal clusters, norms and attention: this library",
        check_tangency,
        "Neither data nor labels can give clones different gradients, so a new task alone does not restore plasticity.",
    ),
)
"""In the order of the proof."""
