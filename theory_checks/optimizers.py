"""Optimizers and cloned units.

Gradient descent keeps clones because their gradients are equal. Which other updates do? Tested on *one* update, from a
history of gradients along the leaf: over long runs rounding decides (see confinement). An optimizer is of one of three
kinds; each row of the table in `theory_checks/optimizer_table.py` says which, and a new optimizer joins by adding a
row. Shampoo, SOAP and K-FAC are not in optax; like Muon they are functions of the gradient as a matrix.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from lopjax.losses import cross_entropy
from lopjax.model import Model, Params
from lopjax.models import mlp
from theory_checks.architectures import ARCHITECTURES, NUM_CLASSES, random_batches, random_variables
from theory_checks.check import Check, Row, Size
from theory_checks.clusters import Departure, cloned_points, departure, split, take, unequal_partition
from theory_checks.optimizer_table import OPTIMIZERS, RATE, Kind, Optimizer

INPUT, HISTORY = (5,), 2
ROUNDING = 64 * float(np.finfo(np.float64).eps)
SIGNAL = 1e-6


NETWORKS = ("mlp", "vit")


@cache
def network(name: str = "mlp") -> tuple[Model, tuple[int, ...]]:
    """A network of the table, and the shape of its inputs; in the ViT stream, heads and MLP are cloned."""
    if name == "mlp":
        return mlp(INPUT, (6, 6), NUM_CLASSES, activation="tanh"), INPUT
    architecture = ARCHITECTURES["vit, gelu, layer norm"]
    return architecture.build(), architecture.input_shape


@cache
def history(name: str = "mlp") -> tuple[Params, Params]:
    """Parameters along gradient descent from BC and from V, and their gradients: arrays `(2, steps, ...)`.

    An array whose gradient is rounding alone has none: see `check_rounding_errors`.
    """
    params, gradients = raw_history(name)
    shares = shares_of_largest(gradients)
    return params, jax.tree.map(lambda leaf, share: leaf * (share > ROUNDING), gradients, shares)


def shares_of_largest(gradients: Params) -> Params:
    """The largest entry of each array over the largest entry of all."""
    peaks = jax.tree.map(lambda leaf: np.abs(leaf).max(), gradients)
    largest = max(jax.tree.leaves(peaks))
    return jax.tree.map(lambda peak: peak / largest, peaks)


@cache
def raw_history(name: str) -> tuple[Params, Params]:
    """The same, with the gradients as they were computed."""
    model, shape = network(name)
    points = cloned_points(model.wiring, unequal_partition(model.wiring), random_variables(model))
    start = jax.tree.map(lambda *leaves: jnp.stack(leaves), points.bc["params"], points.v["params"])

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    def descend(params: Params, batches: tuple[jax.Array, jax.Array]) -> tuple[Params, Params]:
        def step(params, batch):
            gradient = jax.grad(cross_entropy(model, {}, batch))(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), (params, gradient)

        return jax.lax.scan(step, params, batches)[1]

    return jax.device_get(descend(start, random_batches(shape, HISTORY)))


class Departures(NamedTuple):
    """What one update leaves, from a point of BC and from one of V that is not on BC."""

    bc: Departure
    v: Departure


@cache
def departures(optimizer: Optimizer, name: str, is_raw: bool = False) -> Departures:
    """The update after a history of gradients, from both points; raw ones with their rounding errors."""
    (model, _), transformation = network(name), optimizer.make()
    params, gradients = raw_history(name) if is_raw else history(name)

    @jax.jit
    @jax.vmap
    def last_update(params: Params, gradients: Params) -> Params:
        state = transformation.init(take(params, 0))
        update = None
        for k in range(HISTORY):
            gradient, point = (take(tree, k) for tree in (gradients, params))
            update, state = transformation.update(gradient, state, point)
        return update

    updates = jax.device_get(last_update(params, gradients))
    partition = unequal_partition(model.wiring)
    return Departures(*(departure(model.wiring, partition, take(updates, point)) for point in range(2)))


def of_kind(kind: Kind) -> dict[tuple[str, Optimizer], Departures]:
    """The rows of the table of one kind, measured on every network, by a name that says which."""
    return {
        (f"{network}, {optimizer.name}", optimizer): departures(optimizer, network)
        for network in NETWORKS
        for optimizer in OPTIMIZERS
        if ((network == "vit" and optimizer.on_vit) or optimizer.keeps) == kind
    }


def check_history(size: Size) -> list[Row]:
    """Share of an update that leaves the leaf, from BC and from V; weight decay as the control."""
    del size
    rows = [
        Row(f"{name}: from BC and V", max(found.bc.leaf, found.v.leaf), optimizer.slack * ROUNDING)
        for (name, optimizer), found in of_kind("leaf").items()
    ]
    decayed = min(found.v.leaf for found in of_kind("V").values())
    return [*rows, Row("with weight decay, from V: least of all", decayed, SIGNAL, control=True)]


def check_decay(size: Size) -> list[Row]:
    """Share of an update that leaves V from V, and the leaf from BC; and how far it leaves the leaf from V."""
    del size
    rows = []
    for (name, optimizer), found in of_kind("V").items():
        rows.append(Row(f"{name}: BC from BC, V from V", max(found.bc.leaf, found.v.v), optimizer.slack * ROUNDING))
        rows.append(Row(f"{name}: the leaf, from V", found.v.leaf, SIGNAL, control=True))
    return rows


def check_told_apart(size: Size) -> list[Row]:
    """Share of an update that leaves BC from BC; and how far it leaves V from V."""
    del size
    rows = []
    for (name, optimizer), found in of_kind("BC").items():
        rows.append(Row(f"{name}: BC from BC", found.bc.leaf, optimizer.slack * ROUNDING))
        rows.append(Row(f"{name}: V, from V", found.v.v, SIGNAL, control=True))
    return rows


def check_rounding_errors(size: Size) -> list[Row]:
    """Share of an update that leaves the leaf of a ViT, with and without the rounding errors of the gradients."""
    del size
    shares = sorted(jax.tree.leaves(shares_of_largest(raw_history("vit")[1])))
    signed, adam = (next(row for row in OPTIMIZERS if row.name == name) for name in ("signed sgd", "adam"))
    return [
        Row("biases of the keys: gradient over the largest one", shares[0], ROUNDING),
        Row("any other array: gradient over the largest one", shares[1], SIGNAL, ">="),
        Row("signed sgd: from V", departures(signed, "vit", is_raw=True).v.leaf, 1e-3, ">="),
        Row("adam: from V, more than rounding", departures(adam, "vit", is_raw=True).v.leaf, ROUNDING, ">="),
        Row("signed sgd, keys' biases held: from V", departures(signed, "vit").v.leaf, 1e-3, ">=", control=True),
    ]


def check_muon(size: Size) -> list[Row]:
    """Add a small normal part to the gradients of V: by how much a first update multiplies its share."""
    wiring = network()[0].wiring
    partition = unequal_partition(wiring)
    params, gradients = (take(tree, 1, 0) for tree in history())
    rng = np.random.default_rng(0)

    def amplification(make: Callable[[], optax.GradientTransformation]) -> float:
        optimizer, factors = make(), []
        update = jax.jit(lambda g: optimizer.update(g, optimizer.init(params), params)[0])
        for _ in range(5 if size == "small" else 50):
            normal = split(wiring, partition, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params))
            shift = jax.tree.map(lambda a, b: 1e-9 * (a + b), normal.incoming, normal.outgoing)
            seeded = jax.tree.map(lambda g, s: jnp.asarray(g + s), gradients, shift)
            before = departure(wiring, partition, seeded).v
            factors.append(departure(wiring, partition, update(seeded)).v / before)
        return float(np.median(factors))

    muon = amplification(partial(contrib.muon, RATE))
    return [
        Row("muon: median factor", muon, 10, ">="),
        Row("muon: median factor, below that of five Newton-Schulz steps at 0", muon, 3.4445**5),
        Row("sgd: median factor", amplification(partial(optax.sgd, RATE)), 10, ">=", control=True),
    ]


CHECKS: tuple[Check, ...] = (
    Check(
        "optimizers.gradient_history",
        "An update made from the history of gradients alone, by coordinates, row and column statistics, norms or as a"
        " matrix, keeps every leaf W + BC.",
        "this library (the question is open in arXiv 2510.00304)",
        check_history,
        "Changing the optimizer does not free clones: Adam, Lion, Muon and the rest keep them as SGD does. What escapes"
        " in long runs escapes on rounding, see confinement.rounding.",
    ),
    Check(
        "optimizers.weight_decay",
        "Decoupled weight decay, and L2 in the gradient of a linear or a matrix optimizer, keep V; of the leaves"
        " only BC.",
        "this library",
        check_decay,
        "Weight decay does not free clones. It makes them equal: differences between them shrink, totals stay equal.",
    ),
    Check(
        "optimizers.coupled_decay",
        "L2 inside an optimizer that rescales each coordinate, and clipping unit by unit, keep BC and leave V.",
        "this library",
        check_told_apart,
        "Adam with L2 in the loss is not AdamW here either: clones with unequal weights drift apart under it.",
    ),
    Check(
        "optimizers.rounding_errors",
        "Softmax does not see the biases of attention keys, so their gradient is rounding alone; optimizers that"
        " rescale coordinates make steps of it, and these tell clones apart.",
        "this library",
        check_rounding_errors,
        "In a ViT, Adam and Lion move the key biases of clones at random. The function does not notice, but a measure"
        " of parameters does: leave these arrays out, or use keys without bias.",
    ),
    Check(
        "optimizers.muon",
        "Muon keeps clones in exact arithmetic, and multiplies a departure of the gradient about a hundredfold.",
        "this library",
        check_muon,
        "Muon is an escape amplifier: rounding errors of 1e-16 free clones within a few hundred steps, see"
        " confinement.rounding.",
    ),
)
"""From what keeps most to what keeps nothing."""
