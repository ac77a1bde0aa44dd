"""Pure functions of one lane: the first task at one setting, what is measured then, and the next task."""

import jax
import jax.numpy as jnp
import optax

from experiments.generalisation.config import Config, Setting
from experiments.kit.coarse_digits import NUM_CLASSES, Batch, descend, heavy_ball, hidden, loss_of, renamed
from lopjax.detection import clone_distances
from lopjax.losses import accuracy
from lopjax.metrics import dead_fraction, effective_rank
from lopjax.model import Model, Params
from lopjax.training import Logs


def smoothed_loss(logits: jax.Array, labels: jax.Array, smoothing: jax.Array | float) -> jax.Array:
    """Mean cross-entropy with the share `smoothing` of every label's probability spread evenly over the classes."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, NUM_CLASSES), smoothing)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def first_task(model: Model, config: Config, key: jax.Array, setting: Setting, batch: Batch) -> Params:
    """Parameters after training from a random start, all numbers of the setting traced."""
    inputs, labels = batch
    rule = heavy_ball(config.learning_rate, config.momentum, setting.decay)
    params = jax.tree.map(lambda leaf: leaf * setting.scale, model.init(key)["params"])

    def loss(params: Params) -> jax.Array:
        return smoothed_loss(model.apply({"params": params}, inputs).logits, labels, setting.smoothing)

    def step(_: jax.Array, state: tuple) -> tuple:
        params, memory = state
        change, memory = rule.update(jax.grad(loss)(params), memory, params)
        return optax.apply_updates(params, change), memory

    return jax.lax.fori_loop(0, setting.steps, step, (params, rule.init(params)))[0]


def measure(model: Model, params: Params, train: Batch, test: Batch) -> Logs:
    """What is known of a network before the next task.

    Accuracies; mean over all hidden units of the relative distance to the nearest unit that it might be a clone of
    (units that are 0 throughout count as 0: they are on a manifold already); effective rank, mean over layers; share
    of dead units; norm of all parameters; gradient norm of the loss on the training set.
    """
    layers = hidden(model, params, train[0])
    distances = clone_distances(model, {"params": params}, train)
    near = jnp.concatenate([each.activations.distance for each in distances.values()])
    gradient = jax.grad(lambda each: loss_of(model, each, train))(params)
    return {
        "test_accuracy": accuracy(model.apply({"params": params}, test[0]).logits, test[1]),
        "train_accuracy": accuracy(model.apply({"params": params}, train[0]).logits, train[1]),
        "distance": jnp.mean(jnp.where(jnp.isinf(near), 0.0, near)),
        "rank": jnp.mean(jnp.stack([effective_rank(layer) for layer in layers.values()])),
        "dead": jnp.mean(jnp.stack([dead_fraction(layer) for layer in layers.values()])),
        "norm": optax.tree.norm(params),
        "gradient_norm": optax.tree.norm(gradient),
    }


def next_task(model: Model, config: Config, params: Params, key: jax.Array, batch: Batch) -> Logs:
    """Loss before every update of the next task, its mean, and the loss at the end."""
    following = batch[0], renamed(key, batch[1])
    rule = heavy_ball(config.learning_rate, config.momentum, 0.0)
    params, losses = descend(rule, model, params, following, config.next_steps)
    return {"next_loss": jnp.mean(losses), "next_end_loss": loss_of(model, params, following)}


def live(
    model: Model, config: Config, seed: jax.Array, setting: Setting, train: Batch, test: Batch
) -> tuple[Logs, Logs]:
    """Both tasks at one setting: what is measured, and the next task of a network drawn anew, as a reference."""
    start, other, renaming = jax.random.split(jax.random.key(seed, impl="philox4x32"), 3)
    params = first_task(model, config, start, setting, train)
    own = measure(model, params, train, test) | next_task(model, config, params, renaming, train)
    return own, next_task(model, config, model.init(other)["params"], renaming, train)
