"""Batches on the device: shuffle, gather, crop, flip, normalise.

Every function is pure, has fixed shapes and takes a key, so that a training step can call it inside `scan` and
`vmap` over seeds. Images are 8-bit until `normalize`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int32, Key, UInt8

from lopjax.arguments.numbers import takes_numbers

Images = UInt8[Array | np.ndarray, "batch height width channels"]


def epoch_permutation(key: Key[Array, ""], num_examples: int, batch_size: int) -> Int32[Array, "steps {batch_size}"]:
    """A random order of the examples, divided into batches; an incomplete last batch is dropped.

    Args:
        key: a random key.
        num_examples: size of the training set (static).
        batch_size: examples per batch (static), between 1 and `num_examples`.

    Returns:
        Indices `(num_examples // batch_size, batch_size)`, each example at most once.

    Raises:
        ValueError: `batch_size` is outside 1..num_examples.

    Example:
        >>> epoch_permutation(jax.random.key(0), num_examples=10, batch_size=4).shape
        (2, 4)
    """
    if not 1 <= batch_size <= num_examples:
        raise ValueError(f"batch_size={batch_size}: must be between 1 and the {num_examples} training examples")
    steps = num_examples // batch_size
    order = jax.random.permutation(key, num_examples)[: steps * batch_size]
    return order.astype(jnp.int32).reshape(steps, batch_size)


@takes_numbers(images=4, labels=1, indices=1)
def take_batch(
    images: UInt8[Array | np.ndarray, "n height width channels"],
    labels: Int32[Array | np.ndarray, "n"],
    indices: Int32[Array | np.ndarray, "batch"],
) -> tuple[UInt8[Array, "batch height width channels"], Int32[Array, "batch"]]:
    """The images and labels at `indices`, gathered on the device.

    Raises:
        ValueError: no images, or arrays of other ranks.
    """
    if images.shape[0] == 0:
        raise ValueError(f"images has shape {images.shape}: must hold at least one image to take from")
    return jnp.asarray(images)[indices], jnp.asarray(labels)[indices]


@takes_numbers(images=4)
def normalize(
    images: Images,
    mean: Float[ArrayLike, "channels"] | tuple[float, ...],
    std: Float[ArrayLike, "channels"] | tuple[float, ...],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Float[Array, "batch height width channels"]:
    """`(images/255 - mean) / std`, per channel.

    Args:
        images: pixels 0..255.
        mean: per channel, in units of pixel/255 (`Dataset.mean`).
        std: per channel, in the same units (`Dataset.std`).
        dtype: floating-point type of the result; rounding to a type narrower than float32 happens once, at the end.
    """
    compute = jnp.promote_types(dtype, jnp.float32)
    mean, std = jnp.asarray(mean, compute), jnp.asarray(std, compute)
    # One multiplication and one addition over whole rows of pixels. Over an innermost axis of three channels the
    # formula as written takes 1.6 ms per batch of 128 CIFAR images inside `scan` on a CPU, this form takes 0.2 ms.
    batch, height, width, channels = images.shape
    rows = jnp.asarray(images, compute).reshape(batch, height, width * channels)
    slope, offset = jnp.tile(1 / (255 * std), width), jnp.tile(mean / std, width)
    normalized = rows * slope[None, None] - offset[None, None]
    return normalized.astype(dtype).reshape(images.shape)


@takes_numbers(images=4)
def random_crop(key: Key[Array, ""], images: Images, padding: int) -> Images:
    """Shifts each image by up to `padding` pixels along each axis, filling with black (0).

    The same as zero-padding by `padding` on every side and cutting out a window of the original size at an
    offset uniform in {0, ..., 2 padding}², independently for each image.

    Args:
        key: a random key.
        images: a batch.
        padding: pixels on each side (static); 0 returns the batch unchanged.

    Raises:
        ValueError: `padding` is negative.
    """
    if padding < 0:
        raise ValueError(f"padding={padding}: must be 0 or a positive integer")
    if padding == 0:
        return images
    batch, height, width, _ = images.shape
    top, left = jax.random.randint(key, (2, batch, 1), 0, 2 * padding + 1)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    # A gather, because a vmapped dynamic_slice followed by `random_flip` inside `scan` takes 42 ms per batch of 128
    # CIFAR images on a CPU, against 0.5 ms.
    rows, columns = top + jnp.arange(height)[None], left + jnp.arange(width)[None]
    return padded[jnp.arange(batch)[:, None, None], rows[:, :, None], columns[:, None, :]]


@takes_numbers(images=4)
def random_flip(key: Key[Array, ""], images: Images) -> Images:
    """Mirrors each image left to right with probability 1/2, independently."""
    is_flipped = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(is_flipped, images[:, :, ::-1], images)


@takes_numbers(images=4)
def augment(key: Key[Array, ""], images: Images, crop_padding: int = 4, flip: bool = True) -> Images:
    """`random_crop` then `random_flip`, with independent keys; `crop_padding=0, flip=False` does nothing."""
    crop_key, flip_key = jax.random.split(key)
    images = random_crop(crop_key, images, crop_padding)
    images = random_flip(flip_key, images) if flip else images
    # Keeps XLA from fusing the gather into later operations, pixel by pixel: 0.6 ms instead of 1.2 ms with `normalize`.
    return jax.lax.optimization_barrier(jnp.asarray(images))
