"""Image classification sets prepared by TensorFlow Datasets (TFDS), read without TensorFlow and without a network.

A prepared set is a folder `<data_dir>/<name>[/<config>]/<version>` of array_record files. Only such folders are
read: nothing here starts a download, because without a network TFDS retries for minutes before it gives up.
"""

import difflib
import hashlib
import json
import os
import re
import shlex
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lopjax.data.built_in import BUILT_IN
from lopjax.data.cache import Arrays, load_or_build, user_cache_folder
from lopjax.data.dataset import Dataset, from_arrays
from lopjax.data.decoding import decode_split

_NAME = re.compile(r"(?P<set>[a-z0-9_]+)(/(?P<config>[\w.+-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_CACHE_FORMAT = b"2"
# A path with a scheme, "gs://bucket/folder", also in pathlib's form, "gs:/bucket/folder"; not a drive letter.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/.*")


def load_tfds(name: str, data_dir: str | os.PathLike | None, cache_dir: str | os.PathLike | None) -> Dataset:
    """A set that has been prepared on this machine; see `lopjax.data.load` for the arguments.

    Raises:
        FileNotFoundError: the set exists but is not prepared here; the message has the command that prepares it.
        ValueError: no set has that name, or it does not consist of images of one size with one label each.
    """
    root = resolve_data_dir(data_dir)
    folder = find_prepared(name, root)
    if folder is None:
        raise _not_found(name, root)
    folders = (
        [_local("cache_dir", cache_dir)] if cache_dir is not None else [root / "lopjax_cache", user_cache_folder()]
    )
    relative = "-".join(folder.relative_to(root).parts)
    arrays = load_or_build(f"{relative}-{_fingerprint(folder)}.npz", folders, lambda: decode(folder))
    arrays = without_unused_classes(arrays, name)
    return from_arrays(
        arrays["train_images"],
        arrays["train_labels"],
        arrays["test_images"],
        arrays["test_labels"],
        num_classes=int(arrays["num_classes"]),
        name=name,
        channels_first=False,
    )


def resolve_data_dir(data_dir: str | os.PathLike | None) -> Path:
    """The argument, else the environment variable `TFDS_DATA_DIR`, else TFDS's own `~/tensorflow_datasets`.

    Raises:
        ValueError: a bucket or another URL.
    """
    if data_dir:
        return _local("data_dir", data_dir)
    return _local("TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def _local(field: str, folder: str | os.PathLike) -> Path:
    if _URL.fullmatch(os.fspath(folder)):
        raise ValueError(
            f"{field}={os.fspath(folder)!r}: only local folders can be read; copy the prepared set (the folder "
            "<name>/<version>) to one and pass that"
        )
    return Path(folder).expanduser()


def find_prepared(name: str, data_dir: Path) -> Path | None:
    """The folder of the newest prepared version, or of the version given; None if there is none.

    Args:
        name: `set`, `set/config`, `set:1.2.3` or `set/config:1.2.3`.
        data_dir: the TFDS data directory.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        return None
    parent = data_dir / parts["set"] / (parts["config"] or "")
    # A preparation in progress has another name until it is complete.
    versions = [path.parent for path in parent.glob("*/dataset_info.json") if _VERSION.fullmatch(path.parent.name)]
    if parts["version"] is not None:
        versions = [path for path in versions if path.name == parts["version"]]
    return max(versions, key=lambda path: [int(number) for number in path.name.split(".")], default=None)


def prepared_names(data_dir: Path) -> list[str]:
    """Names of the sets that `find_prepared` finds under `data_dir`, with their configs."""
    folders = [path.parent for depth in ("*/*", "*/*/*") for path in data_dir.glob(f"{depth}/dataset_info.json")]
    return sorted({str(path.parent.relative_to(data_dir)) for path in folders if _VERSION.fullmatch(path.name)})


def prepare_command(name: str, data_dir: Path) -> str:
    """The command line that prepares the set under `data_dir`."""
    return f"python -m lopjax.data prepare {shlex.quote(name)} --data-dir {shlex.quote(str(data_dir))}"


def import_tfds() -> ModuleType:
    """TFDS, imported when first needed because it takes half a second.

    Raises:
        ImportError: it is not installed; the message has the command that installs it.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            f'Reading prepared data sets needs TensorFlow Datasets ({error}): pip install "lopjax[experiments]"'
        ) from error
    return tensorflow_datasets


def decode(folder: Path) -> Arrays:
    """Decodes every image of a prepared set.

    The test set is the split "test" or, in sets without one (or with a hidden one), "validation". A test split is
    hidden if all its labels are negative: TFDS writes -1 if labels are not public.

    Args:
        folder: result of `find_prepared`.

    Returns:
        `train_images`, `train_labels`, `test_images`, `test_labels` and `num_classes` (a scalar).

    Raises:
        ValueError: the files need TensorFlow, the set does not consist of images with one label each, it lacks a
            necessary split, or an image cannot be decoded; the message names split and record.
    """
    if (file_format := json.loads((folder / "dataset_info.json").read_text()).get("fileFormat")) != "array_record":
        raise ValueError(
            f"{folder} is in the format {file_format}, which needs TensorFlow to read; prepare the set again under "
            "another --data-dir, as array_record: python -m lopjax.data prepare NAME --data-dir DIR"
        )
    tfds = import_tfds()
    builder = tfds.builder_from_directory(folder)
    image_key, label_key = _image_and_label_keys(tfds, builder)
    arrays: dict[str, np.ndarray] = {"num_classes": np.asarray(builder.info.features[label_key].num_classes)}

    def source_of(split: str) -> Any:
        return builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})

    test_split = _test_split(builder, lambda split: _labels_are_hidden(source_of(split), label_key))
    for role, split in (("train", "train"), ("test", test_split)):
        channels = builder.info.features[image_key].shape[-1]
        what = f"name={builder.name!r}, split {split!r}"
        images, labels = decode_split(source_of(split), image_key, label_key, channels, what)
        arrays |= {f"{role}_images": images, f"{role}_labels": labels}
    return arrays


def without_unused_classes(arrays: Arrays, name: str) -> Arrays:
    """The same set with labels renumbered from 0 without gaps, if it declares classes without training images.

    "emnist/letters" declares 37 classes and has images of 26, labelled 1..26. A warning describes the renumbering.

    Raises:
        ValueError: a class that only test images have.
    """
    train, test, declared = arrays["train_labels"], arrays["test_labels"], int(arrays["num_classes"])
    used = np.unique(train)
    if len(used) == declared or used[0] < 0 or used[-1] >= declared:
        return arrays  # nothing to do, or nothing that renumbering would fix
    if only_test := sorted(set(np.unique(test).tolist()) - set(used.tolist())):
        raise ValueError(f"name={name!r}: class {only_test[0]} has test images but no training images")
    warnings.warn(
        f"name={name!r} declares {declared} classes and has training images of {len(used)}: its labels {used[0]}.."
        f"{used[-1]} are renumbered to 0..{len(used) - 1}, in order",
        stacklevel=4,
    )
    renumbered = {f"{role}_labels": np.searchsorted(used, arrays[f"{role}_labels"]) for role in ("train", "test")}
    return {**arrays, **renumbered, "num_classes": np.asarray(len(used))}


def _labels_are_hidden(source: Any, label_key: str) -> bool:
    """Whether the first labels are all negative; checked before a million images are decoded in vain."""
    return all(record[label_key] < 0 for record in source.__getitems__(range(min(len(source), 512))))


def _test_split(builder: Any, is_hidden: Callable[[str], bool]) -> str:
    splits: Sequence[str] = list(builder.info.splits)
    candidates = [split for split in ("test", "validation") if split in splits]
    if "train" not in splits or not candidates:
        raise ValueError(f"name={builder.name!r}: splits {splits}; 'train' and 'test' or 'validation' are needed")
    public = [split for split in candidates if not is_hidden(split)]
    if not public:
        raise ValueError(f"name={builder.name!r}: the labels of {candidates} are hidden (all -1); nothing to test with")
    return public[0]


def _image_and_label_keys(tfds: ModuleType, builder: Any) -> tuple[str, str]:
    keys, features = builder.info.supervised_keys, builder.info.features
    if (
        isinstance(keys, tuple)
        and len(keys) == 2
        and isinstance(features[keys[0]], tfds.features.Image)
        and features[keys[0]].np_dtype == np.uint8
        and isinstance(features[keys[1]], tfds.features.ClassLabel)
    ):
        return keys
    raise ValueError(
        f"name={builder.name!r}: not an image classification set (supervised keys {keys}); one 8-bit image and one "
        "class label per record are needed"
    )


def _fingerprint(folder: Path) -> str:
    """A fingerprint that changes whenever the set is prepared anew, found without reading its images."""
    digest = hashlib.sha256(_CACHE_FORMAT)
    for path in sorted(folder.iterdir()):
        digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _not_found(name: str, data_dir: Path) -> Exception:
    there = prepared_names(data_dir)
    ready = [*BUILT_IN, *there]
    # TFDS knows its sets by name without a network, but not those with a builder in this library.
    known = [*import_tfds().list_builders(with_community_datasets=False), "tiny_imagenet"]
    parts = _NAME.fullmatch(name)
    if parts is None or (parts["set"] not in known and not (data_dir / parts["set"]).is_dir()):
        close = difflib.get_close_matches(name, {*ready, *known}, n=3)
        suggestion = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        return ValueError(
            f"name={name!r}: unknown data set.{suggestion} Ready on this machine: {', '.join(ready)}; any other "
            "image classification set of TensorFlow Datasets can be prepared."
        )
    return FileNotFoundError(
        f"name={name!r}: not prepared under {data_dir} (there: {', '.join(there) or 'nothing'}). "
        f"To download and prepare it, once: {prepare_command(name, data_dir)}\n"
        "If it is prepared elsewhere, pass data_dir or set TFDS_DATA_DIR."
    )
