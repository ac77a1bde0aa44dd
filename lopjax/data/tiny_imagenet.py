"""Tiny ImageNet from its authors' archive into the layout of TensorFlow Datasets, without TensorFlow.

TFDS has no builder for this set. The one here keeps the JPEG files unchanged (grey ones become RGB PNG files with the
same pixels), so that `lopjax.data.load("tiny_imagenet")` and `tfds.data_source("tiny_imagenet")` read them. Classes are
the WordNet ids in alphabetical order. The archive's unlabelled test images are left out: the test set of `load` is the
validation set.
"""

import io
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lopjax.data.decoding import decode_image
from lopjax.data.downloads import File, Published, check_file, download, sha256_of
from lopjax.data.tfds_source import import_tfds

OFFICIAL = File(
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    num_bytes=248_100_043,
    sha256="6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
)
VERSION = "1.0.0"
SHAPE = (64, 64, 3)
# A file of 64 x 64 pixels has a few kilobytes: anything larger than this is not such an image.
LARGEST_BYTES = 1 << 20
_TRAIN = re.compile(r"(?P<root>[^/]+)/train/(?P<class_id>n\d{8})/images/(?P<file>[\w.-]+\.JPEG)")
_VALIDATION = re.compile(r"(?P<root>[^/]+)/val/images/(?P<file>[\w.-]+\.JPEG)")
_PICTURE = re.compile(r"[^/]+/(train|val)/.*\.(jpe?g|png)", re.IGNORECASE)


class Contents(NamedTuple):
    """The contents of an archive.

    Attributes:
        class_ids: WordNet ids, in alphabetical order: the position is the label.
        class_words: name of each class.
        train: `(member of the archive, label)` of every training image.
        validation: the same for the validation images.
        num_missing: number of images that the annotations name but the archive lacks.
    """

    class_ids: tuple[str, ...]
    class_words: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    validation: tuple[tuple[str, int], ...]
    num_missing: int


def prepare_tiny_imagenet(data_dir: Path, archive: Path | None = None, expected: Published = OFFICIAL) -> Path:
    """Writes Tiny ImageNet as array_record files under `data_dir`.

    An archive of a different size than the official one is treated as a subset: a warning and the prepared set's
    `metadata.json` describe its contents.

    Args:
        data_dir: TFDS data directory; created if absent.
        archive: `tiny-imagenet-200.zip` or a subset of it; the official one is downloaded to `data_dir/downloads` if
            not given.
        expected: the official archive.

    Returns:
        The folder of the prepared set.

    Raises:
        FileNotFoundError: `archive` does not exist.
        ConnectionError: the download fails; the message says how to continue.
        ValueError: not a zip archive, one of the
            official size with a different checksum, or one with invalid contents; the message names the member.
    """
    if archive is None:
        archive = download(expected, data_dir / "downloads")
    elif not archive.is_file() or archive.stat().st_size == expected.num_bytes:
        check_file(archive, expected)
    is_official = archive.stat().st_size == expected.num_bytes
    with _opened(archive) as file:
        contents = read_contents(file)
        counts = counts_of(contents)
        if not is_official:
            warnings.warn(f"archive={archive}: not {expected.url}, but a cut of it: {counts}", stacklevel=2)
        metadata = {**counts, "is_official": is_official, "sha256": sha256_of(archive)}
        return _write_prepared(contents, lambda member: read_image(file, member), metadata, data_dir)


def counts_of(contents: Contents) -> dict[str, Any]:
    """The number of images in total, of the smallest and of the largest class."""
    counts: dict[str, Any] = {"classes": len(contents.class_ids)}
    for split in ("train", "validation"):
        examples = getattr(contents, split)
        of_class = Counter(label for _, label in examples)
        sizes = [of_class[label] for label in range(len(contents.class_ids))]
        counts |= {f"{split}_images": len(examples), f"{split}_images_of_a_class": [min(sizes), max(sizes)]}
    return counts | {"annotated_images_missing": contents.num_missing}


def read_contents(file: zipfile.ZipFile) -> Contents:
    """The images and classes of an archive, without extracting or decoding anything.

    Raises:
        ValueError: a member outside the archive's own folder or repeated, a class without training images, an image
            or annotation without a class, an image that is not where images are, or two images or annotations of the
            same file name.
    """
    names = file.namelist()
    check_members(names)
    if lost := [
        name
        for name in names
        if _PICTURE.fullmatch(name) and not (_TRAIN.fullmatch(name) or _VALIDATION.fullmatch(name))
    ]:
        raise ValueError(f"{lost[0]}: must be train/<WordNet id>/images/<name>.JPEG or val/images/<name>.JPEG")
    root = names[0].split("/")[0] if names else ""
    class_ids = tuple(sorted(_text(file, f"{root}/wnids.txt").split()))
    if len(set(class_ids)) < max(len(class_ids), 2):
        raise ValueError(f"{root}/wnids.txt: {len(class_ids)} classes; must be different ones, at least 2")
    labels = {class_id: label for label, class_id in enumerate(class_ids)}
    words = dict(line.split("\t", 1) for line in _text(file, f"{root}/words.txt").splitlines() if "\t" in line)
    found = [match for name in names if (match := _TRAIN.fullmatch(name))]
    _check_distinct([match["file"] for match in found], f"{root}/train")
    train = [(match[0], match["class_id"]) for match in found]
    annotated = _annotations(_text(file, f"{root}/val/val_annotations.txt"))
    members = {match["file"]: match[0] for name in names if (match := _VALIDATION.fullmatch(name))}
    if nameless := sorted(set(members) - set(annotated)):
        raise ValueError(f"{root}/val: {len(nameless)} images are not in val_annotations.txt, {nameless[0]} first")
    validation = [(members[name], class_id) for name, class_id in annotated.items() if name in members]
    contents = Contents(
        class_ids,
        tuple(words.get(class_id, class_id) for class_id in class_ids),
        tuple((member, _label(labels, class_id, member)) for member, class_id in train),
        tuple((member, _label(labels, class_id, member)) for member, class_id in validation),
        len(annotated) - len(validation),
    )
    _check_classes(contents)
    return contents


def check_members(names: Sequence[str]) -> None:
    """Refuse an archive with members that would be outside its folder, or two members of the same name.

    Raises:
        ValueError: there is such a member; the message names it.
    """
    root = names[0].split("/")[0] if names else ""
    for name in names:
        if "\\" in name or ".." in name.split("/") or name.split("/")[0] != root or not root:
            raise ValueError(f"member {name!r}: must lie in the archive's own folder, {root!r}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"member {twice[0]!r}: is in the archive twice")


def read_image(file: zipfile.ZipFile, member: str) -> bytes:
    """One encoded image: the file itself or, if it is grey, an RGB PNG with the same pixels.

    Raises:
        ValueError: it is damaged, truncated or of another size; the message names the member.
    """
    if (size := file.getinfo(member).file_size) > LARGEST_BYTES:
        raise ValueError(f"{member}: {size:,} bytes; an image of {SHAPE[0]} x {SHAPE[1]} has less than 1 MB")
    try:
        encoded = file.read(member)
        pixels = decode_image(encoded, SHAPE[2])
        is_colour = _mode(encoded) == "RGB"
    except Exception as error:
        # On damaged files Pillow raises OSError, SyntaxError, ValueError, struct.error and others.
        raise ValueError(f"{member}: the image cannot be decoded ({error}); get the archive again") from error
    if pixels.shape != SHAPE:
        raise ValueError(f"{member}: shape {pixels.shape}; must be {SHAPE}")
    return encoded if is_colour else _as_png(pixels)


def _write_prepared(
    contents: Contents, read: Callable[[str], bytes], metadata: Mapping[str, Any], data_dir: Path
) -> Path:
    """Runs TFDS's own preparation on the images of an archive; returns the folder that it made."""
    tfds: Any = import_tfds()

    class TinyImagenet(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]
        """Tiny ImageNet; the name of the class is the name of the data set."""

        VERSION = tfds.core.Version(VERSION)

        def _info(self) -> Any:
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=SHAPE),
                "label": tfds.features.ClassLabel(names=contents.class_ids),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description="Tiny ImageNet: 64x64 colour images of 200 classes of ImageNet.",
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("image", "label"),
                homepage="http://cs231n.stanford.edu",
                metadata=tfds.core.MetadataDict({**metadata, "words": list(contents.class_words)}),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
            return {split: self._generate_examples(getattr(contents, split)) for split in ("train", "validation")}

        def _generate_examples(self, examples: Sequence[tuple[str, int]]) -> Iterator[tuple[str, dict]]:
            for member, label in examples:
                name = member.rpartition("/")[2]
                yield name, {"id": name, "image": read(member), "label": label}

    builder = TinyImagenet(data_dir=os.fspath(data_dir), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Path(builder.data_dir)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"archive={path}: {error}; another file, or an incomplete download") from error


def _text(file: zipfile.ZipFile, member: str) -> str:
    try:
        return file.read(member).decode()
    except KeyError:
        raise ValueError(f"archive={file.filename}: has no file {member}") from None
    except Exception as error:
        # A damaged or encrypted member raises BadZipFile, zlib.error, RuntimeError, UnicodeDecodeError and others.
        raise ValueError(
            f"archive={file.filename}: {member} cannot be read ({error}); get the archive again"
        ) from error


def _annotations(text: str) -> dict[str, str]:
    """Class of every validation image: the first two columns; the others are the corners of a box."""
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    if bad := [row for row in rows if len(row) < 2]:
        raise ValueError(f"val_annotations.txt: line {bad[0]}; must be a file and its class, separated by a tab")
    _check_distinct([row[0] for row in rows], "val_annotations.txt")
    return {row[0]: row[1] for row in rows}


def _check_distinct(files: Sequence[str], where: str) -> None:
    """The file name is the image's key in the prepared set, and the annotation's."""
    if twice := [file for file, count in Counter(files).items() if count > 1]:
        raise ValueError(f"{where}: {twice[0]} is there twice; every image must have a name of its own")


def _label(labels: Mapping[str, int], class_id: str, member: str) -> int:
    if class_id not in labels:
        raise ValueError(f"{member}: class {class_id!r}; must be one of the {len(labels)} in wnids.txt")
    return labels[class_id]


def _check_classes(contents: Contents) -> None:
    for split in ("train", "validation"):
        used = {label for _, label in getattr(contents, split)}
        if missing := [name for label, name in enumerate(contents.class_ids) if label not in used]:
            raise ValueError(
                f"{split}: {len(missing)} of {len(contents.class_ids)} classes have no images, {missing[0]} first"
            )


def _mode(encoded: bytes) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        return image.mode


def _as_png(pixels: Any) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return buffer.getvalue()
