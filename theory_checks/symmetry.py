"""Symmetries of a loss trap what they fix.

If `theta -> U theta + t`, U orthogonal, leaves the loss of every batch unchanged, then its gradient is equivariant, and
gradient descent with or without momentum never leaves the points that the map fixes. Swapping two units gives clones;
composed with a change that a softmax, a layer norm or the inside of an attention head cannot see, it gives clones that
look unequal: units whose outgoing weights differ by a constant, and heads that differ by rotations.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopjax.cloning import Partition
from lopjax.manifolds import cloned_manifold, distance
from lopjax.model import Model, Params
from lopjax.models import gpt, mlp, vit
from lopjax.wiring import Label
from theory_checks.architectures import NUM_CLASSES, random_batches, random_variables
from theory_checks.check import Check, Row, Size
from theory_checks.clusters import cloned_points, take
from theory_checks.confinement import train_path

IMAGE, INPUT, WIDTH, LENGTH = (4, 4, 2), (5,), 8, 4
PAIRS = {"heads_0": (0, 0), "mlp_0": (0, 0, 1, 2)}
RATE, ROUNDING, SIGNAL = 0.02, 1e-12, 1e-4

OPTIMIZERS: dict[str, Callable[[jax.Array], optax.GradientTransformation]] = {
    "momentum": lambda rate: optax.sgd(rate, 0.9),
    "adam": optax.adam,
}


@cache
def transformer() -> Model:
    """One block, two heads of four coordinates, four units in the MLP."""
    return vit(IMAGE, NUM_CLASSES, patch=2, width=WIDTH, depth=1, heads=2, mlp_ratio=0.5)


@cache
def orthogonal(seed: int) -> np.ndarray:
    """A random orthogonal matrix for the coordinates of a head."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(WIDTH // 2, WIDTH // 2)))[0]


def map_second_head(params: Params, query: Any, key: Any, value: Any, out: Any) -> Params:
    """Multiply queries, keys and values of the second head from the right, its output weights from the left."""

    def mapped(layer: dict[str, Any], matrix: Any) -> dict[str, Any]:
        kernel, bias = layer["kernel"], layer["bias"]
        return {"kernel": kernel.at[:, 1].set(kernel[:, 1] @ matrix), "bias": bias.at[1].set(bias[1] @ matrix)}

    head = params["heads_0"]
    kernel = head["out"]["kernel"]
    maps = {"query": query, "key": key, "value": value}
    rotated = {name: mapped(head[name], matrix) for name, matrix in maps.items()}
    rotated["out"] = {**head["out"], "kernel": kernel.at[:, 1].set(out @ kernel[:, 1])}
    return {**params, "heads_0": rotated}


def shift_first(params: Params, layer: str, shift: Any) -> Params:
    """Add to the outgoing weights of the first unit of a pair."""
    kernel = params[layer]["kernel"]
    return {**params, layer: {**params[layer], "kernel": kernel.at[0].add(shift)}}


def departures(optimizer: str, maps: tuple[Any, ...], inverses: tuple[Any, ...], size: Size) -> tuple[float, float]:
    """How far a run leaves the leaf of a pair of mapped heads (mapped back), and that of units with shifted outputs."""
    model, steps = transformer(), 150 if size == "small" else 1_000
    clones = cloned_points(model.wiring, PAIRS, random_variables(model)).bc["params"]
    start = shift_first(map_second_head(clones, *maps), "mlp_0_out", 0.9)
    path, _ = train_path(model, OPTIMIZERS[optimizer], jnp.asarray(RATE), start, random_batches(IMAGE, steps))
    end = take(path, -1)
    mapped_back = (map_second_head(params, *inverses) for params in (start, end))
    of_heads = departure(model, {"heads_0": PAIRS["heads_0"]}, *mapped_back)
    return of_heads, departure(model, {"mlp_0": PAIRS["mlp_0"]}, start, end)


def departure(model: Model, partition: Partition, start: Params, end: Params) -> float:
    """Distance of the end of a run from the leaf through its start."""
    return float(distance(cloned_manifold(start, model.wiring, partition), end))


def check_heads(size: Size) -> list[Row]:
    """Heads mapped by orthogonal and other matrices, after a run on changing batches."""
    turn, other = orthogonal(0), orthogonal(1)
    stretch = turn @ np.diag([2.0, 1.0, 0.5, 1.5])
    rotated, rotated_back = (turn, turn, other, other.T), (turn.T, turn.T, other.T, other)
    stretched = (stretch, np.linalg.inv(stretch).T, other, other.T)
    stretched_back = (np.linalg.inv(stretch), stretch.T, other.T, other)
    by_momentum, by_adam = (departures(name, rotated, rotated_back, size) for name in OPTIMIZERS)
    of_stretched = departures("momentum", stretched, stretched_back, size)
    return [
        Row("momentum: heads that differ by rotations of (Q, K) and of (V, O)", by_momentum[0], ROUNDING),
        Row("momentum: units whose outputs differ by a constant over the stream", by_momentum[1], ROUNDING),
        Row("adam: units whose outputs differ by a constant over the stream", by_adam[1], ROUNDING),
        Row("adam: heads that differ by rotations", by_adam[0], SIGNAL, control=True),
        Row("momentum: heads that differ by maps that are not orthogonal", of_stretched[0], SIGNAL, control=True),
    ]


def check_softmax(size: Size) -> list[Row]:
    """Units whose outgoing weights differ by a constant over the classes, after a run on changing batches."""
    model, steps = mlp(INPUT, (4,), NUM_CLASSES, activation="tanh"), 150 if size == "small" else 1_000
    partition: Partition = {"hidden_0": (0, 0, 1, 2)}
    clones = cloned_points(model.wiring, partition, random_variables(model)).bc["params"]
    stream = random_batches(INPUT, steps)

    def after_a_run(optimizer: str, shift: Any) -> float:
        start = shift_first(clones, "classes", shift)
        end = take(train_path(model, OPTIMIZERS[optimizer], jnp.asarray(RATE), start, stream)[0], -1)
        return departure(model, partition, start, end)

    unequal = jnp.arange(float(NUM_CLASSES))
    return [
        *(Row(f"{name}: constant over the classes", after_a_run(name, 0.9), ROUNDING) for name in OPTIMIZERS),
        *(
            Row(f"{name}: another number for each class", after_a_run(name, unequal), SIGNAL, control=True)
            for name in OPTIMIZERS
        ),
    ]


def equal_pair(model: Model, params: Params, space: str) -> Params:
    """Make the second unit of a space equal to the first, in every array and on both sides."""

    def copied(label: Label, array: jax.Array) -> jax.Array:
        for axis in label.unit_axes((space,)):
            order = np.arange(array.shape[axis.index])
            order[1] = 0
            array = jnp.take(array, order, axis.index)
        return array

    return model.wiring.map(copied, params)


def check_streams(size: Size) -> list[Row]:
    """A pair of equal units in the residual stream of a tied GPT, whose positions are learned or sinusoidal."""
    model, steps = gpt((LENGTH,), NUM_CLASSES, width=WIDTH, depth=1, heads=2, mlp_ratio=0.5), 100
    steps *= 1 if size == "small" else 10
    start = equal_pair(model, random_variables(model)["params"], "width")
    rng = np.random.default_rng(2)
    stream = tuple(jnp.asarray(rng.integers(0, NUM_CLASSES, (steps, 8, LENGTH))) for _ in range(2))
    partition: Partition = {"width": (0, *range(WIDTH - 1))}
    angles = np.arange(LENGTH)[:, None] / 10.0 ** (np.arange(WIDTH) / WIDTH)

    def kept(rate: jax.Array) -> optax.GradientTransformation:
        """Momentum on everything but the positions, which are no parameters where they are sinusoidal."""
        is_constant = {**jax.tree.map(lambda leaf: False, start), "positions": True}
        return optax.chain(optax.sgd(rate, 0.9), optax.masked(optax.set_to_zero(), is_constant))

    def after_a_run(optimizer: Callable[[jax.Array], optax.GradientTransformation], positions: Any) -> float:
        begin = {**start, "positions": jnp.asarray(positions)}
        end = take(train_path(model, optimizer, jnp.asarray(RATE), begin, stream)[0], -1)
        return departure(model, partition, begin, end)

    learned, sinusoidal = start["positions"], np.sin(angles)
    return [
        Row("momentum: learned positions", after_a_run(OPTIMIZERS["momentum"], learned), ROUNDING),
        Row("adam: learned positions", after_a_run(OPTIMIZERS["adam"], learned), ROUNDING),
        Row("momentum: constant positions that are equal for the two units", after_a_run(kept, learned), ROUNDING),
        Row("momentum: sinusoidal positions", after_a_run(kept, sinusoidal), SIGNAL, control=True),
    ]


CHECKS: tuple[Check, ...] = (
    Check(
        "symmetry.heads",
        "Attention heads that differ by orthogonal maps of (Q, K) and of (V, O) stay so under gradient descent and"
        " momentum on any data, as do units whose outputs differ by a constant that only layer norms read; Adam keeps"
        " the constants and leaves the rotations, and maps that are not orthogonal are left at once.",
        "this library: equivariance of the gradient under orthogonal symmetries",
        check_heads,
        "Heads that look different can be the same head twice: certify_cloned and find_clones compare them up to"
        " rotations.",
    ),
    Check(
        "symmetry.softmax",
        "For a softmax loss, two units whose outgoing weights differ only by a constant over the classes are clones,"
        " and stay so under momentum and Adam.",
        "this library: equivariance of the gradient under orthogonal symmetries",
        check_softmax,
        "Unequal outgoing weights do not mean that units are free: certify_cloned asks the loss what it sees.",
    ),
    Check(
        "symmetry.streams",
        "Two units of a residual stream that are equal in every array stay equal under momentum and Adam, also where"
        " the token embedding both writes and reads the stream, so that its units cannot be cloned by repeating and"
        " dividing; sinusoidal positions tell the units apart, and equal ones separate at once.",
        "this library: being trapped requires a symmetry, not clones that keep the function",
        check_streams,
        "Units of a space that can only be permuted are trapped all the same: cloned_manifold and find_clones accept"
        " such a space, but V, the quotient and the unit blocks need one that can be cloned.",
    ),
)
"""From rotations to constants."""
