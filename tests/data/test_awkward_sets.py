"""Sets as they come: labels with gaps, hidden labels, 16-bit and damaged images, folders that are none."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from lopjax.data import load
from lopjax.data.decoding import decode_image
from lopjax.data.prepare import prepare
from lopjax.data.tfds_source import resolve_data_dir

RANDOM = np.random.default_rng(0)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def grey() -> bytes:
    return encoded(RANDOM.integers(0, 256, (8, 8), dtype=np.uint8))


def jpeg(cut: int | None = None) -> bytes:
    return encoded(RANDOM.integers(0, 256, (16, 16, 3), dtype=np.uint8), "JPEG")[:cut]


def write_set(folder: Path, name: str, shape: tuple, classes: int, splits: dict) -> None:
    """A set of TFDS as array_record, from {split: [(encoded image, label)]}."""

    def info(self):
        features = {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(num_classes=classes)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def generate(records):
        for index, (image, label) in enumerate(records):
            yield index, {"image": io.BytesIO(image), "label": label}

    fields = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, manager: {split: generate(records) for split, records in splits.items()},
        "_generate_examples": lambda self: None,
        "__module__": __name__,
    }
    builder = type(name, (tfds.core.GeneratorBasedBuilder,), fields, skip_registration=True)
    builder(data_dir=str(folder), file_format="array_record").download_and_prepare()


@pytest.fixture
def loaded(tmp_path):
    """Writes a set and loads it."""

    def write_and_load(name: str, shape: tuple, classes: int, splits: dict):
        write_set(tmp_path, name, shape, classes, splits)
        folder = next(path.name for path in tmp_path.iterdir() if path.name.replace("_", "") == name.lower())
        return load(folder, data_dir=tmp_path, cache_dir=tmp_path / "cache")

    return write_and_load


def test_declared_classes_without_images_are_dropped_and_the_others_renumbered(loaded):
    """As emnist/letters: 37 classes declared, images of 26, labelled from 1."""
    images = {1 + label: grey() for label in range(26)}
    with pytest.warns(
        UserWarning, match=r"declares 37 classes and has .* of 26: its labels 1..26 are renumbered to 0..25"
    ):
        dataset = loaded(
            "Letters",
            (8, 8, 1),
            37,
            {split: [(image, label) for label, image in images.items()] for split in ("train", "test")},
        )
    assert dataset.num_classes == 26
    found = {image.tobytes(): int(label) for image, label in zip(dataset.test_images, dataset.test_labels)}
    assert found == {decode_image(image, 1).tobytes(): label - 1 for label, image in images.items()}


def test_a_class_of_the_test_set_alone_is_refused(loaded):
    with pytest.raises(ValueError, match="class 3 has test images but no training images"):
        loaded("Gap", (8, 8, 1), 4, {"train": [(grey(), i % 3) for i in range(6)], "test": [(grey(), 3)]})


def test_hidden_test_labels_send_to_the_validation_split(loaded):
    splits = {"train": [(grey(), i % 4) for i in range(8)], "test": [(grey(), -1) for _ in range(3)]}
    validation = [(grey(), i % 4) for i in range(5)]
    dataset = loaded("Hidden", (8, 8, 1), 4, {**splits, "validation": validation})
    assert sorted(dataset.test_labels.tolist()) == [0, 0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"the labels of \['test'\] are hidden \(all -1\); nothing to test with"):
        loaded("AllHidden", (8, 8, 1), 4, splits)


def test_a_public_test_split_goes_before_validation_although_one_label_is_missing(loaded):
    train = [(grey(), i % 4) for i in range(8)]
    with pytest.raises(ValueError, match=r"test_labels: values from -1 to 2; must lie in 0..3"):
        loaded("Partly", (8, 8, 1), 4, {"train": train, "test": [(grey(), 2), (grey(), -1)], "validation": train})


def test_sixteen_bit_images_keep_their_upper_bits(loaded):
    ramp = (np.arange(64).reshape(8, 8) * 1040).astype(np.uint16)
    png = encoded(ramp)
    dataset = loaded("SixteenBit", (8, 8, 1), 2, {"train": [(png, i % 2) for i in range(4)], "test": [(png, 0)]})
    np.testing.assert_array_equal(dataset.train_images[0, :, :, 0], ramp >> 8)
    assert dataset.train_images[0, 0, :, 0].tolist() == [0, 4, 8, 12, 16, 20, 24, 28]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pixels_of_every_kind_of_image(channels):
    """16-bit grey, also as TIFF of either byte order; 8-bit grey and colours; one bit; a palette."""
    ramp = (np.arange(64).reshape(8, 8) * 1040).astype(np.uint16)
    eight = (ramp >> 8).astype(np.uint8)
    palette = io.BytesIO()
    Image.fromarray(eight).convert("P").save(palette, "PNG")
    for file in (encoded(ramp), encoded(ramp, "TIFF"), encoded(eight), palette.getvalue()):
        pixels = decode_image(file, channels)
        assert pixels.shape == (8, 8, channels)
        np.testing.assert_array_equal(pixels[..., 0], eight)
    bit = encoded(eight > 100)
    np.testing.assert_array_equal(decode_image(bit, channels)[..., 0], np.where(eight > 100, 255, 0))
    colours = np.stack([eight, eight[::-1], eight.T], axis=-1)
    np.testing.assert_array_equal(decode_image(encoded(colours), 3), colours)
    with pytest.raises(ValueError, match="pixels of mode 'F' have no fixed range"):
        decode_image(encoded(eight.astype(np.float32), "TIFF"), channels)


@pytest.mark.parametrize(("name", "damaged"), [("Truncated", jpeg(400)), ("Junk", b"no image"), ("Cut", grey()[:-30])])
def test_a_damaged_image_is_named(loaded, name, damaged):
    records = [(jpeg(), 0), (jpeg(), 1), (damaged, 1)]
    with pytest.raises(
        ValueError, match=f"name='{name.lower()}', split 'train', record [0-2]: the image cannot be dec"
    ):
        loaded(name, (16, 16, 3), 2, {"train": records, "test": [(jpeg(), 0)]})


def test_images_of_several_sizes_are_refused_with_the_record(loaded):
    records = [(jpeg(), 0), (jpeg(), 1), (encoded(np.zeros((4, 4, 3), np.uint8)), 1)]
    with pytest.raises(ValueError, match=r"name='sizes', split 'train', record [1-2]: sizes differ"):
        loaded("Sizes", (None, None, 3), 2, {"train": records, "test": [(jpeg(), 0)]})


def test_a_damaged_or_missing_file_is_named(loaded, tmp_path):
    splits = {"train": [(grey(), i % 2) for i in range(4)], "test": [(grey(), 0)]}
    loaded("Whole", (8, 8, 1), 2, splits)
    shutil.rmtree(tmp_path / "cache")
    file = next((tmp_path / "whole" / "1.0.0").glob("*train*"))
    content = bytearray(file.read_bytes())
    start = content.find(b"\x89PNG")
    content[start + 10 : start + 50] = bytes(40)
    file.write_bytes(content)
    with pytest.raises(ValueError, match="name='whole', split 'train'"):
        load("whole", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    file.unlink()
    with pytest.raises(ValueError, match="name='whole', split 'train'"):
        load("whole", data_dir=tmp_path, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("folder", ["gs://bucket/tfds", Path("gs://bucket/tfds"), "s3://bucket", "https://host/tfds"])
def test_a_bucket_is_no_folder(monkeypatch, folder):
    with pytest.raises(ValueError, match=r"data_dir='\w+:/.*': only local folders can be read; copy the prepared set"):
        load("mnist", data_dir=folder)
    with pytest.raises(ValueError, match=r"data_dir=.*only local folders can be read"):
        prepare("mnist", data_dir=folder)
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    with pytest.raises(ValueError, match=r"TFDS_DATA_DIR=.*only local folders can be read"):
        load("mnist")


def test_ordinary_folders_pass(monkeypatch, tmp_path):
    for folder in (tmp_path, "relative/folder", "~/x", "with:colon", "C:/tfds"):
        assert resolve_data_dir(folder) == Path(folder).expanduser()
