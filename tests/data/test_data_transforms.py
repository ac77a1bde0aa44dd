"""Batches on the device, against numpy oracles that search for the draw instead of repeating it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lopjax.data import augment, epoch_permutation, load, normalize, random_crop, random_flip, take_batch

PADDING = 2


def distinct_images(batch: int, height: int = 4, width: int = 5, channels: int = 2) -> np.ndarray:
    """Images without a zero and without two equal pixels in a channel: every shift is recognisable."""
    generator = np.random.default_rng(0)
    pixels = [generator.permutation(np.arange(1, 256))[: height * width] for _ in range(batch * channels)]
    return np.moveaxis(np.reshape(pixels, (batch, channels, height, width)), 1, -1).astype(np.uint8)


def find_offset(image: np.ndarray, cropped: np.ndarray, padding: int) -> tuple[int, int] | None:
    """The window of the zero-padded image that `cropped` is, or None."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            if np.array_equal(padded[top : top + height, left : left + width], cropped):
                return top, left
    return None


def is_plausible_uniform(counts: np.ndarray) -> bool:
    return stats.chisquare(np.ravel(counts)).pvalue > 1e-3


def test_every_crop_is_a_window_and_every_offset_equally_likely():
    images = np.tile(distinct_images(4), (500, 1, 1, 1))
    cropped = np.asarray(random_crop(jax.random.key(0), images, PADDING))
    offsets = [find_offset(*pair, PADDING) for pair in zip(images, cropped)]
    assert None not in offsets
    counts = np.zeros((2 * PADDING + 1, 2 * PADDING + 1))
    np.add.at(counts, tuple(np.transpose(offsets)), 1)
    assert is_plausible_uniform(counts)


def test_the_crop_oracle_rejects_a_cyclic_shift_and_a_mirror_image():
    image = distinct_images(1)[0]
    assert find_offset(image, image, PADDING) == (PADDING, PADDING)
    assert find_offset(image, np.roll(image, 1, axis=1), PADDING) is None
    assert find_offset(image, image[:, ::-1], PADDING) is None


def test_padding_zero_changes_nothing_and_negative_is_refused():
    images = distinct_images(3)
    np.testing.assert_array_equal(random_crop(jax.random.key(0), images, 0), images)
    np.testing.assert_array_equal(augment(jax.random.key(0), images, crop_padding=0, flip=False), images)
    with pytest.raises(ValueError, match="padding=-1: must be 0 or a positive integer"):
        random_crop(jax.random.key(0), images, -1)


def test_half_of_the_images_are_mirrored_left_to_right():
    images = np.tile(distinct_images(4), (250, 1, 1, 1))
    flipped = np.asarray(random_flip(jax.random.key(1), images))
    is_same = (flipped == images).all(axis=(1, 2, 3))
    is_mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (is_same ^ is_mirrored).all()
    assert stats.binomtest(int(is_mirrored.sum()), len(images)).pvalue > 1e-3
    assert not (flipped == images[:, ::-1]).all(axis=(1, 2, 3)).any()


def test_augment_draws_crop_and_flip_independently():
    images = np.tile(distinct_images(1), (1000, 1, 1, 1))
    augmented = np.asarray(augment(jax.random.key(2), images, crop_padding=1))
    counts = np.zeros((2, 3, 3))
    for image, result in zip(images, augmented):
        # A crop, then perhaps a mirror: undo the mirror to find the crop.
        offsets = [find_offset(image, candidate, 1) for candidate in (result, result[:, ::-1])]
        (mirrored,) = [which for which, offset in enumerate(offsets) if offset is not None]
        counts[(mirrored, *offsets[mirrored])] += 1
    assert is_plausible_uniform(counts)
    assert not is_plausible_uniform(counts * [[[1.5]], [[0.5]]])


@pytest.mark.parametrize("implementation", ["threefry2x32", "philox4x32"])
def test_vmap_over_seeds_is_a_loop(implementation):
    images = distinct_images(3)
    keys = jax.random.split(jax.random.key(3, impl=implementation), 4)
    compiled = jax.jit(lambda key: (augment(key, images, crop_padding=1), epoch_permutation(key, 7, 3)))
    together = jax.jit(jax.vmap(compiled))(keys)
    apart = [compiled(key) for key in keys]
    jax.tree.map(np.testing.assert_array_equal, together, jax.tree.map(lambda *lanes: np.stack(lanes), *apart))
    assert len({np.asarray(augmented).tobytes() for augmented, _ in apart}) == len(keys)


def test_an_epoch_visits_each_example_at_most_once_in_uniform_order():
    num_examples, batch_size = 7, 3
    keys = jax.random.split(jax.random.key(4), 1500)
    epochs = np.asarray(jax.vmap(lambda key: epoch_permutation(key, num_examples, batch_size))(keys))
    assert epochs.shape == (1500, 2, 3)
    assert epochs.dtype == np.int32
    flat = epochs.reshape(1500, -1)
    assert (np.diff(np.sort(flat, axis=1), axis=1) > 0).all()
    counts = [np.bincount(position, minlength=num_examples) for position in flat.T]
    assert all(is_plausible_uniform(count) for count in counts)
    # Also the example that the incomplete batch drops.
    assert is_plausible_uniform(1500 - np.sum(counts, axis=0))


def test_a_full_batch_is_a_permutation():
    assert sorted(np.ravel(epoch_permutation(jax.random.key(0), 10, 10)).tolist()) == list(range(10))


@pytest.mark.parametrize("batch_size", [-1, 0, 11])
def test_impossible_batch_sizes_are_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}: must be between 1 and the 10 training examples"):
        epoch_permutation(jax.random.key(0), 10, batch_size)


def test_an_epoch_inside_scan_gathers_what_numpy_indexing_gathers():
    dataset = load("digits")

    @jax.jit
    def epoch(key, images, labels):
        indices = epoch_permutation(key, len(labels), 100)
        return indices, jax.lax.scan(lambda _, batch: (None, take_batch(images, labels, batch)), None, indices)[1]

    indices, (images, labels) = epoch(jax.random.key(5), dataset.train_images, dataset.train_labels)
    assert images.shape == (14, 100, 8, 8, 1)
    np.testing.assert_array_equal(images, dataset.train_images[np.asarray(indices)])
    np.testing.assert_array_equal(labels, dataset.train_labels[np.asarray(indices)])


def normalized_in_float64(images, mean, std):
    return (images.astype(np.float64) / 255 - np.asarray(mean)) / np.asarray(std)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-14), ("float32", 1e-6), ("bfloat16", 2**-8)])
def test_normalize_in_every_precision(x64, dtype, tolerance):
    images = np.arange(256, dtype=np.uint8).reshape(2, 8, 8, 2)
    mean, std = (0.4914, 0.4465), (0.247, 0.2616)
    normalized = jax.jit(lambda batch: normalize(batch, mean, std, dtype))(images)
    assert normalized.dtype == jnp.dtype(dtype)
    expected = normalized_in_float64(images, mean, std)
    assert (np.abs(np.asarray(normalized, np.float64) - expected) <= tolerance * (1 + np.abs(expected))).all()
    # Control: the tolerance tells 255 from 256 levels.
    assert not (np.abs(expected * 255 / 256 - expected) <= tolerance / 2 * (1 + np.abs(expected))).all()


def test_a_data_set_normalized_by_its_own_constants_has_mean_0_and_deviation_1():
    dataset = load("digits")
    train = np.asarray(normalize(dataset.train_images, dataset.mean, dataset.std), np.float64)
    test = np.asarray(normalize(dataset.test_images, dataset.mean, dataset.std), np.float64)
    assert abs(train.mean()) < 1e-6
    assert abs(train.std() - 1) < 1e-6
    # Control: the constants are those of the training images.
    assert abs(test.mean()) > 1e-4
