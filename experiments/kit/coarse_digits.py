"""A task small enough for thousands of training runs: digits as 16 features, and full-batch descent on them."""

from typing import Any

import jax
import numpy as np
import optax

from lopjax.losses import mean_cross_entropy
from lopjax.model import Model, Params, samples_by_units

NUM_FEATURES, NUM_CLASSES = 16, 10
Batch = tuple[jax.Array, jax.Array]


def coarse(images: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """8 x 8 images as 16 features, float32: means over 2 x 2 pixels, standardised.

    Args:
        images: `(samples, 8, 8, 1)`.
        like: the images over which every feature has mean 0 and variance 1; the same by default.
    """
    means = _means(images)
    reference = means if like is None else _means(like)
    deviations = reference.std(0)
    return (means - reference.mean(0)) / np.where(deviations > 0, deviations, 1)


def _means(images: np.ndarray) -> np.ndarray:
    return np.asarray(images, np.float32).reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, NUM_FEATURES)


def renamed(key: jax.Array, labels: Any) -> jax.Array:
    """Labels after a random permutation of the classes."""
    return jax.random.permutation(key, NUM_CLASSES)[labels]


def loss_of(model: Model, params: Params, batch: Batch) -> jax.Array:
    """Mean cross-entropy."""
    return mean_cross_entropy(model.apply({"params": params}, batch[0]).logits, batch[1])


def hidden(model: Model, params: Params, inputs: jax.Array) -> dict[str, jax.Array]:
    """Activations of every hidden layer, `(samples, units)`, by unit space."""
    return {tap.space: samples_by_units(tap.post) for tap in model.apply({"params": params}, inputs).taps.values()}


def heavy_ball(learning_rate: float, momentum: float, decay: jax.Array | float) -> optax.GradientTransformation:
    """Gradient descent with momentum on the loss plus `decay / 2` times the squared norm of all parameters."""
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(learning_rate, momentum))


def descend(
    rule: optax.GradientTransformation, model: Model, params: Params, batch: Batch, steps: int
) -> tuple[Params, jax.Array]:
    """Full-batch training from zero momentum: the parameters, and the loss before every update."""

    def step(state: tuple, _: None) -> tuple[tuple, jax.Array]:
        params, memory = state
        loss, gradient = jax.value_and_grad(lambda each: loss_of(model, each, batch))(params)
        change, memory = rule.update(gradient, memory, params)
        return (optax.apply_updates(params, change), memory), loss

    (params, _), losses = jax.lax.scan(step, (params, rule.init(params)), length=steps)
    return params, losses
