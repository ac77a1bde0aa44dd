"""Where the normal Hessian of clones is 0: kicks grow all the same, in a time that is a power of their size."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.curvature import dense_hessian
from lopjax.losses import mean_squared_error, of_parameters
from lopjax.manifolds import cloned_manifold, normal_basis
from lopjax.models import mlp
from lopjax.stability import escape_time, unit_blocks
from lopjax.tolerance import rounding_tolerance
from theory_checks.check import Row, Size
from theory_checks.critical import departures, first_outside

RATE, RADIUS = 0.1, 0.5


def _steps(layers: int, kicks: tuple[float, ...], most: int) -> tuple[list[float], list[float], float]:
    """What becomes of clones of a network at 0, kicked in every array along the pattern (1, -1) of two clones.

    Args:
        layers: layers of weights; of one unit each, before it is cloned.
        kicks: entries of the kick.
        most: steps of gradient descent that are simulated.

    Returns:
        For every kick the steps until clones are `RADIUS` apart, and the same by `escape_time`; the largest eigenvalue
        in size of their blocks.
    """
    base, inputs = mlp((1,), (1,) * (layers - 1), 1, activation="tanh"), jnp.linspace(-1, 1, 9)[:, None]
    zero = {"params": jax.tree.map(jnp.zeros_like, base.init(jax.random.key(0))["params"])}
    batch = inputs, 3 * inputs
    blocks = unit_blocks(base, zero, batch, 2, loss=mean_squared_error)
    largest = max(float(np.abs(space.eigenvalues).max()) for space in blocks.spaces.values())
    wide, cloned = widen(base, 2), clone_variables(zero, base.wiring, 2)
    rows = np.asarray(normal_basis(cloned_manifold(cloned["params"], wide.wiring, uniform_partition(wide.wiring, 2))))
    loss_of, (flat, unravel) = (
        of_parameters(wide, cloned, batch, loss=mean_squared_error),
        ravel_pytree(cloned["params"]),
    )
    values, modes = np.linalg.eigh(
        rows @ np.asarray(jax.jit(partial(dense_hessian, loss_of))(cloned["params"])) @ rows.T
    )
    rounding = float(rounding_tolerance(np.float64, len(flat), max(1.0, float(np.abs(values).max()))))
    pattern = ravel_pytree(jax.tree.map_with_path(_apart, cloned["params"]))[0]
    simulated, predicted = [], []
    for kick in kicks:
        start = flat + kick * pattern
        distances = departures(lambda vector: loss_of(unravel(vector)), start, flat, rows, most, RATE)
        simulated.append(first_outside(distances, RADIUS))
        components = modes.T @ rows @ np.asarray(start - flat)
        predicted.append(float(escape_time(values, components, RADIUS, RATE, tolerance=rounding)))
    return simulated, predicted, largest


def _apart(path: tuple, leaf: jax.Array) -> jax.Array:
    """Plus and minus 1 along every axis that has two clones, in kernels; biases stay 0."""
    if "bias" in jax.tree_util.keystr(path):
        return jnp.zeros_like(leaf)
    signs = [jnp.array([1.0, -1.0]) if size == 2 else jnp.ones(size) for size in leaf.shape]
    return signs[0][:, None] * signs[1]


def check_degenerate(size: Size) -> list[Row]:
    """The power of the kick with which steps grow, where the Hessian vanishes; where it does not, as a control."""
    kicks = (0.01, 0.0025) if size == "small" else (0.01, 0.0025, 0.001)
    steps, predicted, largest = _steps(3, kicks, int(80 / kicks[-1]))
    rows = [
        Row("three layers: largest eigenvalue of the blocks", largest, 1e-12),
        Row("three layers: linear theory predicts some step", float(np.isfinite(predicted).any()), 0),
        Row("three layers: clones that are apart in the end", float(np.isfinite(steps).mean()), 1, ">="),
        Row("three layers: power of 1 / kick in the steps, minus 1", abs(_power(kicks, steps) - 1), 0.1),
    ]
    steps, predicted, largest = _steps(2, (1e-3, 2.5e-4), 200)
    return [
        *rows,
        Row("two layers: steps measured minus predicted", float(np.abs(np.subtract(steps, predicted)).max()), 2),
        Row("two layers: largest eigenvalue of the blocks", largest, 1e-12, control=True),
        Row("two layers: power of 1 / kick in the steps, minus 1", abs(_power((4, 1), steps) - 1), 0.1, control=True),
    ]


def _power(kicks: tuple[float, ...], steps: list[float]) -> float:
    return float(np.polyfit(-np.log(kicks), np.log(steps), 1)[0])
