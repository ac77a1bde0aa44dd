"""Pure functions of one lane: training under decay while labels stay or change, and the next task."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.formation.config import Config
from experiments.kit.coarse_digits import Batch, descend, heavy_ball, hidden, loss_of, renamed
from lopjax.metrics import effective_rank
from lopjax.model import Model, Params

HIDDEN, OUTGOING = "hidden_0", "classes"


class Formed(NamedTuple):
    """A network at the end of the training in which clones may form.

    Attributes:
        params: its parameters.
        activations: activations of its hidden units on all inputs, `(samples, units)`.
        loss: mean cross-entropy on the last labels, without the decay.
        gradient_norm: gradient norm of the loss with decay.
        rank: effective rank of the activations.
    """

    params: Params
    activations: jax.Array
    loss: jax.Array
    gradient_norm: jax.Array
    rank: jax.Array


class Learned(NamedTuple):
    """What a network does on the next task.

    Attributes:
        mean_loss: over all steps, each before its update.
        end_loss: after the last step.
        rank: effective rank of the hidden activations at the end.
        activations: at the end, `(samples, units)`.
    """

    mean_loss: jax.Array
    end_loss: jax.Array
    rank: jax.Array
    activations: jax.Array


def rule_of(config: Config, decay: jax.Array | float) -> optax.GradientTransformation:
    """The config's heavy ball."""
    return heavy_ball(config.learning_rate, config.momentum, decay)


def form(
    model: Model, config: Config, key: jax.Array, decay: jax.Array, is_permuted: jax.Array, batch: Batch
) -> Formed:
    """Train a network from a random start. Between two permutations of the classes the momentum starts from rest.

    Args:
        model: the network.
        config: config of the run.
        key: random key of the initial parameters and of the permutations.
        decay: weight decay.
        is_permuted: whether the classes are permuted at all, every `config.period` steps.
        batch: all data.
    """
    inputs, labels = batch
    start, own = jax.random.split(key)

    def labels_of(number: jax.Array) -> jax.Array:
        return jnp.where(is_permuted, renamed(jax.random.fold_in(own, number), labels), labels)

    def period(params: Params, number: jax.Array) -> tuple[Params, None]:
        return descend(rule_of(config, decay), model, params, (inputs, labels_of(number)), config.period)[0], None

    num = config.steps // config.period
    params, _ = jax.lax.scan(period, model.init(start)["params"], jnp.arange(num))
    last = inputs, labels_of(jnp.asarray(num - 1))
    loss, gradient = jax.value_and_grad(lambda each: loss_of(model, each, last))(params)
    slope = optax.tree.norm(jax.tree.map(lambda g, p: g + decay * p, gradient, params))
    activations = hidden(model, params, inputs)[HIDDEN]
    return Formed(params, activations, loss, slope, effective_rank(activations))


def learn_next(model: Model, config: Config, params: Params, key: jax.Array, batch: Batch) -> Learned:
    """Train on the next task, without decay: classes permuted once more, by one key for all that are compared."""
    renamed_batch = batch[0], renamed(key, batch[1])
    params, losses = descend(rule_of(config, 0.0), model, params, renamed_batch, config.next_steps)
    activations = hidden(model, params, batch[0])[HIDDEN]
    end = loss_of(model, params, renamed_batch)
    return Learned(jnp.mean(losses), end, effective_rank(activations), activations)


def keys_of(seed: jax.Array) -> jax.Array:
    """Keys of a seed: forming, the next task, a network drawn anew, the kick."""
    return jax.random.split(jax.random.key(seed, impl="philox4x32"), 4)
