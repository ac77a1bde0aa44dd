"""From stored images to a model's inputs, and the evaluation of a model on a whole data set."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Integer, UInt8

from lopjax.arguments.integers import as_integer
from lopjax.arguments.order import packed, takes_old_order, third_is
from lopjax.data import augment, normalize
from lopjax.losses import accuracy, mean_cross_entropy, pair
from lopjax.model import Model, Variables, outputs_of

Images = UInt8[Array | np.ndarray, "batch height width channels"]


class Preprocess(NamedTuple):
    """From 8-bit images to a model's inputs.

    Attributes:
        mean: per channel, in units of pixel/255.
        std: standard deviation, in the same units.
        crop_padding: random crops after zero padding by this many pixels, in training; 0 for none.
        flip: random horizontal flips in training.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_padding: int = 0
    flip: bool = False

    def inputs(self, images: Images, key: jax.Array | None = None) -> jax.Array:
        """Normalised images, augmented if a key is given. The dtype is JAX's default floating point type."""
        shown = images if key is None else augment(key, images, self.crop_padding, self.flip)
        return _normalized(shown, self.mean, self.std, jnp.zeros(()).dtype)


# One program where `inputs` is called outside jit, instead of twenty; the same operations inside.
_normalized = jax.jit(normalize, static_argnums=(1, 2, 3), inline=True)


class AsStored(NamedTuple):
    """Inputs used as stored, such as tokens: takes the place of `Preprocess`."""

    def inputs(self, stored: Array | np.ndarray, key: jax.Array | None = None) -> jax.Array:
        """The stored inputs on the device; nothing is random."""
        return jnp.asarray(stored)


@takes_old_order(
    "model variables preprocess images labels batch_size",
    third_is(lambda each: isinstance(each, Preprocess)),
    packed("images"),
)
def evaluate(
    model: Model,
    variables: Variables,
    batch: tuple[Integer[Array | np.ndarray, "n ..."], Int32[Array | np.ndarray, "n *positions"]],
    preprocess: Preprocess | AsStored,
    *,
    batch_size: int = 1000,
) -> dict[str, Float[Array, ""]]:
    """Mean cross-entropy (nats) and accuracy in eval mode over a whole set, in batches. Pure; use under jit.

    Args:
        model: the network.
        variables: its variables.
        batch: all 8-bit images and their classes, or tokens with a label at every position.
        preprocess: turns images into inputs; nothing is random.
        batch_size: number of images or texts held as floats at once; the last batch may be smaller.

    Raises:
        ValueError: there is nothing to evaluate, or `batch_size` is not positive.
    """
    images, labels = map(jnp.asarray, pair(batch))
    num = len(images)
    as_integer(batch_size, 1, f"batch_size={batch_size!r}: must be a positive integer")
    size = min(batch_size, num)
    whole = num // size * size

    def sums(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        logits = outputs_of(model, variables, preprocess.inputs(part[0])).logits
        count = part[1].shape[0]
        return mean_cross_entropy(logits, part[1]) * count, accuracy(logits, part[1]) * count

    batched = (images[:whole].reshape(-1, size, *images.shape[1:]), labels[:whole].reshape(-1, size, *labels.shape[1:]))
    loss, correct = jax.tree.map(jnp.sum, jax.lax.map(sums, batched))
    if whole < num:
        rest_loss, rest_correct = sums((images[whole:], labels[whole:]))
        loss, correct = loss + rest_loss, correct + rest_correct
    return {"loss": loss / num, "accuracy": correct / num}
