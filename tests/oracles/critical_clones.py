"""Clones of a small base network at a critical point, and the modes of their normal Hessian by numpy."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree

from lopjax.cloning import clone_variables, uniform_partition
from lopjax.losses import mse
from lopjax.manifolds import cloned_manifold, normal_basis
from lopjax.models import mlp

BASE, WIDE = mlp((2,), (3,), 2, activation="tanh"), mlp((2,), (6,), 2, activation="tanh")
PARTITION = uniform_partition(WIDE.wiring, 2)


def flat_loss(model, variables, batch):
    """The loss as a function of one vector, which numpy and scipy can use."""
    flat, unravel = ravel_pytree(variables["params"])
    loss = mse(model, variables, batch)
    return lambda vector: loss(unravel(vector)), flat, unravel


@cache
def critical_clones():
    """A teacher's outputs with noise, the critical point of the base near the teacher, and its clones; float64."""
    rng = np.random.default_rng(6)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), BASE.init(jax.random.key(0)))
    flat, unravel = ravel_pytree(variables["params"])
    teacher, inputs = 1.5 * rng.normal(size=flat.shape), jnp.asarray(rng.normal(size=(64, 2)))
    outputs = BASE.apply({**variables, "params": unravel(jnp.asarray(teacher))}, inputs).logits
    batch = inputs, outputs + 0.3 * rng.normal(size=(64, 2))
    loss, _, _ = flat_loss(BASE, variables, batch)
    gradient, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    point = scipy.optimize.minimize(jax.jit(loss), teacher, jac=gradient, method="BFGS", options={"gtol": 1e-5}).x
    for _ in range(4):
        point = point - np.linalg.solve(hessian(point), gradient(point))
    assert np.linalg.norm(gradient(point)) < 1e-12
    base = {**variables, "params": unravel(jnp.asarray(point))}
    return batch, base, clone_variables(base, BASE.wiring, 2)


@cache
def normal_modes():
    """Wide loss, point, normal basis (rows) and the eigenpairs of the normal Hessian by numpy, in flat coordinates."""
    batch, _, wide = critical_clones()
    loss, flat, unravel = flat_loss(WIDE, wide, batch)
    rows = np.asarray(normal_basis(cloned_manifold(wide["params"], WIDE.wiring, PARTITION)))
    values, vectors = np.linalg.eigh(rows @ np.asarray(jax.jit(jax.hessian(loss))(flat)) @ rows.T)
    return loss, np.asarray(flat), unravel, rows, values, vectors.T @ rows


def simulated_steps(loss, start, rows, radius, learning_rate, limit=6000):
    """Steps of gradient descent, interpolated, until the distance from the manifold (numpy) reaches the radius."""

    @jax.jit
    def run(point):
        def step(point, _):
            moved = point - learning_rate * jax.grad(loss)(point)
            return moved, jnp.linalg.norm(rows @ (moved - origin))

        return jax.lax.scan(step, point, None, length=limit)[1]

    origin = normal_modes()[1]
    logs = np.log(np.concatenate([[np.linalg.norm(rows @ (start - origin))], run(start)]))
    later = int(np.argmax(logs >= np.log(radius)))
    assert later > 0, "the simulation did not reach the radius"
    return later - (logs[later] - np.log(radius)) / (logs[later] - logs[later - 1])
