"""Clones of a network in training: linear theory along the base that moves, batch by batch, with momentum."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.losses import mean_squared_error, of_parameters
from lopjax.manifolds import Manifold, cloned_manifold, normal_basis
from lopjax.model import Params
from lopjax.models import mlp
from lopjax.stability import linearised_gradient
from theory_checks.architectures import random_variables
from theory_checks.check import Row, Size

STEPS, BATCHES, SIZE, RATE, MOMENTUM = 60, 8, 6, 0.1, 0.5
Gradient = Callable[[Params, jax.Array], Params]


def _deviations(gradient: Gradient, start: Params, batches: jax.Array, rows: np.ndarray) -> np.ndarray:
    """Normal coordinates after training by a gradient of `(params, number of the batch)`, with momentum."""

    def step(state: tuple[Params, Params], batch: jax.Array) -> tuple[tuple[Params, Params], None]:
        params, speed = state
        speed = jax.tree.map(lambda m, g: MOMENTUM * m + g, speed, gradient(params, batch))
        return (jax.tree.map(lambda leaf, m: leaf - RATE * m, params, speed), speed), None

    rest = jax.tree.map(jnp.zeros_like, start)
    (end, _), _ = jax.jit(lambda start: jax.lax.scan(step, (start, rest), batches))(start)
    return rows @ np.asarray(ravel_pytree(end)[0])


def check_moving_base(size: Size) -> list[Row]:
    """How far linear theory is from training after some steps, for kicks of two sizes, and with frozen curvature."""
    del size
    rng, base = np.random.default_rng(0), mlp((3,), (4,), 2, activation="tanh")
    variables = random_variables(base)
    wide, cloned = widen(base, 2), clone_variables(variables, base.wiring, 2)
    manifold = cloned_manifold(cloned["params"], wide.wiring, uniform_partition(wide.wiring, 2))
    rows = np.asarray(normal_basis(manifold))
    inputs, targets = (jnp.asarray(rng.normal(size=(BATCHES, SIZE, n))) for n in (3, 2))
    order = jnp.asarray(rng.integers(0, BATCHES, STEPS))

    def loss(params: Params, batch: jax.Array) -> jax.Array:
        return of_parameters(wide, cloned, (inputs[batch], targets[batch]), loss=mean_squared_error)(params)

    origin, slopes = cloned["params"], jax.grad(loss)

    def linear(params: Params, batch: jax.Array) -> Params:
        return linearised_gradient(lambda params: loss(params, batch), manifold, params)

    def frozen(params: Params, batch: jax.Array) -> Params:
        return _about(lambda params: slopes(params, batch), origin, manifold, params)

    flat, unravel = ravel_pytree(origin)
    direction = rng.normal(size=len(rows)) @ rows / len(rows) ** 0.5
    gaps = {}
    for kick in (1e-2, 1e-3):
        start = unravel(flat + kick * direction)
        real, theory, still = (_deviations(g, start, order, rows) for g in (slopes, linear, frozen))
        gaps[kick] = [np.linalg.norm(real - other) / np.linalg.norm(real) for other in (theory, still)]
    (large, _), (small, still) = gaps.values()
    moved = np.linalg.norm(rows @ np.asarray(flat + 1e-3 * direction)) / 1e-3
    return [
        Row(f"kick of {1e-3 * moved:.3g}: linear theory minus training, relative", small, 1e-2),
        Row("the same for a kick of ten times that, over it", large / small, 5, ">="),
        Row("curvature frozen at the cloning: minus training, relative", still, 1e-2, control=True),
    ]


def _about(slope: Callable[[Params], Params], origin: Params, manifold: Manifold, params: Params) -> Params:
    """The gradient along the manifold as it is, and across it by the Hessian where the clones were made."""
    away = jax.tree.map(jnp.subtract, params, origin)
    across = jax.tree.map(jnp.subtract, away, manifold.project(away))
    foot = jax.tree.map(jnp.subtract, params, across)
    curved = jax.jvp(slope, (origin,), (across,))[1]
    return jax.tree.map(jnp.add, slope(foot), curved)
