"""The training engine: steps scanned in compiled chunks, seeds side by side, order and noise fixed by keys alone.

A *step* is a pure function `(state, batch, key, index) -> (state, logs)`, where the state is any pytree: one network,
or a base and its clone that see the same batches. The engine decides which examples step `t` of a seed sees from
`(key, t)` alone, so the result does not depend on how the steps are cut into chunks.
"""

from collections.abc import Callable
from math import ceil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Int32, Key, PyTree, UInt8

from lopjax.data import augment, epoch_permutation, normalize, take_batch
from lopjax.losses import accuracy, mean_cross_entropy
from lopjax.model import Model, Variables

Logs = dict[str, jax.Array]
Images = UInt8[Array | np.ndarray, "batch height width channels"]
State = PyTree
Batch = tuple[UInt8[Array, "batch height width channels"], Int32[Array, " batch"]]
Step = Callable[[State, Batch, jax.Array, jax.Array], tuple[State, Logs]]


class TrainState(NamedTuple):
    """One network in training.

    Attributes:
        variables: parameters and batch statistics.
        opt_state: state of the optax optimizer.
    """

    variables: Variables
    opt_state: optax.OptState


class Preprocess(NamedTuple):
    """From 8-bit images to what a model takes.

    Attributes:
        mean: per channel, in units of pixel/255.
        std: likewise.
        crop_padding: random crops after zero padding by this many pixels, in training; 0 for none.
        flip: random horizontal flips in training.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False

    def inputs(self, images: Images, key: jax.Array | None = None) -> jax.Array:
        """Normalised images, augmented if a key is given. Floating point type: JAX's default."""
        shown = images if key is None else augment(key, images, self.crop_padding, self.flip)
        return normalize(shown, self.mean, self.std, jnp.zeros(()).dtype)


def init_state(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """A network at the start of training."""
    return TrainState(variables, optimizer.init(variables["params"]))


def sgd_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    inputs: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    dropout_rate: jax.typing.ArrayLike | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = mean_cross_entropy,
) -> tuple[TrainState, Logs]:
    """One step of any optax optimizer on one batch, in train mode.

    Args:
        model: the network.
        optimizer: any optax transformation.
        state: its variables and optimizer state.
        inputs: `(batch, *input_shape)`.
        labels: what `loss` takes besides the logits.
        key: for dropout.
        dropout_rate: overrides the model's own; may be traced.
        loss: `(logits, labels) -> scalar`, a mean over samples.

    Returns:
        The new state and `{"loss", "accuracy"}` of the batch *before* the step.
    """
    variables = state.variables

    def objective(params: PyTree) -> tuple[jax.Array, tuple[jax.Array, Variables]]:
        logits, updated, _ = model.apply(
            {**variables, "params": params}, inputs, train=True, key=key, dropout_rate=dropout_rate
        )
        return loss(logits, labels), (logits, updated)

    (value, (logits, updated)), gradient = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(gradient, state.opt_state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    return TrainState({**updated, "params": params}, opt_state), {"loss": value, "accuracy": accuracy(logits, labels)}


def batch_indices(
    key: Key[Array, ""], start: Int[Array, ""] | int, num_steps: int, num_examples: int, batch_size: int
) -> Int32[Array, "num_steps batch_size"]:
    """Which examples steps `start, ..., start + num_steps - 1` see: a fresh shuffle every epoch, last batch dropped.

    A function of the key and the step number alone: the same whatever `num_steps` the run is cut into.

    Args:
        key: random key; epoch e is shuffled by `fold_in(key, e)`.
        start: number of the first step; may be traced.
        num_steps: how many (static).
        num_examples: size of the training set (static).
        batch_size: examples a batch (static), between 1 and `num_examples`.

    Raises:
        ValueError: if `batch_size` is outside 1..num_examples.
    """
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch_size={batch_size}: must be between 1 and the {num_examples} training examples")
    steps_per_epoch = num_examples // batch_size
    first = jnp.asarray(start) // steps_per_epoch
    epochs = first + jnp.arange(ceil((steps_per_epoch - 1 + num_steps) / steps_per_epoch))
    orders = jax.vmap(lambda epoch: epoch_permutation(jax.random.fold_in(key, epoch), num_examples, batch_size))(epochs)
    flat = orders.reshape(-1, batch_size)
    return jax.lax.dynamic_slice_in_dim(flat, jnp.asarray(start) - first * steps_per_epoch, num_steps)


def make_chunk(step: Step, num_steps: int, batch_size: int) -> Callable[..., tuple[State, Logs]]:
    """Compile `num_steps` steps into one call, for many seeds side by side.

    Args:
        step: one step of one seed.
        num_steps: steps a call.
        batch_size: examples a batch.

    Returns:
        `chunk(states, keys, start, images, labels) -> (states, logs)`. `states` and `keys` have a leading seed axis
        (the buffers of `states` are donated); images and labels are shared by all seeds; logs are means over the steps,
        one per seed. Pass the data as arguments: closed over, they would be compiled in as constants.
    """

    def chunk_of_one(
        state: State, key: jax.Array, start: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[State, Logs]:
        order_key, step_key = jax.random.split(key)
        indices = batch_indices(order_key, start, num_steps, len(images), batch_size)

        def body(state: State, now: tuple[jax.Array, jax.Array]) -> tuple[State, Logs]:
            index, chosen = now
            return step(state, take_batch(images, labels, chosen), jax.random.fold_in(step_key, index), index)

        state, logs = jax.lax.scan(body, state, (start + jnp.arange(num_steps), indices))
        return state, jax.tree.map(lambda log: jnp.mean(log, axis=0), logs)

    return jax.jit(jax.vmap(chunk_of_one, in_axes=(0, 0, None, None, None)), donate_argnums=0)


def evaluate(
    model: Model,
    variables: Variables,
    preprocess: Preprocess,
    images: UInt8[Array | np.ndarray, "n height width channels"],
    labels: Int32[Array | np.ndarray, " n"],
    batch_size: int = 1000,
) -> dict[str, Float[Array, ""]]:
    """Mean cross-entropy (nats) and accuracy in eval mode over a whole set, in batches. Pure; use under jit.

    Args:
        model: the network.
        variables: its variables.
        preprocess: how images become inputs; nothing random is done.
        images: 8-bit images.
        labels: their classes.
        batch_size: images held as floats at once; the last batch may be smaller.

    Raises:
        ValueError: if there is nothing to evaluate, or `batch_size` is not positive.
    """
    images, labels, num = jnp.asarray(images), jnp.asarray(labels), len(images)
    if batch_size < 1 or num < 1:
        raise ValueError(f"batch_size={batch_size}, {num} images: both must be at least 1")
    size = min(batch_size, num)
    whole = num // size * size

    def sums(batch: Batch) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(variables, preprocess.inputs(batch[0]))[0]
        count = batch[1].shape[0]
        return mean_cross_entropy(logits, batch[1]) * count, accuracy(logits, batch[1]) * count

    batched = (images[:whole].reshape(-1, size, *images.shape[1:]), labels[:whole].reshape(-1, size))
    loss, correct = jax.tree.map(jnp.sum, jax.lax.map(sums, batched))
    if whole < num:
        rest_loss, rest_correct = sums((images[whole:], labels[whole:]))
        loss, correct = loss + rest_loss, correct + rest_correct
    return {"loss": loss / num, "accuracy": correct / num}
