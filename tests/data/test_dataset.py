"""The one shape of data sets: conversion, checks, label noise, and the embedded digits."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from lopjax.data import channel_statistics, from_arrays, load, validate, with_label_noise
from lopjax.data.built_in import BUILT_IN
from lopjax.data.prepare import prepare


def arrays(**changes):
    generator = np.random.default_rng(0)
    fields = {
        "images": generator.integers(0, 256, (12, 4, 3, 2), dtype=np.uint8),
        "labels": np.arange(12) % 3,
        "test_images": generator.integers(0, 256, (5, 4, 3, 2), dtype=np.uint8),
        "test_labels": np.zeros(5, int),
        "num_classes": 3,
    }
    return fields | changes


@pytest.mark.parametrize("num_classes", [np.int64(3), np.uint8(3), jnp.int32(3)], ids=lambda n: type(n).__name__)
def test_every_kind_of_integer_is_a_number_of_classes(unchecked, num_classes):
    dataset = from_arrays(**arrays(num_classes=num_classes))
    assert type(dataset.num_classes) is int
    noisy = with_label_noise(dataset, np.float32(0.5), num_classes)
    np.testing.assert_array_equal(noisy.train_labels, with_label_noise(dataset, 0.5, 3).train_labels)


def test_channels_first_is_transposed_and_doubtful_shapes_can_be_vouched_for():
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 9), dtype=np.uint8)
    transposed = from_arrays(**arrays(images=images, test_images=images[:5]), channels_first=True)
    assert transposed.image_shape == (8, 9, 3)
    assert transposed.train_images[4, 7, 2, 1] == images[4, 1, 7, 2]
    kept = from_arrays(**arrays(images=images, test_images=images[:5]), channels_first=False)
    assert kept.image_shape == (3, 8, 9)
    assert from_arrays(**arrays(), channels_first=None).image_shape == (4, 3, 2)


def test_sound_arrays_pass_unchanged():
    given_arrays = arrays()
    dataset = from_arrays(**given_arrays)
    np.testing.assert_array_equal(dataset.train_images, given_arrays["images"])
    np.testing.assert_array_equal(dataset.test_labels, given_arrays["test_labels"])
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.image_shape == (4, 3, 2)
    assert validate(dataset) is dataset


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_that_were_8_bit_convert_exactly(dtype):
    pixels = np.tile(np.arange(256, dtype=np.uint8), 12).reshape(12, 16, 16, 1)
    dataset = from_arrays(
        **arrays(images=(pixels / 255).astype(dtype), test_images=pixels[:5].astype(np.int64)),
    )
    np.testing.assert_array_equal(dataset.train_images, pixels)
    np.testing.assert_array_equal(dataset.test_images, pixels[:5])


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=4, max_dims=4, max_side=5)))
def test_channel_statistics_are_those_of_numpy(images):
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), atol=1e-14)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), atol=1e-14)


def test_channel_statistics_over_several_chunks():
    images = np.random.default_rng(1).integers(0, 256, (2500, 2, 2, 3), dtype=np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-13)
    assert not np.allclose(mean, (images[:1000] / 255).mean(axis=(0, 1, 2)), rtol=1e-13)


IMAGES = arrays()["images"]
FLOATS = IMAGES / 255
BAD_INPUT = {
    "NaN": ({"images": np.where(IMAGES.max() == IMAGES, np.nan, FLOATS)}, r"images: \d+ of 288 pixels are NaN"),
    "infinite": ({"test_images": np.full((5, 4, 3, 2), np.inf)}, "test_images: 120 of 120 pixels are NaN or infinite"),
    "float range": ({"images": FLOATS * 255}, r"images: pixels from .* to 25\d.*; .* must lie in \[0, 1\]"),
    "integer range": ({"images": IMAGES.astype(int) - 300}, r"images: pixels from -300 to .* must lie in 0..255"),
    "bool pixels": ({"images": IMAGES > 100}, "images: dtype bool; must be uint8"),
    "no channels": ({"images": IMAGES[..., 0]}, r"shape \(12, 4, 3\); must be .*; add the channel axis"),
    "flat": ({"test_images": IMAGES.reshape(12, -1)}, r"test_images: shape \(12, 24\); must be"),
    "no images": ({"images": IMAGES[:0], "labels": np.zeros(0, int)}, r"images: shape \(0, 4, 3, 2\); every axis"),
    "sizes differ": ({"test_images": IMAGES[:5, :, :2]}, r"test_images: each has shape \(4, 2, 2\)"),
    "one-hot": ({"labels": np.eye(12, dtype=int)}, r"labels: shape \(12, 12\); .*not one-hot"),
    "float labels": ({"labels": np.arange(12) / 2}, "labels: dtype float64; must be an integer type"),
    "too few labels": ({"labels": np.arange(6) % 3}, r"train_labels: shape \(6,\); must be \(12,\)"),
    "label too large": ({"test_labels": np.full(5, 3)}, r"test_labels: values from 3 to 3; must lie in 0..2"),
    "label negative": ({"labels": np.arange(12) % 4 - 1}, r"train_labels: values from -1 to 2; must lie in 0..2"),
    "label wraps": ({"labels": np.arange(12) % 3 + 2**32}, r"train_labels: .* must lie in 0..2"),
    "empty class": ({"labels": np.arange(12) % 2}, "train_labels: no image of class 2; each of the 3 classes"),
    "empty classes": ({"num_classes": 20}, "no image of class 3, 4, 5, 6, 7 and 12 more"),
    "channels first": (
        {"images": np.zeros((12, 3, 8, 8), np.uint8)},
        r"images: shape \(12, 3, 8, 8\) looks like .*channels_first=True to have it transposed",
    ),
    "many channels first": (
        {"images": np.zeros((12, 12, 8, 8), np.uint8)},
        r"images: shape \(12, 12, 8, 8\) looks like .*channels_first=True to have it transposed",
    ),
    "grey channel first": ({"images": np.zeros((12, 1, 4, 4), np.uint8)}, "channels_first=True to have it transposed"),
    "ragged": ({"images": [np.zeros((2, 2, 1)), np.zeros((3, 2, 1))]}, "images: cannot be made an array"),
    "ragged labels": ({"test_labels": [[0], [0, 1]]}, "test_labels: cannot be made an array"),
    "no array": ({"images": None}, r"images: shape \(\); must be"),
    "no labels": ({"labels": None}, r"labels: shape \(\); must be"),
    "text": ({"labels": np.array(list("abcabcabcabc"))}, "labels: dtype <U1; must be an integer type"),
    "complex": ({"images": FLOATS * 1j}, "images: dtype complex128; must be uint8"),
    "float classes": ({"num_classes": 4.0}, r"num_classes=4\.0: must be an integer, at least 2"),
    "no classes": ({"num_classes": None}, "num_classes=None: must be an integer"),
    "one class": ({"num_classes": 1}, "num_classes=1: must be an integer, at least 2"),
    "constant": ({"images": np.full((12, 4, 3, 2), 7, np.uint8)}, r"std=\(0.0, 0.0\): .*is a channel constant"),
}


@pytest.mark.parametrize(("changes", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_refused_with_field_value_and_what_is_allowed(unchecked, changes, message):
    with pytest.raises(ValueError, match=message):
        from_arrays(**arrays(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_images": FLOATS}, "train_images: dtype float64; must be uint8"),
        ({"test_labels": np.zeros(5, np.int64)}, "test_labels: dtype int64; must be int32"),
        ({"mean": (0.5,)}, r"mean=\(0.5,\): must be 2 values"),
        ({"std": (0.5, float("nan"))}, "std=.*: must be 2 values, each a positive finite number"),
    ],
)
def test_a_data_set_filled_in_by_hand_is_checked(unchecked, changes, message):
    with pytest.raises(ValueError, match=message):
        validate(from_arrays(**arrays())._replace(**changes))


def many_labels(num_classes=5, size=4000):
    labels = np.random.default_rng(2).permutation(np.arange(size) % num_classes)
    images = np.random.default_rng(3).integers(0, 256, (size, 1, 1, 1), dtype=np.uint8)
    return from_arrays(images, labels, images[:10], labels[:10], num_classes)


def test_label_noise_redraws_exactly_the_fraction_uniformly():
    clean = many_labels()
    # A class that no image has marks the labels that were left alone.
    marked = clean._replace(train_labels=np.full_like(clean.train_labels, -1))
    for fraction in (0.0, 0.25, 0.5, 1.0):
        redrawn = with_label_noise(marked, fraction, seed=0).train_labels
        assert np.count_nonzero(redrawn >= 0) == fraction * 4000
    counts = np.bincount(with_label_noise(marked, 1.0, seed=0).train_labels, minlength=5)
    assert np.abs(counts - 800).max() < 4 * np.sqrt(800)
    # A redrawn label is its old self once in five times: it is drawn over all classes.
    changed = np.mean(with_label_noise(clean, 1.0, seed=0).train_labels != clean.train_labels)
    assert abs(changed - 0.8) < 4 * np.sqrt(0.16 / 4000)


def test_label_noise_depends_on_seed_and_position_only():
    clean = many_labels()
    noisy = with_label_noise(clean, 0.5, seed=1)
    np.testing.assert_array_equal(noisy.train_labels, with_label_noise(clean, 0.5, seed=1).train_labels)
    assert (noisy.train_labels != with_label_noise(clean, 0.5, seed=2).train_labels).any()
    marked = clean._replace(train_labels=np.full_like(clean.train_labels, -1))
    redrawn = with_label_noise(marked, 0.5, seed=1).train_labels
    for labels in (clean.train_labels, np.sort(clean.train_labels)):
        dataset = clean._replace(train_labels=labels, train_images=clean.train_images[::-1])
        expected = np.where(redrawn >= 0, redrawn, labels)
        np.testing.assert_array_equal(with_label_noise(dataset, 0.5, seed=1).train_labels, expected)


def test_more_label_noise_keeps_what_less_redrew():
    clean = many_labels()
    marked = clean._replace(train_labels=np.full_like(clean.train_labels, -1))
    less, more = (with_label_noise(marked, fraction, seed=3).train_labels for fraction in (0.2, 0.6))
    np.testing.assert_array_equal(more[less >= 0], less[less >= 0])


def test_label_noise_touches_the_training_labels_only():
    clean = many_labels()
    original = clean.train_labels.copy()
    noisy = with_label_noise(clean, 0.7, seed=0)
    np.testing.assert_array_equal(clean.train_labels, original)
    assert (noisy.train_labels != original).any()
    assert noisy.train_images is clean.train_images
    assert noisy[2:] == clean[2:]


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_label_noise_outside_the_unit_interval_is_refused_before_anything_is_loaded(fraction):
    with pytest.raises(ValueError, match=f"label_noise={fraction}: must be a fraction between 0 and 1"):
        load("no_such_set", label_noise=fraction)


@pytest.mark.parametrize("seed", [-1, None, 0.5, "1", True])
def test_what_is_no_seed_is_refused(unchecked, seed):
    with pytest.raises(ValueError, match=f"seed={seed!r}: must be a non-negative integer"):
        load("digits", seed=seed)


@pytest.mark.parametrize("fraction", [None, "0.1", [0.1, 0.2]])
def test_what_is_no_fraction_is_refused(unchecked, fraction):
    with pytest.raises(ValueError, match=r"label_noise=.*: must be a fraction between 0 and 1"):
        load("digits", label_noise=fraction)


def test_bfloat16_images_are_floating():
    levels = np.tile(np.array([0.0, 0.5, 1.0, 0.25], jnp.bfloat16), 12).reshape(12, 2, 2, 1)
    dataset = from_arrays(**arrays(images=levels, test_images=levels[:5]))
    assert dataset.train_images[0].ravel().tolist() == [0, 128, 255, 64]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_set_is_valid_and_the_same_every_time(name):
    first, again = load(name), load(name)
    validate(first)
    assert first.name == name
    assert min(len(first.train_labels), len(first.test_labels)) >= 100
    assert set(np.unique(first.train_labels)) == set(range(first.num_classes))
    for one, other in zip(first[:4], again[:4], strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_new_built_in_set_is_one_row(monkeypatch, tmp_path):
    monkeypatch.setitem(BUILT_IN, "noise", lambda: from_arrays(**arrays(), name="noise"))
    assert load("noise").num_classes == 3
    with pytest.raises(ValueError, match="name='noise': is ready on every machine and needs no preparation"):
        prepare("noise")
    with pytest.raises(ValueError, match=r"Did you mean 'noise'.* Ready on this machine: .*noise; any other"):
        load("noisy", tmp_path)


def test_digits_are_all_of_scikit_learns_and_their_levels_recoverable():
    from sklearn.datasets import load_digits

    dataset, embedded = load("digits"), load_digits()
    images = np.concatenate([dataset.train_images, dataset.test_images])
    levels = np.rint(images[..., 0] * (16 / 255))
    rows = {(image.tobytes(), int(label)) for image, label in zip(embedded.images, embedded.target)}
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    assert {(image.tobytes(), int(label)) for image, label in zip(levels, labels)} == rows
    assert images.max() == 255
    assert (len(dataset.train_labels), len(dataset.test_labels)) == (1437, 360)


def test_digits_split_is_stratified_disjoint_and_the_same_every_time():
    dataset = load("digits")
    train, test = (np.bincount(labels, minlength=10) for labels in (dataset.train_labels, dataset.test_labels))
    assert np.abs(test - (train + test) / 5).max() < 1
    assert not {image.tobytes() for image in dataset.train_images} & {image.tobytes() for image in dataset.test_images}
    np.testing.assert_array_equal(dataset.train_images, load("digits", seed=7).train_images)
