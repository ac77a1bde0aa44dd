"""Dense oracles for operator tests: small networks and their curvature, written without lopjax.

Hessians come from `jax.hessian` on ravelled parameters, Gauss-Newton matrices from Jacobians, and finite
differences only from gradients, so that no oracle shares a code path with what it checks.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

ACTIVATIONS: dict[str, Callable] = {
    "tanh": jnp.tanh,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "relu": lambda z: jnp.maximum(z, 0.0),
    "softplus": lambda z: jnp.logaddexp(z, 0.0),
    "sigmoid": lambda z: 1 / (1 + jnp.exp(-z)),
    "linear": lambda z: z,
}


class Problem(NamedTuple):
    """A network, its data and its losses; every loss is a mean over samples."""

    params: list[dict[str, jax.Array]]
    inputs: jax.Array
    targets: jax.Array  # one-hot
    model: Callable[[Any], jax.Array]  # params -> outputs on `inputs`
    output_loss: Callable[[jax.Array], jax.Array]  # outputs -> scalar
    loss: Callable[[Any], jax.Array]  # params -> scalar
    batch_loss: Callable[[Any, tuple[jax.Array, jax.Array]], jax.Array]


def forward(params: list[dict[str, jax.Array]], inputs: jax.Array, activation: str) -> jax.Array:
    """Dense layers `h @ W + b`, the activation between them, none at the end."""
    hidden = inputs
    for layer in params[:-1]:
        hidden = ACTIVATIONS[activation](hidden @ layer["kernel"] + layer["bias"])
    return hidden @ params[-1]["kernel"] + params[-1]["bias"]


def cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.mean(jax.nn.logsumexp(outputs, axis=-1) - jnp.sum(outputs * targets, axis=-1))


def mean_squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Half the squared distance, summed over outputs and averaged over samples."""
    return 0.5 * jnp.mean(jnp.sum((outputs - targets) ** 2, axis=-1))


LOSSES = {"cross_entropy": cross_entropy, "mse": mean_squared_error}


def problem(
    activation: str = "tanh",
    loss: str = "cross_entropy",
    sizes: tuple[int, ...] = (4, 5, 3),
    num_samples: int = 7,
    seed: int = 0,
    dtype: Any = np.float64,
) -> Problem:
    """A random network of the given layer sizes on random data. float64 needs the `x64` fixture."""
    generator = np.random.default_rng(seed)
    params = [
        {
            "kernel": jnp.asarray(generator.normal(size=(n_in, n_out)) / np.sqrt(n_in), dtype),
            "bias": jnp.asarray(0.3 * generator.normal(size=n_out), dtype),
        }
        for n_in, n_out in itertools.pairwise(sizes)
    ]
    inputs = jnp.asarray(generator.normal(size=(num_samples, sizes[0])), dtype)
    targets = jnp.asarray(np.eye(sizes[-1])[generator.integers(sizes[-1], size=num_samples)], dtype)

    def batch_loss(params, batch):
        return LOSSES[loss](forward(params, batch[0], activation), batch[1])

    return Problem(
        params=params,
        inputs=inputs,
        targets=targets,
        model=lambda params: forward(params, inputs, activation),
        output_loss=lambda outputs: LOSSES[loss](outputs, targets),
        loss=lambda params: batch_loss(params, (inputs, targets)),
        batch_loss=batch_loss,
    )


def hessian(loss: Callable, params: Any) -> np.ndarray:
    """Dense Hessian in the order of `ravel_pytree`."""
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda flat: loss(unravel(flat))))(flat))


def gauss_newton(model: Callable, output_loss: Callable, params: Any) -> np.ndarray:
    """`J' H_L J` from the dense Jacobian of the outputs and the dense Hessian of the loss in the outputs."""
    flat, unravel = ravel_pytree(params)
    outputs = model(params)
    jacobian = jax.jacrev(lambda flat: model(unravel(flat)).ravel())(flat)
    output_hessian = jax.hessian(lambda y: output_loss(y.reshape(outputs.shape)))(outputs.ravel())
    return np.asarray(jacobian.T @ output_hessian @ jacobian)


def finite_difference_hvp(loss: Callable, params: Any, vector: Any, step: float = 1e-4) -> np.ndarray:
    """Fourth-order central difference of gradients along `vector`, flat."""
    flat, unravel = ravel_pytree(params)
    direction = ravel_pytree(vector)[0]
    gradient = jax.jit(lambda flat: ravel_pytree(jax.grad(loss)(unravel(flat)))[0])
    near, far = (gradient(flat + k * step * direction) - gradient(flat - k * step * direction) for k in (1.0, 2.0))
    return np.asarray((8 * near - far) / (12 * step))


def random_symmetric(spectrum: np.ndarray, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with the given eigenvalues and random eigenvectors, in float64."""
    orthogonal = random_orthonormal(len(spectrum), len(spectrum), seed)
    matrix = (orthogonal * spectrum) @ orthogonal.T
    return (matrix + matrix.T) / 2


def random_orthonormal(dimension: int, num_columns: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.linalg.qr(generator.normal(size=(dimension, num_columns)))[0]
