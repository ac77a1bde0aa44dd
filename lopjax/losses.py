"""Losses: means over samples, of logits and of parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lopjax.model import Model, Params, Variables

Batch = tuple[jax.Array, jax.Array]


def mean_cross_entropy(logits: Float[Array, "samples classes"], labels: Int[Array, " samples"]) -> Float[Array, ""]:
    """Softmax cross-entropy with integer labels, in nats, averaged over samples."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def mean_squared_error(
    outputs: Float[Array, "samples outputs"], targets: Float[Array, "samples outputs"]
) -> Float[Array, ""]:
    """Half the squared distance to the target, summed over outputs and averaged over samples: 1/(2N) sum |y - t|²."""
    return 0.5 * jnp.mean(jnp.sum(jnp.square(outputs - targets), axis=-1))


def accuracy(logits: Float[Array, "samples classes"], labels: Int[Array, " samples"]) -> Float[Array, ""]:
    """Fraction of samples whose largest logit is the label's."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=logits.dtype)


def of_parameters(
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    model: Model,
    variables: Variables,
    batch: Batch,
    train: bool = False,
) -> Callable[[Params], jax.Array]:
    """A loss of logits and labels as a pure function of the parameters: what the curvature tools take.

    Args:
        loss: `(logits, labels) -> scalar`, a mean over samples.
        model: the network.
        variables: supply everything but the parameters (batch statistics).
        batch: `(inputs, labels)`, held fixed.
        train: in train mode batch norm uses the statistics of this batch (and couples its samples); dropout is off.

    Returns:
        `params -> scalar`.
    """
    inputs, labels = batch

    def loss_of_params(params: Params) -> jax.Array:
        logits = model.apply({**variables, "params": params}, inputs, train=train, dropout_rate=0.0)[0]
        return loss(logits, labels)

    return loss_of_params


def cross_entropy(
    model: Model, variables: Variables, batch: Batch, train: bool = False
) -> Callable[[Params], jax.Array]:
    """`mean_cross_entropy` on a batch as a function of the parameters; arguments as in `of_parameters`."""
    return of_parameters(mean_cross_entropy, model, variables, batch, train)


def mse(model: Model, variables: Variables, batch: Batch, train: bool = False) -> Callable[[Params], jax.Array]:
    """`mean_squared_error` on a batch as a function of the parameters; arguments as in `of_parameters`."""
    return of_parameters(mean_squared_error, model, variables, batch, train)
