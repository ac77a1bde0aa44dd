"""Tiny ImageNet: the round trip from an archive to arrays, and every archive that is refused."""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lopjax.data import load
from lopjax.data.__main__ import main
from lopjax.data.downloads import File
from lopjax.data.prepare import prepare
from lopjax.data.tiny_imagenet import OFFICIAL, prepare_tiny_imagenet

ROOT = "tiny-imagenet-200"
IDS = ("n00000003", "n00000001", "n00000002")  # not in alphabetical order, as in the official file
SHARED = Path(__file__).parents[3] / "shared" / "data" / "tiny-imagenet-200.zip"


def picture(seed: int, size: int = 64, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format="jpeg")
    return buffer.getvalue()


def members(train: int = 3, validation: int = 2) -> dict[str, bytes]:
    """An archive in the official layout; one grey image."""
    files = {"wnids.txt": "\n".join(IDS).encode(), "words.txt": b"n00000001\tfirst, one\nn00000009\tnone of these"}
    annotations = []
    for number, name in enumerate(IDS):
        files[f"train/{name}/{name}_boxes.txt"] = b"not read"
        for index in range(train):
            mode = "L" if (number, index) == (1, 0) else "RGB"
            files[f"train/{name}/images/{name}_{index}.JPEG"] = picture(100 * number + index, mode=mode)
        for index in range(validation):
            file = f"val_{validation * number + index}.JPEG"
            files[f"val/images/{file}"] = picture(100 * number + 50 + index)
            annotations.append(f"{file}\t{name}\t0\t0\t62\t62")
    files["val/val_annotations.txt"] = "\n".join(annotations).encode() + b"\n"
    files["test/images/test_0.JPEG"] = picture(999)
    return {f"{ROOT}/{name}": content for name, content in files.items()}


def write(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def described(path: Path) -> File:
    return File(path.as_uri(), path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def pixels(encoded: bytes) -> bytes:
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).tobytes()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_imagenet")
    archive = write(folder / "tiny-imagenet-200.zip", members())
    prepare_tiny_imagenet(folder / "tfds", archive, described(archive))
    return folder, archive


def test_round_trip_from_archive_to_arrays(tiny):
    dataset = load("tiny_imagenet", data_dir=tiny[0] / "tfds")
    assert (dataset.num_classes, dataset.train_images.shape, dataset.name) == (3, (9, 64, 64, 3), "tiny_imagenet")
    found = {(image.tobytes(), int(label)) for image, label in zip(dataset.train_images, dataset.train_labels)}
    files, order = members(), sorted(IDS)
    train = {
        (pixels(content), order.index(name.split("/")[2])) for name, content in files.items() if "/images/n" in name
    }
    assert found == train
    test = {(image.tobytes(), int(label)) for image, label in zip(dataset.test_images, dataset.test_labels)}
    lines = files[f"{ROOT}/val/val_annotations.txt"].decode().splitlines()
    named = dict(line.split("\t")[:2] for line in lines)
    assert test == {(pixels(files[f"{ROOT}/val/images/{file}"]), order.index(name)) for file, name in named.items()}
    assert not found & test  # the control


def test_tfds_reads_it_in_colour_and_the_counts_are_recorded(tiny):
    import tensorflow_datasets as tfds

    source = tfds.data_source("tiny_imagenet", data_dir=tiny[0] / "tfds", split="train", download=False)
    assert {record["image"].shape for record in source} == {(64, 64, 3)}
    folder = tiny[0] / "tfds" / "tiny_imagenet" / "1.0.0"
    recorded = json.loads((folder / "metadata.json").read_text())
    assert recorded == {
        "classes": 3,
        "train_images": 9,
        "train_images_of_a_class": [3, 3],
        "validation_images": 6,
        "validation_images_of_a_class": [2, 2],
        "annotated_images_missing": 0,
        "is_official": True,
        "sha256": described(tiny[1]).sha256,
        "words": ["first, one", "n00000002", "n00000003"],
    }


def test_a_cut_archive_is_accepted_and_says_so(tmp_path, capsys):
    files = members()
    del files[f"{ROOT}/train/{IDS[0]}/images/{IDS[0]}_1.JPEG"], files[f"{ROOT}/val/images/val_3.JPEG"]
    archive = write(tmp_path / "cut.zip", files)
    main(["prepare", "tiny_imagenet", "--data-dir", str(tmp_path), "--archive", str(archive)])
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == f"Ready: {tmp_path / 'tiny_imagenet' / '1.0.0'}"
    assert "a cut of it: {'classes': 3, 'train_images': 8, 'train_images_of_a_class': [2, 3]" in shown.err
    recorded = json.loads((tmp_path / "tiny_imagenet" / "1.0.0" / "metadata.json").read_text())
    assert (recorded["is_official"], recorded["annotated_images_missing"]) == (False, 1)
    assert prepare("tiny_imagenet", tmp_path) == tmp_path / "tiny_imagenet" / "1.0.0"


def without(part: str) -> dict[str, bytes]:
    return {name: content for name, content in members().items() if part not in name}


def having(name: str, content: bytes) -> dict[str, bytes]:
    return {**members(), name if name.startswith(("/", "..", "C")) else f"{ROOT}/{name}": content}


TRAIN = f"train/{IDS[1]}/images/{IDS[1]}_1.JPEG"
ANNOTATIONS = members()[f"{ROOT}/val/val_annotations.txt"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (without(f"train/{IDS[1]}"), "train: 1 of 3 classes have no images, n00000001 first"),
        (having("train/n12345678/images/n12345678_0.JPEG", picture(0)), "class 'n12345678'; must be one of the 3"),
        (having("val/val_annotations.txt", ANNOTATIONS.replace(b"n00000001", b"n7")), "class 'n7'; must be one of"),
        (having("val/images/val_9.JPEG", picture(0)), "1 images are not in val_annotations.txt, val_9.JPEG first"),
        (having("val/val_annotations.txt", b"val_0.JPEG"), "must be a file and its class"),
        (having(TRAIN, picture(0)[:900]), f"{TRAIN}: the image cannot be decoded"),
        (having(TRAIN, b""), f"{TRAIN}: the image cannot be decoded"),
        (having(TRAIN, picture(0, 32)), r"shape \(32, 32, 3\); must be \(64, 64, 3\)"),
        (having(TRAIN, bytes(2_000_000)), "2,000,000 bytes"),
        (without("wnids"), "has no file tiny-imagenet-200/wnids.txt"),
        (having("wnids.txt", b"n00000001"), "1 classes; must be different ones, at least 2"),
        (having("words.txt", b"\xff"), "words.txt cannot be read"),
        (having("val/val_annotations.txt", ANNOTATIONS + b"val_0.JPEG\tn00000002"), "val_0.JPEG is there twice"),
        (having(f"train/{IDS[0]}/images/{IDS[1]}_1.JPEG", picture(0)), f"train: {IDS[1]}_1.JPEG is there twice"),
        (having(f"train/{IDS[0]}/images/other.jpeg", picture(0)), "other.jpeg: must be train/<WordNet id>/images"),
        (having("train/other/images/other.JPEG", picture(0)), "other.JPEG: must be train/<WordNet id>/images"),
        (having("../evil", b""), "member '../evil': must lie in the archive's own folder"),
        (having("train/../../evil", b""), "must lie in the archive's own folder"),
        (having("/etc/evil", b""), "must lie in the archive's own folder"),
        (having("C\\evil", b""), "must lie in the archive's own folder"),
    ],
)
def test_a_faulty_archive_is_refused_and_leaves_nothing(tmp_path, files, message):
    archive = write(tmp_path / "archive.zip", files)
    with pytest.raises(ValueError, match=message):
        prepare_tiny_imagenet(tmp_path / "tfds", archive, described(archive))
    assert not list((tmp_path / "tfds").rglob("dataset_info.json"))
    assert {path.name for path in tmp_path.iterdir()} <= {"archive.zip", "tfds"}


def test_a_member_twice_a_flipped_bit_and_half_an_archive_are_refused(tmp_path, tiny):
    files = members()
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr(f"{ROOT}/{TRAIN}", picture(1))
    with pytest.raises(ValueError, match="is in the archive twice"):
        prepare_tiny_imagenet(tmp_path, archive, described(archive))
    whole = tiny[1].read_bytes()
    position = whole.index(picture(100 * 1 + 1)) + 400
    archive.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
    with pytest.raises(ValueError, match=r"SHA-256 [0-9a-f]{64} instead of"):
        prepare_tiny_imagenet(tmp_path, archive, described(tiny[1]))
    with pytest.raises(ValueError, match=r"cannot be decoded \(Bad CRC-32"):
        prepare_tiny_imagenet(tmp_path, archive, described(archive))
    archive.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="not a zip file; another file, or an incomplete download"):
        prepare_tiny_imagenet(tmp_path, archive)
    with pytest.raises(FileNotFoundError, match="it is published at http://cs231n"):
        prepare_tiny_imagenet(tmp_path, tmp_path / "none.zip")


ENCRYPTED, CHANGED = 8, 1


@pytest.mark.parametrize("fault", [ENCRYPTED, CHANGED])
def test_a_list_of_classes_that_cannot_be_read_is_named(tmp_path, fault):
    archive = write(tmp_path / "archive.zip", members())
    content = bytearray(archive.read_bytes())
    if fault == ENCRYPTED:
        content[content.index(b"PK\x01\x02") + ENCRYPTED] |= 1  # the flag of the directory's first entry, wnids.txt
        content[content.index(b"PK\x03\x04") + 6] |= 1
    else:
        content[content.index("\n".join(IDS).encode()) + 8] ^= CHANGED  # its checksum no longer fits
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"wnids.txt cannot be read \("):
        prepare_tiny_imagenet(tmp_path / "tfds", archive, described(archive))


@pytest.mark.skipif(not SHARED.exists(), reason="the cut archive is not there (../shared/data)")
def test_the_contents_of_the_cut_archive():
    """Its list of files only; preparing it takes 17 s."""
    from lopjax.data.tiny_imagenet import counts_of, read_contents

    with zipfile.ZipFile(SHARED) as file:
        contents = read_contents(file)
    assert counts_of(contents) == {
        "classes": 200,
        "train_images": 30_000,
        "train_images_of_a_class": [150, 150],
        "validation_images": 3_000,
        "validation_images_of_a_class": [15, 15],
        "annotated_images_missing": 0,
    }
    assert SHARED.stat().st_size != OFFICIAL.num_bytes
