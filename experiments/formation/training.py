"""Pure functions of one lane: training under decay while labels stay or change, and the next task."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.formation.config import Config
from experiments.formation.setup import NUM_CLASSES
from lopjax.losses import mean_cross_entropy
from lopjax.metrics import effective_rank
from lopjax.model import Model, Params, samples_by_units

HIDDEN, OUTGOING = "hidden_0", "classes"
Batch = tuple[jax.Array, jax.Array]


class Formed(NamedTuple):
    """A network at the end of the training in which clones may form.

    Attributes:
        params: its parameters.
        activations: of its hidden units on all inputs, `(samples, units)`.
        loss: mean cross-entropy on the last labels, without the decay.
        gradient_norm: of loss and decay together.
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


def optimizer(config: Config, decay: jax.Array | float) -> optax.GradientTransformation:
    """Gradient descent with momentum on the loss plus `decay / 2` times the squared norm of all parameters."""
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(config.learning_rate, config.momentum))


def loss_of(model: Model, params: Params, batch: Batch) -> jax.Array:
    """Mean cross-entropy."""
    return mean_cross_entropy(model.apply({"params": params}, batch[0]).logits, batch[1])


def hidden(model: Model, params: Params, inputs: jax.Array) -> jax.Array:
    """Activations of the hidden units, `(samples, units)`."""
    return samples_by_units(model.apply({"params": params}, inputs).taps[HIDDEN].post)


def descend(model: Model, config: Config, decay: jax.Array | float, params: Params, batch: Batch, steps: int):
    """`(params, losses before every update)` of full-batch training from rest."""
    rule = optimizer(config, decay)

    def step(state: tuple, _: None) -> tuple[tuple, jax.Array]:
        params, memory = state
        loss, gradient = jax.value_and_grad(lambda each: loss_of(model, each, batch))(params)
        change, memory = rule.update(gradient, memory, params)
        return (optax.apply_updates(params, change), memory), loss

    (params, _), losses = jax.lax.scan(step, (params, rule.init(params)), length=steps)
    return params, losses


def renamed(key: jax.Array, labels: jax.Array) -> jax.Array:
    """Labels after a random permutation of the classes."""
    return jax.random.permutation(key, NUM_CLASSES)[labels]


def form(
    model: Model, config: Config, key: jax.Array, decay: jax.Array, is_permuted: jax.Array, batch: Batch
) -> Formed:
    """Train a network from a random start. Between two permutations of the classes the momentum starts from rest.

    Args:
        model: the network.
        config: of the run.
        key: of the start and of the permutations.
        decay: weight decay.
        is_permuted: whether the classes are permuted at all, every `config.period` steps.
        batch: all data.
    """
    inputs, labels = batch
    start, own = jax.random.split(key)

    def labels_of(number: jax.Array) -> jax.Array:
        return jnp.where(is_permuted, renamed(jax.random.fold_in(own, number), labels), labels)

    def period(params: Params, number: jax.Array) -> tuple[Params, None]:
        return descend(model, config, decay, params, (inputs, labels_of(number)), config.period)[0], None

    num = config.steps // config.period
    params, _ = jax.lax.scan(period, model.init(start)["params"], jnp.arange(num))
    last = inputs, labels_of(jnp.asarray(num - 1))
    loss, gradient = jax.value_and_grad(lambda each: loss_of(model, each, last))(params)
    slope = optax.tree.norm(jax.tree.map(lambda g, p: g + decay * p, gradient, params))
    activations = hidden(model, params, inputs)
    return Formed(params, activations, loss, slope, effective_rank(activations))


def learn_next(model: Model, config: Config, params: Params, key: jax.Array, batch: Batch) -> Learned:
    """Train on the next task, without decay: classes permuted once more, by one key for all that are compared."""
    renamed_batch = batch[0], renamed(key, batch[1])
    params, losses = descend(model, config, 0.0, params, renamed_batch, config.next_steps)
    activations = hidden(model, params, batch[0])
    end = loss_of(model, params, renamed_batch)
    return Learned(jnp.mean(losses), end, effective_rank(activations), activations)


def keys_of(seed: jax.Array) -> jax.Array:
    """Keys of a seed: forming, the next task, a network drawn anew, the kick."""
    return jax.random.split(jax.random.key(seed, impl="philox4x32"), 4)
