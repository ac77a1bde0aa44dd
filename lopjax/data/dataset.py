"""The common form of all data sets, and the checks made before anything is compiled."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32, Num, UInt8

from lopjax.arguments.integers import as_integer
from lopjax.arguments.numbers import check_numbers, takes_numbers


class Dataset(NamedTuple):
    """An image classification set as arrays.

    The arrays stay 8-bit integers until a batch is used: CIFAR-10 is 184 MB this way and 737 MB as float32.
    Pass the arrays to a jitted function as arguments; closing over them makes XLA compile them in as constants.

    Attributes:
        train_images: pixels 0..255, channels last.
        train_labels: class of each training image, 0..num_classes-1, after label noise if any.
        test_images: as `train_images`.
        test_labels: as `train_labels`; never noisy.
        num_classes: number of classes.
        name: source of the data, such as "cifar10" or "digits".
        mean: per channel, mean of pixel/255 over all training pixels.
        std: per channel, standard deviation (1/N) of pixel/255 over all training pixels.
    """

    train_images: UInt8[np.ndarray, "train height width channels"]
    train_labels: Int32[np.ndarray, "train"]
    test_images: UInt8[np.ndarray, "test height width channels"]
    test_labels: Int32[np.ndarray, "test"]
    num_classes: int
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """`(height, width, channels)` of one image, for a model's `input_shape`."""
        _, height, width, channels = self.train_images.shape
        return height, width, channels


def from_arrays(
    images: Num[np.ndarray, "..."],
    labels: Num[np.ndarray, "..."],
    test_images: Num[np.ndarray, "..."],
    test_labels: Num[np.ndarray, "..."],
    num_classes: int,
    name: str = "arrays",
    channels_first: bool | None = None,
) -> Dataset:
    """A `Dataset` from your own arrays, checked.

    Floating-point images must lie in [0, 1] and become `round(255 x)`: exact for pixels that were 8-bit once,
    within 1/510 otherwise. Integer images must lie in 0..255.

    Args:
        images: training images `(train, height, width, channels)`; uint8, another integer type, or floating.
        labels: integers `(train,)`, 0..num_classes-1, every class present.
        test_images: test images, of the same height, width and channels.
        test_labels: integers `(test,)`; classes may be missing here.
        num_classes: number of classes.
        name: a name for messages and run folders.
        channels_first: True for images `(n, channels, height, width)`, as in PyTorch; they are transposed. False for
            channels last. None also means channels last, but refuses shapes that look like channels first: at most 4
            entries on the second axis, more than 4 on the last.

    Raises:
        ValueError: invalid arrays; the message says what is wrong, in which array, and what is allowed.

    Example:
        >>> import numpy as np
        >>> images = np.linspace(0, 1, 4 * 2 * 2).reshape(4, 2, 2, 1)
        >>> dataset = from_arrays(images, np.array([0, 1, 0, 1]), images[:2], np.array([1, 1]), num_classes=2)
        >>> dataset.train_images.dtype, dataset.image_shape, dataset.mean
        (dtype('uint8'), (2, 2, 1), (0.5,))
    """
    train_images = _to_uint8("images", images, channels_first)
    train_labels = _to_int32("labels", labels)
    mean, std = channel_statistics(train_images)
    return validate(
        Dataset(
            train_images=train_images,
            train_labels=train_labels,
            test_images=_to_uint8("test_images", test_images, channels_first),
            test_labels=_to_int32("test_labels", test_labels),
            num_classes=_checked_num_classes(num_classes),
            name=name,
            mean=mean,
            std=std,
        )
    )


def validate(dataset: Dataset) -> Dataset:
    """Returns `dataset` unchanged if it is valid; call it on a `Dataset` that you constructed yourself.

    Raises:
        ValueError: a wrong dtype or rank, different numbers of images and labels, labels outside 0..num_classes-1, a
            class without training images, different image shapes in the two splits, or normalisation constants that are
            not finite and positive.
    """
    _checked_num_classes(dataset.num_classes)
    for split in ("train", "test"):
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        _check_split(split, images, labels, dataset.num_classes)
    if dataset.test_images.shape[1:] != dataset.train_images.shape[1:]:
        raise ValueError(
            f"test_images: each has shape {dataset.test_images.shape[1:]}, "
            f"but training images have {dataset.train_images.shape[1:]}; they must be equal"
        )
    counts = np.bincount(dataset.train_labels, minlength=dataset.num_classes)
    if empty := np.flatnonzero(counts == 0).tolist():
        raise ValueError(
            f"train_labels: no image of class {_shorten(empty)}; each of the {dataset.num_classes} classes "
            "needs at least one (drop the class, or lower num_classes and renumber)"
        )
    _check_statistics(dataset)
    return dataset


def _checked_num_classes(num_classes: int) -> int:
    return as_integer(num_classes, 2, f"num_classes={num_classes!r}: must be an integer, at least 2")


@takes_numbers(images=4)
def channel_statistics(
    images: UInt8[np.ndarray, "n height width channels"],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixel/255 per channel, over all images and positions (both 1/N).

    Computed from the histogram of pixel values, in integers: exact, and no floating-point copy of the images.

    Returns:
        `(mean, std)`, each of length `channels`.
    """
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(images), 1000):
        for channel, row in enumerate(counts):
            row += np.bincount(images[start : start + 1000, ..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ levels
    std = np.sqrt((weights * (levels - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(std.tolist())


def with_label_noise(dataset: Dataset, fraction: float, seed: int) -> Dataset:
    """Redraws a fraction of the training labels uniformly over all classes.

    `round(fraction * train)` labels are redrawn; a redrawn label can equal the old one, so that on average a
    fraction `fraction * (1 - 1/num_classes)` changes. Which positions are redrawn, and to what, depends on
    `seed`, the number of images and the number of classes alone; with the same seed, a larger fraction redraws the same
    labels to the same values, and further ones. Test labels and normalisation constants do not change.

    Args:
        dataset: any data set.
        fraction: fraction of the training labels to redraw, in [0, 1].
        seed: a non-negative integer.

    Raises:
        ValueError: `fraction` is outside [0, 1] or `seed` is negative.
    """
    check_label_noise(fraction, seed)
    fraction, generator = float(fraction), np.random.default_rng(int(seed))
    num_train = len(dataset.train_labels)
    order = generator.permutation(num_train)
    fresh = generator.integers(dataset.num_classes, size=num_train, dtype=np.int32)
    redrawn = order[: round(fraction * num_train)]
    labels = dataset.train_labels.copy()
    labels[redrawn] = fresh[redrawn]
    return dataset._replace(train_labels=labels)


def check_label_noise(fraction: float, seed: int) -> None:
    """Raises `ValueError` unless `fraction` is a number in [0, 1] and `seed` a non-negative integer."""
    try:
        is_fraction = not isinstance(fraction, str) and 0.0 <= float(fraction) <= 1.0
    except TypeError:
        is_fraction = False
    if not is_fraction:
        raise ValueError(f"label_noise={fraction!r}: must be a fraction between 0 and 1")
    as_integer(seed, 0, f"seed={seed!r}: must be a non-negative integer")


def _as_array(field: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{field}: cannot be made an array ({error}); every entry must have the same shape") from error


def _looks_channels_first(first: int, second: int, last: int) -> bool:
    """Whether there are few channels before long axes, or square images only if the first axis is the channel axis."""
    return first <= 4 < last or first != second == last > 3


def _to_uint8(field: str, images: Any, channels_first: bool | None) -> UInt8[np.ndarray, "n height width channels"]:
    images = _as_array(field, images)
    _check_image_rank(field, images)
    if channels_first:
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    elif channels_first is None and _looks_channels_first(*images.shape[1:]):
        raise ValueError(
            f"{field}: shape {images.shape} looks like (images, channels, height, width); pass channels_first=True to "
            "have it transposed, or channels_first=False if the last axis is that of the channels"
        )
    if images.dtype == np.uint8:
        return images
    check_numbers(field, images)
    low, high = images.min(), images.max()
    if jnp.issubdtype(images.dtype, jnp.floating):  # NumPy does not know bfloat16
        if bad := np.count_nonzero(~np.isfinite(images)):
            raise ValueError(f"{field}: {bad} of {images.size} pixels are NaN or infinite; all must be finite")
        if low < 0 or high > 1:
            raise ValueError(f"{field}: pixels from {low} to {high}; floating-point pixels must lie in [0, 1]")
        # Half precision would add its own rounding error to that of the 256 levels.
        return np.rint((images.astype(np.float32) if images.itemsize < 4 else images) * 255).astype(np.uint8)
    if not np.issubdtype(images.dtype, np.integer):
        raise ValueError(f"{field}: dtype {images.dtype}; must be uint8, another integer type, or floating-point")
    if low < 0 or high > 255:
        raise ValueError(f"{field}: pixels from {low} to {high}; integer pixels must lie in 0..255")
    return images.astype(np.uint8)


def _to_int32(field: str, labels: Any) -> Int32[np.ndarray, "n"]:
    labels = _as_array(field, labels)
    if labels.ndim != 1:
        raise ValueError(f"{field}: shape {labels.shape}; must be (images,), one integer per image (not one-hot)")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{field}: dtype {labels.dtype}; must be an integer type")
    # A value that does not fit 32 bits would wrap around into the allowed range.
    return np.clip(labels, -1, np.iinfo(np.int32).max).astype(np.int32)


def _check_image_rank(field: str, images: np.ndarray) -> None:
    if images.ndim != 4:
        hint = "; add the channel axis with images[..., None]" if images.ndim == 3 else ""
        raise ValueError(f"{field}: shape {images.shape}; must be (images, height, width, channels){hint}")
    if 0 in images.shape:
        raise ValueError(f"{field}: shape {images.shape}; every axis must have at least one entry")


def _check_split(split: str, images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    _check_image_rank(f"{split}_images", images)
    if images.dtype != np.uint8:
        raise ValueError(f"{split}_images: dtype {images.dtype}; must be uint8 (from_arrays converts)")
    if labels.dtype != np.int32:
        raise ValueError(f"{split}_labels: dtype {labels.dtype}; must be int32 (from_arrays converts)")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{split}_labels: shape {labels.shape}; must be {images.shape[:1]}, one per image")
    low, high = labels.min(), labels.max()
    if low < 0 or high >= num_classes:
        raise ValueError(f"{split}_labels: values from {low} to {high}; must lie in 0..{num_classes - 1}")


def _check_statistics(dataset: Dataset) -> None:
    channels = dataset.train_images.shape[-1]
    for field in ("mean", "std"):
        values: Float[np.ndarray, "..."] = np.asarray(getattr(dataset, field), float)
        is_sound: Bool[np.ndarray, "..."] = np.isfinite(values) & ((values > 0) | (field == "mean"))
        if values.shape != (channels,) or not is_sound.all():
            what = "finite number" if field == "mean" else "positive finite number (is a channel constant?)"
            raise ValueError(f"{field}={getattr(dataset, field)}: must be {channels} values, each a {what}")


def _shorten(classes: list[int], limit: int = 5) -> str:
    shown = ", ".join(map(str, classes[:limit]))
    return shown if len(classes) <= limit else f"{shown} and {len(classes) - limit} more"
