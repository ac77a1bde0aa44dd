"""CIFAR-10 and CIFAR-100 from their authors' archives into the layout of TensorFlow Datasets, without TensorFlow.

TFDS's own builders encode images as PNG through TensorFlow, a dependency of half a gigabyte for this one call.
The builders here differ from them in the encoder only: same features, example ids, order and file layout, so that
`tfds.data_source("cifar10")` reads the result.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from lopjax.data.downloads import check_file, download
from lopjax.data.tfds_source import import_tfds

# The red, green and blue planes of 32 rows of 32 pixels, after one byte per label.
IMAGE_BYTES = 3 * 32 * 32
NOTE = " (the 'binary version', not the Python or Matlab one)"


class Archive(NamedTuple):
    """What an archive in CIFAR's binary format must contain.

    Attributes:
        url: address at which it is published.
        num_bytes: size of the compressed file.
        sha256: SHA-256 of the compressed file, in hexadecimal.
        records_per_file: number of test images; all training files of a set together have five times as many.
    """

    url: str
    num_bytes: int
    sha256: str
    records_per_file: int


class Layout(NamedTuple):
    """The files in an archive.

    Attributes:
        builder: name of TFDS's builder.
        folder: folder of all files.
        train: training files.
        test: the test file.
        labels: for every label byte of a record, in order, TFDS's feature and the file of its class names.
    """

    builder: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: tuple[tuple[str, str], ...]


# Sizes and checksums: url_checksums of tensorflow-datasets 4.9.10.
CIFAR10 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    num_bytes=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    records_per_file=10_000,
)
CIFAR100 = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    num_bytes=168_513_733,
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    records_per_file=10_000,
)
LAYOUTS = {
    "cifar10": Layout(
        "Cifar10",
        "cifar-10-batches-bin",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        (("label", "batches.meta.txt"),),
    ),
    "cifar100": Layout(
        "Cifar100",
        "cifar-100-binary",
        ("train.bin",),
        "test.bin",
        (("coarse_label", "coarse_label_names.txt"), ("label", "fine_label_names.txt")),
    ),
}


class Contents(NamedTuple):
    """An archive in memory: records of label bytes and image planes, and class names by feature."""

    train: UInt8[np.ndarray, "train record"]
    test: UInt8[np.ndarray, "test record"]
    class_names: dict[str, tuple[str, ...]]


def prepare_cifar10(data_dir: Path, archive: Path | None = None, expected: Archive = CIFAR10) -> Path:
    """Write CIFAR-10 as array_record files under `data_dir`; see `prepare_cifar`."""
    return prepare_cifar("cifar10", data_dir, archive, expected)


def prepare_cifar100(data_dir: Path, archive: Path | None = None, expected: Archive = CIFAR100) -> Path:
    """Write CIFAR-100 as array_record files under `data_dir`; see `prepare_cifar`."""
    return prepare_cifar("cifar100", data_dir, archive, expected)


def prepare_cifar(name: str, data_dir: Path, archive: Path | None, expected: Archive) -> Path:
    """Write a set as array_record files under `data_dir`.

    Args:
        name: "cifar10" or "cifar100".
        data_dir: TFDS data directory; created if absent.
        archive: the authors' archive of the binary version; downloaded to `data_dir/downloads` if not given.
        expected: the expected archive.

    Returns:
        The folder of the prepared set.

    Raises:
        FileNotFoundError: `archive` does not exist.
        ConnectionError: the download fails; the message says how to continue without a network.
        ValueError: the archive is not the expected one.
    """
    if archive is None:
        archive = download(expected, data_dir / "downloads")
    else:
        check_file(archive, expected, NOTE)
    layout = LAYOUTS[name]
    return write_prepared(read_archive(archive, layout, expected.records_per_file), layout, data_dir)


def read_archive(path: Path, layout: Layout, records_per_file: int) -> Contents:
    """Reads the binary files and the class names, in memory: nothing is extracted.

    Raises:
        ValueError: a file is missing, has another size, or has a label without a name.
    """
    with tarfile.open(path) as tar:

        def read(name: str) -> bytes:
            try:
                member = tar.extractfile(f"{layout.folder}/{name}")
            except KeyError:
                member = None
            if member is None:
                raise ValueError(f"archive={path}: has no file {layout.folder}/{name}")
            return member.read()

        class_names = {feature: tuple(read(file).decode().split()) for feature, file in layout.labels}
        num_classes = [len(class_names[feature]) for feature, _ in layout.labels]
        num_train = 5 * records_per_file // len(layout.train)
        files = [*((name, num_train) for name in layout.train), (layout.test, records_per_file)]
        batches = [_to_records(name, read(name), count, num_classes) for name, count in files]
    return Contents(np.concatenate(batches[:-1]), batches[-1], class_names)


def write_prepared(contents: Contents, layout: Layout, data_dir: Path) -> Path:
    """Runs TFDS's own preparation on images in memory; returns the folder that it made."""
    tfds = import_tfds()
    from PIL import Image
    from tensorflow_datasets.image_classification import cifar as stock

    stock_builder: Any = getattr(stock, layout.builder)
    num_labels = len(layout.labels)

    class Encoded(stock_builder, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        """TFDS's set, encoded by Pillow."""

        # The registry already has TFDS's own under this name.
        name = layout.builder.lower()

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
            features: Any = self.info.features
            for feature, names in contents.class_names.items():
                features[feature].names = names
            return {
                "train": self._generate_examples("train_", contents.train),
                "test": self._generate_examples("test_", contents.test),
            }

        def _generate_examples(self, split_prefix: str, records: np.ndarray) -> Iterator[tuple[int, dict]]:
            # The key determines the order on disk.
            for key, record in enumerate(records):
                image = Image.fromarray(record[num_labels:].reshape(3, 32, 32).transpose(1, 2, 0).copy())
                labels = {feature: int(label) for (feature, _), label in zip(layout.labels, record)}
                yield key, {"id": f"{split_prefix}{key:05d}", "image": image, **labels}

    builder = Encoded(data_dir=os.fspath(data_dir), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Path(builder.data_dir)


def _to_records(
    name: str, content: bytes, expected: int, num_classes: list[int]
) -> UInt8[np.ndarray, "records record"]:
    size = len(num_classes) + IMAGE_BYTES
    if len(content) != expected * size:
        raise ValueError(f"{name}: {len(content)} bytes; must be {expected} records of {size} bytes")
    records = np.frombuffer(content, np.uint8).reshape(expected, size)
    for labels, num in zip(records.T, num_classes):
        if (largest := int(labels.max())) >= num:
            raise ValueError(f"{name}: label {largest}; must lie in 0..{num - 1}")
    return records
