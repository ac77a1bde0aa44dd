"""The training engine: steps in compiled chunks, many lanes, order and noise fixed by keys alone.

A *step* is a pure function `(state, batch, key, index) -> (state, logs)`, where the state is any pytree: one network,
or a base and its clone that see the same batches. The engine decides which examples step `t` of a lane sees from
`(key, t)` alone, so the result does not depend on how the steps are cut into chunks, nor on the lanes beside it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, PyTree, UInt8

from lopjax.data import augment, epoch_permutation, normalize, take_batch
from lopjax.lanes import cut_batch, over_lanes
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


class Lanes(NamedTuple):
    """Many lanes in training.

    Attributes:
        state: of every lane; leaves have a leading lane axis.
        frozen_at: int32, one a lane: the first step whose logs were not all finite; -1 while there is none.
    """

    state: State
    frozen_at: Int32[Array, " lanes"]


def start_lanes(state: State) -> Lanes:
    """Lanes at the start of training, from states with a leading lane axis."""
    return Lanes(state, jnp.full(len(jax.tree.leaves(state)[0]), -1, jnp.int32))


def make_chunk(step: Step, batch_size: int, mesh: Mesh | None = None) -> Callable[..., tuple[Lanes, Logs]]:
    """Compile steps for many lanes, as many steps a call as the call says.

    Step t of a lane sees a batch that is a function of its key and of t alone: a fresh shuffle every epoch, by
    `fold_in(key, epoch)`, and the last batch of an epoch dropped if it is not full. The number of steps is no part of
    the compiled program, so that a run has the same bits however it is cut into calls.

    A lane any of whose logs is not finite at some step is frozen: it keeps the state that this step found, and
    `frozen_at` names the step. The others go on.

    Args:
        step: one step of one lane.
        batch_size: examples a batch.
        mesh: from `lopjax.lanes.lane_mesh`, to spread the lanes, and their batches, over several devices.

    Returns:
        `chunk(lanes, keys, start, num_steps, images, labels) -> (lanes, logs)`: steps `start, ...,
        start + num_steps - 1`. `lanes` (whose buffers are donated) and `keys` have a leading lane axis; images and
        labels are shared by all lanes; logs are means over the steps, one per lane, NaN for a frozen one. Pass the
        data as arguments: closed over, they would be compiled in as constants. Raises ValueError if `num_steps` is not
        positive, or `batch_size` is outside 1..number of examples.
    """

    def of_one(lane: Lanes, key: jax.Array, start: Any, num_steps: Any, images: Any, labels: Any) -> tuple[Lanes, Logs]:
        order_key, step_key = jax.random.split(key)
        steps_per_epoch = len(images) // batch_size
        batch = (images[:batch_size], labels[:batch_size])
        logged = jax.eval_shape(step, lane.state, batch, step_key, start)[1]
        dtype = jnp.zeros(()).dtype
        sums = jax.tree.map(lambda log: jnp.zeros(log.shape, dtype), logged)

        def epoch(number: Any, carry: tuple[Lanes, Logs]) -> tuple[Lanes, Logs]:
            order = epoch_permutation(jax.random.fold_in(order_key, number), len(images), batch_size)
            first = number * steps_per_epoch

            def one(within: Any, carry: tuple[Lanes, Logs]) -> tuple[Lanes, Logs]:
                (state, frozen_at), sums = carry
                index = first + within
                batch = cut_batch(take_batch(images, labels, order[within]), mesh)
                found, logs = step(state, batch, jax.random.fold_in(step_key, index), index)
                is_finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(log)) for log in jax.tree.leaves(logs)]))
                frozen_at = jnp.where((frozen_at < 0) & ~is_finite, index, frozen_at)
                state = jax.tree.map(lambda new, old: jnp.where(frozen_at < 0, new, old), found, state)
                return Lanes(state, frozen_at), jax.tree.map(lambda a, b: a + b.astype(dtype), sums, logs)

            end = start + num_steps
            return jax.lax.fori_loop(
                jnp.maximum(start - first, 0), jnp.minimum(end - first, steps_per_epoch), one, carry
            )

        last = (start + num_steps - 1) // steps_per_epoch
        lane, sums = jax.lax.fori_loop(start // steps_per_epoch, last + 1, epoch, (lane, sums))
        means = jax.tree.map(lambda log: jnp.where(lane.frozen_at < 0, log / num_steps, jnp.nan), sums)
        return lane, means

    compiled = over_lanes(of_one, 2, mesh, donate=True)

    def chunk(
        lanes: Lanes, keys: jax.Array, start: int, num_steps: int, images: Any, labels: Any
    ) -> tuple[Lanes, Logs]:
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps}: must be at least 1")
        if not 1 <= batch_size <= len(images):
            raise ValueError(f"batch_size={batch_size}: must be between 1 and the {len(images)} training examples")
        return compiled(lanes, keys, jnp.int32(start), jnp.int32(num_steps), images, labels)

    return chunk


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
