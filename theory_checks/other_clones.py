"""Clones up to a factor.

There are linear spaces besides those of equal units that gradient descent never leaves, whatever the data: units that
are positive multiples of each other under a positive-homogeneous activation, units that differ by a sign under an odd
one, and units that have vanished under an activation with f(0) = 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopjax.curvature import hvp
from lopjax.losses import cross_entropy
from lopjax.manifolds import Multiples, weighted_manifold
from lopjax.model import Model, Params
from lopjax.models import mlp
from theory_checks.architectures import NUM_CLASSES, random_batches, random_variables
from theory_checks.check import Check, Row, Size
from theory_checks.clusters import norm, take
from theory_checks.confinement import train_path

INPUT, RATE, ROUNDING, SIGNAL = (5,), 0.01, 1e-11, 1e-3
TRIPLES = {"hidden_0": (0, 0, 0, 1), "hidden_1": (0, 0, 0, 1)}
"""Three units make a cluster, one is left out."""

WEIGHTED = {"hidden_0": (1.0, 2.0, 0.5, 1.0), "hidden_1": (1.0, 0.7, 1.6, 1.0)}
SIGNED = {"hidden_0": (1.0, -1.0, 1.0, 1.0), "hidden_1": (1.0, 1.0, -1.0, 1.0)}
VANISHED = {"hidden_0": (0.0, 0.0, 0.0, 1.0), "hidden_1": (0.0, 0.0, 0.0, 1.0)}
"""Multiples of one unit, for the units of a cluster."""


def _network(activation: str) -> Model:
    return mlp(INPUT, (4, 4), NUM_CLASSES, activation=activation)


def project(model: Model, multiples: Multiples, tree: Params) -> Params:
    """The nearest parameters whose units are these multiples of one another."""
    partition = {space: TRIPLES[space] for space in multiples}
    return weighted_manifold(tree, model.wiring, partition, multiples).project(tree)


def distance(activation: str, multiples: Multiples, optimizer: str, size: Size) -> float:
    """How far a run on changing batches ends from the clones it started on."""
    model, steps = _network(activation), 200 if size == "small" else 2_000
    start = project(model, multiples, random_variables(model)["params"])
    path, _ = train_path(model, OPTIMIZERS[optimizer], jnp.asarray(RATE), start, random_batches(INPUT, steps))
    end = take(path, -1)
    return norm(jax.tree.map(lambda a, b: np.asarray(a - b), end, project(model, multiples, end)))


def _momentum(rate: jax.Array) -> optax.GradientTransformation:
    return optax.sgd(3 * rate, 0.9)


OPTIMIZERS = {"momentum": _momentum, "adam": optax.adam}


def check_weighted(size: Size) -> list[Row]:
    """Distance from clones that are multiples of each other, after a run."""
    return [
        Row("relu, momentum", distance("relu", WEIGHTED, "momentum", size), ROUNDING),
        Row("leaky_relu, momentum", distance("leaky_relu", WEIGHTED, "momentum", size), ROUNDING),
        Row("relu, adam", distance("relu", WEIGHTED, "adam", size), SIGNAL, control=True),
        Row("tanh, momentum", distance("tanh", WEIGHTED, "momentum", size), SIGNAL, control=True),
    ]


def check_signed(size: Size) -> list[Row]:
    """Distance from clones that differ by a sign, after a run."""
    return [
        Row("tanh, momentum", distance("tanh", SIGNED, "momentum", size), ROUNDING),
        Row("tanh, adam", distance("tanh", SIGNED, "adam", size), ROUNDING),
        Row("gelu, momentum", distance("gelu", SIGNED, "momentum", size), SIGNAL, control=True),
    ]


def check_vanished(size: Size) -> list[Row]:
    """Distance from zero units, after a run; and the curvature at them along two directions."""
    rows = [
        Row("tanh, momentum", distance("tanh", VANISHED, "momentum", size), 0.0),
        Row("tanh, adam", distance("tanh", VANISHED, "adam", size), 0.0),
        Row("sigmoid, momentum", distance("sigmoid", VANISHED, "momentum", size), SIGNAL, control=True),
    ]
    # One zero unit in the last hidden layer, so that its B is not zero: H pairs incoming with outgoing directions.
    model = _network("tanh")
    start = random_variables(model)["params"]
    params = weighted_manifold(start, model.wiring, {}, {"hidden_1": (0.0, 1.0, 1.0, 1.0)}).project(start)
    batch = take(random_batches(INPUT, 1), 0)
    noise = jax.tree.map(jnp.zeros_like, params)
    noise["hidden_1"]["kernel"] = noise["hidden_1"]["kernel"].at[:, 0].set(1.0)
    product = jax.jit(lambda v: hvp(cross_entropy(model, {}, batch), params, v))
    answer = product(noise)["classes"]["kernel"][0]

    def curvature(sign: float) -> float:
        """Curvature v'Hv along v = (incoming, sign * outgoing), both of the same unit."""
        v = {**noise, "classes": {**noise["classes"], "kernel": noise["classes"]["kernel"].at[0].set(sign * answer)}}
        return sum(float(jnp.vdot(a, b)) for a, b in zip(jax.tree.leaves(v), jax.tree.leaves(product(v))))

    return [
        *rows,
        Row("tanh: v'Hv, incoming and outgoing weights change together", curvature(1.0), SIGNAL, ">="),
        Row("tanh: v'Hv, outgoing weights the other way", curvature(-1.0), -SIGNAL),
    ]


CHECKS: tuple[Check, ...] = (
    Check(
        "other_clones.weighted",
        "Positive multiples (w, b, a) c_t of one positive-homogeneous unit stay multiples of it under SGD and momentum,"
        " on any data; not under Adam.",
        "this library: affine manifolds that arXiv 2510.00304 does not list",
        check_weighted,
        "Duplicate ReLU units need not look equal: compare directions, not weights (find_clones does).",
    ),
    Check(
        "other_clones.signed",
        "Under an odd activation, units that differ by the sign of all their weights continue to do so, for SGD,"
        " momentum and Adam.",
        "this library: affine manifolds that arXiv 2510.00304 does not list",
        check_signed,
        "For tanh networks count a unit and its mirror image as one.",
    ),
    Check(
        "other_clones.vanished",
        "A unit with w = b = a = 0 stays there if f(0) = 0. It is at a saddle across this manifold unless its coupling"
        " B is 0.",
        "this library; zero initialisation in many texts",
        check_vanished,
        "Units set to zero, by pruning or by decay, do not come back by themselves; a small kick is enough where B is"
        " not 0. On a fitted task B is 0; for a ReLU, which has a kink there, second derivatives do not decide.",
        "This page used to omit the condition on B.",
    ),
)
"""From multiples to signs to nothing."""
