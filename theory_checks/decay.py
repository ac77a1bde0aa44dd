"""Weight decay and clones, by simulation: where they begin to attract, and how they form by themselves."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.losses import mean_squared_error, of_parameters
from lopjax.manifolds import cloned_manifold, normal_basis
from lopjax.models import mlp
from lopjax.stability import DecayedClones, critical_weight_decay, decayed_clones, unit_blocks, weight_decay_threshold
from theory_checks.architectures import random_variables
from theory_checks.check import Row, Size
from theory_checks.critical import critical_base, departures, random_batch

RATE = 0.2


def _simulated_rate(point: DecayedClones) -> float:
    """-d ln(distance)/d(eta t) of two clones of every unit, kicked off the manifold at a decayed stationary point."""
    base, _, batch = critical_base(2)
    wide, cloned = widen(base, 2), clone_variables(point.variables, base.wiring, 2)
    loss_of = of_parameters(wide, cloned, batch, loss=mean_squared_error)
    flat, unravel = ravel_pytree(cloned["params"])
    rows = np.asarray(normal_basis(cloned_manifold(cloned["params"], wide.wiring, uniform_partition(wide.wiring, 2))))
    kick = 1e-8 * np.random.default_rng(0).normal(size=len(rows)) / len(rows) ** 0.5

    def decayed(vector: jax.Array) -> jax.Array:
        return loss_of(unravel(vector)) + 0.5 * point.weight_decay * jnp.vdot(vector, vector)

    # Long enough for the slowest mode to take over in the first half, short enough for the linear theory.
    steps = int(12 / (RATE * abs(point.rate)))
    distances = departures(decayed, flat + kick @ rows, flat, rows, steps, RATE)
    half = steps // 2
    return float(-np.log(distances[-1] / distances[half - 1]) / ((steps - half) * RATE))


def check_weight_decay(size: Size) -> list[Row]:
    """Rate at which kicked clones come together or part, simulated, against the blocks at the decayed point."""
    base, variables, batch = critical_base(2)
    before = critical_weight_decay(unit_blocks(base, variables, batch, 2, loss=mean_squared_error))
    decays = np.array([0.2, 0.46, 1.0]) if size == "small" else np.geomspace(1e-3, 1.0, 13)
    found = weight_decay_threshold(
        base, variables, batch, 2, loss=mean_squared_error, decays=decays, relative_width=0.03, both_ways=size == "full"
    )
    (low, high), rows = found.crossings[0], []
    for point in found.upward[-3:]:
        simulated, name = _simulated_rate(point), f"decay {point.weight_decay:.2g}"
        rows.append(Row(f"{name}: rate of coming together, simulated", simulated))
        rows.append(Row(f"{name}: lambda + lambda_min there, over it, minus 1", abs(point.rate / simulated - 1), 0.05))
        naive = abs((point.weight_decay - before) / simulated - 1)
        rows.append(Row(f"{name}: lambda + lambda_min without decay, the same", naive, 0.05, control=True))
    return [
        *rows,
        Row("clones begin to attract at", (low + high) / 2),
        Row("claimed before, from blocks without decay, over it", before / low, 0.9, ">=", control=True),
    ]


# --- Clones that form by themselves -----------------------------------------------------------------------------------

DECAYS = (0.0, 0.02, 0.04, 0.06, 0.09)
UNITS = 6


@cache
def staircase(seeds: int, steps: int, decays: tuple[float, ...] = DECAYS) -> np.ndarray:
    """Numbers of distinct units, `(seeds, decays)`, of six tanh units after training with decay from random starts."""
    inputs, targets = random_batch(2, "squared error", 2, samples=16)
    features = jnp.concatenate([inputs, jnp.ones((16, 1))], axis=1)

    def train(key: jax.Array, decay: jax.Array) -> jax.Array:
        def loss(params: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            outputs = jnp.tanh(features @ params[0]) @ params[1] + params[2]
            size = sum(jnp.vdot(leaf, leaf) for leaf in params)
            return mean_squared_error(outputs, targets) + 0.5 * decay * size

        def step(state: tuple, _: None) -> tuple[tuple, None]:
            params, speeds = state
            speeds = jax.tree.map(lambda speed, slope: 0.95 * speed + slope, speeds, jax.grad(loss)(params))
            return (jax.tree.map(lambda leaf, speed: leaf - 0.05 * speed, params, speeds), speeds), None

        one, two = jax.random.split(key)
        start = jax.random.normal(one, (3, UNITS)), jax.random.normal(two, (UNITS, 2)), jnp.zeros(2)
        end = jax.lax.scan(step, (start, jax.tree.map(jnp.zeros_like, start)), None, length=steps)[0][0]
        return jnp.concatenate([end[0], end[1].T])

    keys = jax.random.split(jax.random.key(0), seeds)
    grid = jax.jit(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))
    columns = np.asarray(grid(keys, jnp.asarray(decays)))
    return np.array([[_num_distinct(units) for units in of_seed] for of_seed in columns])


def _num_distinct(units: np.ndarray, tolerance: float = 1e-2) -> int:
    """How many columns differ by more than a share of the whole matrix, up to sign, which an odd activation ignores."""
    distinct: list[np.ndarray] = []
    for unit in units.T:
        gaps = [min(np.linalg.norm(unit - other), np.linalg.norm(unit + other)) for other in distinct]
        if not gaps or min(gaps) > tolerance * np.linalg.norm(units):
            distinct.append(unit)
    return len(distinct)


def check_decay_makes_clones(size: Size) -> list[Row]:
    """Distinct units after training with decay, and whether as many attract by their blocks, and fewer do not."""
    counts = staircase(6, 15_000) if size == "small" else staircase(20, 40_000)
    rows = []
    for index, (decay, expected) in enumerate(zip(DECAYS, (6, 4, 3, 2, 1), strict=True)):
        of_decay = counts[:, index]
        rows.append(
            Row(
                f"decay {decay}: seeds of {len(of_decay)} with other than {expected} units",
                (of_decay != expected).sum(),
                0,
            )
        )
    rows.append(Row("without decay: largest number of distinct units", counts[:, 0].max(), UNITS - 1, control=True))
    batch = random_batch(2, "squared error", 2, samples=16)
    expectations = (
        ((1, 0.09, True), (1, 0.06, False))
        if size == "small"
        else ((1, 0.09, True), (1, 0.06, False), (2, 0.06, True), (2, 0.04, False), (3, 0.04, True), (3, 0.02, False))
    )
    for units, decay, attracts in expectations:
        base = mlp((2,), (units,), 2, activation="tanh")
        start = random_variables(base, seed=3)
        point = decayed_clones(base, start, batch, UNITS // units, decay, loss=mean_squared_error)
        what = f"decay {decay}: rate of {UNITS // units} clones of {units}"
        rows.append(Row(what, point.rate, 0.0, ">=", control=not attracts))
    return rows
