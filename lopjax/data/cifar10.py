"""CIFAR-10 from its authors' archive into the layout of TensorFlow Datasets, without TensorFlow.

TFDS's own builder encodes images as PNG through TensorFlow, a dependency of half a gigabyte for this one call.
The builder here differs from it in the encoder only: same features, example ids, order and file layout, so that
`tfds.data_source("cifar10")` reads the result.
"""

import hashlib
import http.client
import os
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from lopjax.data.tfds_source import import_tfds

# One label, then the red, green and blue planes of 32 rows of 32 pixels.
RECORD_BYTES = 1 + 3 * 32 * 32
TIMEOUT_SECONDS = 30


class Archive(NamedTuple):
    """What an archive in CIFAR-10's binary format must contain.

    Attributes:
        url: where it is published.
        num_bytes: size of the compressed file.
        sha256: of the compressed file, hexadecimal.
        records_per_file: images in each of `data_batch_1.bin` to `data_batch_5.bin` and in `test_batch.bin`.
    """

    url: str
    num_bytes: int
    sha256: str
    records_per_file: int


# Size and checksum: url_checksums/cifar10.txt of tensorflow-datasets 4.9.10.
OFFICIAL = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    num_bytes=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    records_per_file=10_000,
)


class Contents(NamedTuple):
    """An archive in memory: a record is a label byte and the image planes; `class_names` in label order."""

    train: UInt8[np.ndarray, "train record"]
    test: UInt8[np.ndarray, "test record"]
    class_names: tuple[str, ...]


def prepare_cifar10(data_dir: Path, archive: Path | None = None, expected: Archive = OFFICIAL) -> Path:
    """Writes CIFAR-10 as array_record files under `data_dir`.

    Args:
        data_dir: TFDS data directory; created if absent.
        archive: the authors' `cifar-10-binary.tar.gz`; downloaded to `data_dir/downloads` if not given.
        expected: what the archive is checked against.

    Returns:
        The folder of the prepared set.

    Raises:
        FileNotFoundError: if `archive` does not exist.
        ConnectionError: if the download fails; the message says how to go on without a network.
        ValueError: if the archive is not the expected one.
    """
    if archive is None:
        archive = download(expected, data_dir / "downloads")
    else:
        check_archive(archive, expected)
    return write_prepared(read_archive(archive, expected.records_per_file), data_dir)


def check_archive(path: Path, expected: Archive) -> None:
    """Raises unless the file at `path` has the expected size and checksum."""
    if not path.is_file():
        raise FileNotFoundError(f"archive={path}: no such file; it is published at {expected.url}")
    if (size := path.stat().st_size) != expected.num_bytes:
        raise ValueError(
            f"archive={path}: {size:,} bytes instead of {expected.num_bytes:,}; not {expected.url} (the 'binary "
            "version', not the Python or Matlab one), or an incomplete download"
        )
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    if checksum != expected.sha256:
        raise ValueError(
            f"archive={path}: SHA-256 {checksum} instead of {expected.sha256}; delete it and download it again"
        )


def download(expected: Archive, folder: Path) -> Path:
    """Fetches the archive into `folder`, once; a file that is already there and intact is used as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / expected.url.rpartition("/")[2]
    if path.is_file() and path.stat().st_size == expected.num_bytes:
        check_archive(path, expected)
        return path
    # Renamed when complete and verified, so that an interrupted download is not mistaken for the archive.
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
    try:
        _fetch(expected.url, temporary)
        check_archive(temporary, expected)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_archive(path: Path, records_per_file: int) -> Contents:
    """Reads the six binary files and the class names, in memory: nothing is extracted.

    Raises:
        ValueError: if a file is missing, has another size, or has a label without a name.
    """
    with tarfile.open(path) as tar:

        def read(name: str) -> bytes:
            try:
                member = tar.extractfile(f"cifar-10-batches-bin/{name}")
            except KeyError:
                member = None
            if member is None:
                raise ValueError(f"archive={path}: has no file cifar-10-batches-bin/{name}")
            return member.read()

        class_names = tuple(read("batches.meta.txt").decode().split())
        batches = [
            _to_records(name, read(name), records_per_file, len(class_names))
            for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
        ]
    return Contents(np.concatenate(batches[:-1]), batches[-1], class_names)


def write_prepared(contents: Contents, data_dir: Path) -> Path:
    """Runs TFDS's own preparation on images already in memory; returns the folder it made."""
    tfds = import_tfds()
    from PIL import Image
    from tensorflow_datasets.image_classification.cifar import Cifar10 as StockCifar10

    # The name of the class is the name of the data set; the registry already has TFDS's own under it.
    class Cifar10(StockCifar10, skip_registration=True):
        """CIFAR-10, encoded by Pillow."""

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
            features: Any = self.info.features
            features["label"].names = contents.class_names
            return {
                "train": self._generate_examples("train_", contents.train),
                "test": self._generate_examples("test_", contents.test),
            }

        def _generate_examples(self, split_prefix: str, records: np.ndarray) -> Iterator[tuple[int, dict]]:
            # The key decides the order on disk.
            for key, record in enumerate(records):
                image = Image.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0).copy())
                yield key, {"id": f"{split_prefix}{key:05d}", "label": int(record[0]), "image": image}

    builder = Cifar10(data_dir=os.fspath(data_dir), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Path(builder.data_dir)


def _fetch(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, path.open("wb") as file:
            while block := response.read(1 << 20):
                file.write(block)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"{url} could not be downloaded ({error}). Without a network: fetch the file on another machine, copy it "
            "here and add --archive FILE to the command."
        ) from error


def _to_records(name: str, content: bytes, expected: int, num_classes: int) -> UInt8[np.ndarray, "records record"]:
    if len(content) != expected * RECORD_BYTES:
        raise ValueError(f"{name}: {len(content)} bytes; must be {expected} records of {RECORD_BYTES} bytes")
    records = np.frombuffer(content, np.uint8).reshape(expected, RECORD_BYTES)
    if (largest := int(records[:, 0].max())) >= num_classes:
        raise ValueError(f"{name}: label {largest}; must lie in 0..{num_classes - 1}")
    return records
