"""Makes data sets ready for `lopjax.data.load`: the only part of the library that may use a network."""

import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from lopjax.data.built_in import BUILT_IN
from lopjax.data.cifar import prepare_cifar10, prepare_cifar100
from lopjax.data.tfds_source import find_prepared, import_tfds, resolve_data_dir
from lopjax.data.tiny_imagenet import prepare_tiny_imagenet

OWN: dict[str, tuple[str, Callable[[Path, Path | None], Path]]] = {
    "cifar10": ("3.0.2", prepare_cifar10),
    "cifar100": ("3.0.2", prepare_cifar100),
    "tiny_imagenet": ("1.0.0", prepare_tiny_imagenet),
}
"""Sets with a builder in this library, which does not need TensorFlow: version and builder."""


def prepare(name: str, data_dir: str | os.PathLike | None = None, archive: str | os.PathLike | None = None) -> Path:
    """Downloads and prepares a set of TensorFlow Datasets as array_record files, unless it is already there.

    CIFAR-10, CIFAR-100 and Tiny ImageNet do not need TensorFlow; many other sets do, for preparation but not for
    reading.

    Args:
        name: `set`, `set/config`, with `:1.2.3` appended for a certain version.
        data_dir: TFDS data directory; by default `$TFDS_DATA_DIR`, then `~/tensorflow_datasets`.
        archive: for the first three sets, the authors' file (`cifar-10-binary.tar.gz`, `cifar-100-binary.tar.gz`,
            `tiny-imagenet-200.zip` or a subset of it), instead of a download.

    Returns:
        The folder of the prepared set.

    Raises:
        ValueError: the set needs no preparation or does not exist, or the archive is not the right one.
        ImportError: TFDS, or TensorFlow where the set's own builder uses it, is not installed.
        ConnectionError: a host that the set is downloaded from cannot be reached.
    """
    if name in BUILT_IN:
        raise ValueError(f"name={name!r}: is ready on every machine and needs no preparation")
    root = resolve_data_dir(data_dir)
    if (folder := find_prepared(name, root)) is not None:
        return folder
    for own, (version, builder) in OWN.items():
        if name in (own, f"{own}:{version}"):
            return builder(root, Path(archive) if archive is not None else None)
    if archive is not None:
        raise ValueError(f"archive={archive}: only for {', '.join(map(repr, OWN))}, not name={name!r}")
    return _prepare_with_tfds(name, root)


def _prepare_with_tfds(name: str, data_dir: Path) -> Path:
    tfds = import_tfds()
    try:
        builder = tfds.builder(name, data_dir=os.fspath(data_dir), file_format="array_record")
        _check_network(name, builder.url_infos or (), data_dir)
        builder.download_and_prepare()
    except ImportError as error:
        raise ImportError(
            f"name={name!r}: TFDS's builder of this set needs a package that is not installed ({error}). To prepare "
            "it, not to read it: pip install tensorflow, then run the command again; or prepare it on another machine "
            "and copy the folder."
        ) from error
    return Path(builder.data_dir)


def _check_network(name: str, urls: Iterable[str], data_dir: Path) -> None:
    """Fails immediately, where TFDS would retry for minutes, if a host that it has to download from has no address."""
    if any((data_dir / "downloads").rglob("*.INFO")):
        return  # TFDS has downloaded files here before; the needed one may be among them.
    for host in sorted({host for url in urls if (host := urlsplit(url).hostname)}):
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            raise ConnectionError(
                f"name={name!r}: {host}, where TFDS downloads this set from, cannot be reached ({error}). Prepare it "
                "on a machine with a network and copy the folder."
            ) from error
