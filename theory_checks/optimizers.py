"""Optimizers and cloned units.

Gradient descent keeps clones because their gradients are equal. Which other updates do? They are tested on *one*
update, from a history of gradients along the leaf, because over long runs rounding decides (see confinement). An
optimizer is of one of three kinds; each row of the table in `theory_checks/optimizer_table.py` says which, and a new
optimizer joins by adding a row. All are tested on an MLP and on a ViT with cloned stream, heads and MLP
(`theory_checks/updates.py`). Shampoo, SOAP and K-FAC are not in optax; like Muon they are functions of the gradient as
a matrix.
"""

from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np

from theory_checks.check import Check, Row, Size
from theory_checks.clusters import departure, split, take, unequal_partition
from theory_checks.optimizer_table import MUON_ON_EVERY_KERNEL, OPTIMIZERS, Optimizer
from theory_checks.updates import (
    ROUNDING,
    SIGNAL,
    departures,
    history,
    network,
    of_kind,
    raw_history,
    shares_of_largest,
    transformation,
)

TABLES: Mapping[str, tuple[Optimizer, ...]] = MappingProxyType(
    {"mlp": OPTIMIZERS, "vit": OPTIMIZERS + MUON_ON_EVERY_KERNEL}
)
"""What is tested on each network of `updates.NETWORKS`."""


def check_history(size: Size) -> list[Row]:
    """Share of an update that leaves the leaf, from BC and from V; weight decay as the control."""
    del size
    rows = [
        Row(f"{name}: from BC and V", max(shares.bc.leaf, shares.v.leaf), optimizer.slack * ROUNDING)
        for (name, optimizer), shares in of_kind("leaf", TABLES).items()
    ]
    decayed = min(shares.v.leaf for shares in of_kind("V", TABLES).values())
    return [*rows, Row("with weight decay, from V: least of all", decayed, SIGNAL, control=True)]


def check_decay(size: Size) -> list[Row]:
    """Share of an update that leaves V from V, and the leaf from BC; and how far it leaves the leaf from V."""
    del size
    rows = []
    for (name, optimizer), shares in of_kind("V", TABLES).items():
        rows.append(Row(f"{name}: BC from BC, V from V", max(shares.bc.leaf, shares.v.v), optimizer.slack * ROUNDING))
        rows.append(Row(f"{name}: the leaf, from V", shares.v.leaf, SIGNAL, control=True))
    return rows


def check_told_apart(size: Size) -> list[Row]:
    """Share of an update that leaves BC from BC; and how far it leaves V from V, unless clusters are pairs."""
    del size
    in_pairs = [departures(optimizer, "mlp", has_pairs=True).v.v for optimizer in OPTIMIZERS if optimizer.keeps == "BC"]
    rows = [Row("mlp, clusters of two: V, from V, the largest of all", max(in_pairs), ROUNDING)]
    for (name, optimizer), shares in of_kind("BC", TABLES).items():
        rows.append(Row(f"{name}: BC from BC", shares.bc.leaf, optimizer.slack * ROUNDING))
        rows.append(Row(f"{name}: V, from V", shares.v.v, SIGNAL, control=True))
    return rows


def check_rounding_errors(size: Size) -> list[Row]:
    """Share of an update that leaves the leaf of a ViT, with and without errors of rounding in its gradients."""
    del size
    shares = sorted(jax.tree.leaves(shares_of_largest(raw_history("vit")[1])))
    signed, adam = (next(row for row in OPTIMIZERS if row.name == name) for name in ("signed sgd", "adam"))
    return [
        Row("biases of the keys: gradient over the largest one", shares[0], ROUNDING),
        Row("any other array: gradient over the largest one", shares[1], SIGNAL, ">="),
        Row("signed sgd: from V", departures(signed, "vit", has_errors=True).v.leaf, 1e-3, ">="),
        Row("adam: from V, more than rounding", departures(adam, "vit", has_errors=True).v.leaf, ROUNDING, ">="),
        Row("signed sgd, keys' biases held: from V", departures(signed, "vit").v.leaf, 1e-3, ">=", control=True),
    ]


def check_muon(size: Size) -> list[Row]:
    """Add a small normal part to the gradients of V: by how much a first update multiplies its share."""
    rng, repeats = np.random.default_rng(0), 5 if size == "small" else 50

    def amplification(optimizer: Optimizer, name: str = "mlp") -> float:
        wiring, rule = network(name).model.wiring, transformation(optimizer, name)
        partition = unequal_partition(wiring)
        params, gradients = (take(tree, 1, 0) for tree in history(name))
        update = jax.jit(lambda g: rule.update(g, rule.init(params), params)[0])
        factors = []
        for _ in range(repeats):
            # In proportion to each array, like rounding.
            noise = jax.tree.map(lambda leaf: np.linalg.norm(leaf) * rng.normal(size=leaf.shape), gradients)
            normal = split(wiring, partition, noise)
            shift = jax.tree.map(lambda a, b: 1e-9 * (a + b), normal.incoming, normal.outgoing)
            seeded = jax.tree.map(lambda g, s: jnp.asarray(g + s), gradients, shift)
            before = departure(wiring, partition, seeded).v
            factors.append(departure(wiring, partition, update(seeded)).v / before)
        return float(np.median(factors))

    table = {optimizer.name: optimizer for optimizer in TABLES["vit"]}
    muon = amplification(table["muon"])
    on_vit = ("sgd", "adam", "muon", "muon on every kernel")
    return [
        Row("muon: median factor", muon, 10, ">="),
        Row("muon: median factor, below that of five Newton-Schulz steps at 0", muon, 3.4445**5),
        Row("sgd: median factor", amplification(table["sgd"]), 10, ">=", control=True),
        *(Row(f"vit, {optimizer}: median factor", amplification(table[optimizer], "vit")) for optimizer in on_vit),
    ]


CHECKS: tuple[Check, ...] = (
    Check(
        "optimizers.gradient_history",
        "An update that is computed from the history of gradients alone (by coordinates, by row and column statistics,"
        " by norms or as a matrix) keeps every leaf W + BC.",
        "this library (the question is open in arXiv 2510.00304)",
        check_history,
        "Changing the optimizer does not free clones, of units or of attention heads: Adam, Lion, Muon and the rest"
        " keep them as SGD does. Clones that escape in long runs escape through rounding, see confinement.rounding.",
    ),
    Check(
        "optimizers.weight_decay",
        "Decoupled weight decay, and L2 in the gradient of a linear or a matrix optimizer, keep V, and of its"
        " leaves only BC.",
        "this library",
        check_decay,
        "Weight decay does not free clones. It makes them equal: differences between them shrink, totals stay equal.",
    ),
    Check(
        "optimizers.coupled_decay",
        "L2 inside an optimizer that rescales each coordinate, and clipping unit by unit, keep BC. They leave V where a"
        " cluster has three units or more, and keep it where none has more than two.",
        "this library",
        check_told_apart,
        "Adam with L2 in the loss is not AdamW here either: clones with unequal weights drift apart under it. They"
        " also do so under Optax's Muon on a ViT, as it leaves kernels of more than two axes to Adam unless it is told"
        " which are rows. Where every unit has one clone they do not, because V is then the set of points that a"
        " single swap of all pairs fixes.",
        "This page used to say that V is left, whatever the sizes of the clusters.",
    ),
    Check(
        "optimizers.rounding_errors",
        "Softmax does not depend on the biases of attention keys, so their gradient consists of rounding errors alone;"
        " optimizers that rescale coordinates turn these into steps, which tell clones apart.",
        "this library",
        check_rounding_errors,
        "In a ViT, Adam and Lion move the key biases of clones at random. The function does not change, but measures"
        " of parameters do: leave these arrays out, or use keys without bias.",
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
