"""Clones of a base network at a critical point: where linear theory says how fast they leave."""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.curvature import dense_hessian
from lopjax.losses import mean_cross_entropy, mean_squared_error, of_parameters
from lopjax.manifolds import cloned_manifold, normal_basis
from lopjax.model import Model, Params, Variables
from lopjax.models import mlp
from theory_checks.architectures import NUM_CLASSES, random_variables

LOSSES = {"cross-entropy": mean_cross_entropy, "squared error": mean_squared_error}


def random_batch(
    num_inputs: int, loss: str, outputs: int = NUM_CLASSES, samples: int = 12
) -> tuple[jax.Array, jax.Array]:
    """Normal inputs with random labels, or normal targets: data that small networks cannot fit."""
    rng = np.random.default_rng(7)
    inputs = jnp.asarray(rng.normal(size=(samples, num_inputs)))
    if loss == "cross-entropy":
        return inputs, jnp.asarray(rng.integers(0, outputs, samples))
    return inputs, jnp.asarray(rng.normal(size=(samples, outputs)))


class Critical(NamedTuple):
    """A base network at a critical point, its data, its clones and the modes of their normal Hessian.

    Attributes:
        base: the base network.
        variables: its variables.
        batch: inputs and targets.
        wide: the network of its clones.
        cloned: their variables.
        loss: loss of the clones, as a function of one vector.
        flat: their parameters as one vector.
        unravel: from the vector back to parameters.
        eigenvalues: those of the normal Hessian, ascending.
        modes: its eigenvectors, rows.
    """

    base: Model
    variables: Variables
    batch: tuple[jax.Array, jax.Array]
    wide: Model
    cloned: Variables
    loss: Callable[[jax.Array], jax.Array]
    flat: jax.Array
    unravel: Callable[[jax.Array], Params]
    eigenvalues: np.ndarray
    modes: np.ndarray


@cache
def critical_base(outputs: int, seed: int = 6) -> tuple[Model, Variables, tuple[jax.Array, jax.Array]]:
    """Three tanh units on a teacher's outputs plus noise, at the critical point near the teacher: BFGS, then Newton.

    On outputs without structure BFGS would end with saturated units, whose blocks vanish.
    """
    from scipy.optimize import minimize

    base, rng = mlp((2,), (3,), outputs, activation="tanh"), np.random.default_rng(seed)
    start = random_variables(base)
    flat, unravel = ravel_pytree(start["params"])
    teacher, inputs = 1.5 * rng.normal(size=flat.shape), jnp.asarray(rng.normal(size=(64, 2)))
    targets = base.apply({**start, "params": unravel(jnp.asarray(teacher))}, inputs).logits
    batch = inputs, targets + 0.3 * rng.normal(size=(64, outputs))
    loss_of = of_parameters(base, start, batch, loss=mean_squared_error)
    loss = jax.jit(lambda point: loss_of(unravel(point)))
    gradient, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    point = minimize(loss, teacher, jac=gradient, method="BFGS", options={"gtol": 1e-5}).x
    for _ in range(6):
        point = point - np.linalg.lstsq(hessian(point), gradient(point), rcond=1e-10)[0]
    return base, {**start, "params": unravel(jnp.asarray(point))}, batch


@cache
def critical(outputs: int, factor: int = 2, seed: int = 6) -> Critical:
    """The clones of `critical_base`, and the modes of their normal Hessian by a dense Hessian and numpy."""
    base, variables, batch = critical_base(outputs, seed)
    wide, cloned = widen(base, factor), clone_variables(variables, base.wiring, factor)
    manifold = cloned_manifold(cloned["params"], wide.wiring, uniform_partition(wide.wiring, factor))
    rows = np.asarray(normal_basis(manifold))
    loss_of = of_parameters(wide, cloned, batch, loss=mean_squared_error)
    dense = np.asarray(jax.jit(partial(dense_hessian, loss_of))(cloned["params"]))
    values, vectors = np.linalg.eigh(rows @ dense @ rows.T)
    flat, unravel = ravel_pytree(cloned["params"])
    return Critical(
        base,
        variables,
        batch,
        wide,
        cloned,
        lambda vector: loss_of(unravel(vector)),
        flat,
        unravel,
        values,
        vectors.T @ rows,
    )


def departures(
    loss: Callable[[jax.Array], jax.Array],
    starts: jax.Array,
    origin: jax.Array,
    modes: np.ndarray,
    steps: int,
    learning_rate: float,
    momentum: float = 0.0,
) -> np.ndarray:
    """Distance from the manifold after every step of gradient descent with heavy-ball momentum.

    From one point, `(steps,)`, or from several at once, `(steps, points)`.
    """
    gradient = jax.grad(loss) if starts.ndim == 1 else jax.vmap(jax.grad(loss))

    @jax.jit
    def run(starts: jax.Array) -> jax.Array:
        def step(state: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            points, speeds = state
            speeds = momentum * speeds + gradient(points)
            points = points - learning_rate * speeds
            return (points, speeds), jnp.linalg.norm((points - origin) @ modes.T, axis=-1)

        return jax.lax.scan(step, (starts, jnp.zeros_like(starts)), None, length=steps)[1]

    return np.asarray(run(starts))


def first_outside(distances: np.ndarray, radius: float) -> float:
    """First step, counted from 1, at which the distance reaches the radius; infinite if it never does."""
    is_out = distances >= radius
    return 1.0 + int(np.argmax(is_out)) if is_out.any() else np.inf
