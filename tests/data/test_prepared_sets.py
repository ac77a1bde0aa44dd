"""Sets prepared on disk: the round trip from an archive, the cache, and every way in which data can be missing."""

import hashlib
import io
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from lopjax.data import load
from lopjax.data.__main__ import main
from lopjax.data.cache import load_or_build
from lopjax.data.cifar import Archive, prepare_cifar10, prepare_cifar100
from lopjax.data.downloads import download
from lopjax.data.prepare import prepare

SHARED_TFDS = Path(__file__).parents[3] / "shared" / "data" / "tfds"
CLASS_NAMES = [f"class_{label}" for label in range(10)]


def write_archive(path: Path, records: dict[str, np.ndarray]) -> Archive:
    """An archive in the authors' binary format, and the description that it is checked against."""
    files = {"batches.meta.txt": "\n".join(CLASS_NAMES).encode() + b"\n\n"}
    write_files(path, "cifar-10-batches-bin", files | {f"{name}.bin": content for name, content in records.items()})
    return described(path, len(records["test_batch"]))


def write_files(path: Path, folder: str, files: dict[str, bytes | np.ndarray]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            encoded = content if isinstance(content, bytes) else content.tobytes()
            entry.size = len(encoded)
            tar.addfile(entry, io.BytesIO(encoded))
    return path


def described(path: Path, records_per_file: int) -> Archive:
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    return Archive(path.as_uri(), path.stat().st_size, checksum, records_per_file)


def random_records(count: int = 20) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    records = {name: generator.integers(0, 256, (count, 3073), dtype=np.uint8) for name in names}
    for content in records.values():
        content[:, 0] = np.arange(count) % 10
    return records


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Tiny CIFAR-10, prepared once: (data directory, records in the archive, archive, its description)."""
    folder = tmp_path_factory.mktemp("tiny")
    records = random_records()
    archive = folder / "cifar-10-binary.tar.gz"
    expected = write_archive(archive, records)
    prepare_cifar10(folder / "tfds", archive, expected)
    return folder / "tfds", records, archive, expected


@pytest.fixture
def folders(tiny, tmp_path):
    """Arguments of `load` that leave no trace outside the test."""
    return {"data_dir": tiny[0], "cache_dir": tmp_path / "cache"}


def planes_to_images(records: np.ndarray) -> np.ndarray:
    """Pixel by pixel, from the format's description: label, then 1024 red, 1024 green, 1024 blue, rows first."""
    images = np.empty((len(records), 32, 32, 3), np.uint8)
    for channel in range(3):
        for row in range(32):
            start = 1 + 1024 * channel + 32 * row
            images[:, row, :, channel] = records[:, start : start + 32]
    return images


def as_set(images: np.ndarray, labels: np.ndarray) -> set[tuple[bytes, int]]:
    return {(image.tobytes(), int(label)) for image, label in zip(images, labels)}


def test_round_trip_from_archive_to_arrays_is_lossless(tiny, folders):
    dataset = load("cifar10", **folders)
    records = tiny[1]
    train = np.concatenate([records[f"data_batch_{number}"] for number in range(1, 6)])
    expected = planes_to_images(train)
    assert as_set(dataset.train_images, dataset.train_labels) == as_set(expected, train[:, 0])
    test = records["test_batch"]
    assert as_set(dataset.test_images, dataset.test_labels) == as_set(planes_to_images(test), test[:, 0])
    assert (dataset.name, dataset.num_classes, dataset.train_images.shape) == ("cifar10", 10, (100, 32, 32, 3))
    np.testing.assert_allclose(dataset.mean, (expected / 255).mean(axis=(0, 1, 2)))
    # Control: swapping colour planes would be seen.
    assert as_set(dataset.train_images[..., ::-1], dataset.train_labels) != as_set(expected, train[:, 0])


def test_tfds_reads_what_was_prepared_by_the_name_of_the_set(tiny):
    import tensorflow_datasets as tfds

    source = tfds.data_source("cifar10", data_dir=tiny[0], split="train", download=False)
    record = source[0]
    index = int(record["id"].decode().removeprefix("train_"))
    original = tiny[1][f"data_batch_{index // 20 + 1}"][index % 20 : index % 20 + 1]
    np.testing.assert_array_equal(record["image"], planes_to_images(original)[0])
    assert record["label"] == original[0, 0]
    assert tfds.builder("cifar10", data_dir=tiny[0]).info.features["label"].names == CLASS_NAMES


def test_cifar100_has_two_labels_a_record(tmp_path):
    generator = np.random.default_rng(0)
    train, test = (generator.integers(0, 256, (count, 3074), dtype=np.uint8) for count in (100, 20))
    for records in (train, test):
        records[:, 1] = np.arange(len(records))
        records[:, 0] = records[:, 1] // 5
    names = {"coarse": 20, "fine": 100}
    files = {f"{kind}_label_names.txt": "\n".join(map(str, range(num))).encode() for kind, num in names.items()}
    path = write_files(tmp_path / "c.tar.gz", "cifar-100-binary", {**files, "train.bin": train, "test.bin": test})
    assert prepare_cifar100(tmp_path, path, described(path, 20)) == tmp_path / "cifar100" / "3.0.2"
    dataset = load("cifar100", data_dir=tmp_path)
    assert as_set(dataset.train_images, dataset.train_labels) == as_set(planes_to_images(train[:, 1:]), train[:, 1])
    assert (dataset.num_classes, len(dataset.test_labels)) == (100, 20)
    train[3, 0] = 20
    write_files(path, "cifar-100-binary", {**files, "train.bin": train, "test.bin": test})
    with pytest.raises(ValueError, match=r"train.bin: label 20; must lie in 0..19"):
        prepare_cifar100(tmp_path / "other", path, described(path, 20))


def test_neither_preparing_nor_loading_imports_tensorflow(tiny, tmp_path):
    code = f"""
import sys
import lopjax.data
heavy = {{"tensorflow_datasets", "sklearn", "PIL", "matplotlib"}}
print("before:", sorted(heavy & set(sys.modules)))
from pathlib import Path
from lopjax.data.cifar import Archive, prepare_cifar10
prepare_cifar10(Path({str(tmp_path)!r}), Path({str(tiny[2])!r}), {tiny[3]!r})
lopjax.data.load("cifar10", data_dir={str(tmp_path)!r})
print("after:", sorted({{"tensorflow_datasets", "tensorflow"}} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert ran.stdout.splitlines()[0] == "before: []", ran.stderr
    assert ran.stdout.splitlines()[-1] == "after: ['tensorflow_datasets']", ran.stderr


def test_the_newest_version_is_read_unless_one_is_asked_for(tiny, tmp_path):
    for version in ("3.0.2", "3.0.10", "incomplete.X_4.0.0"):
        (tmp_path / "cifar10").mkdir(exist_ok=True)
        (tmp_path / "cifar10" / version).symlink_to(tiny[0] / "cifar10" / "3.0.2")
    for name, version in (("cifar10", "3.0.10"), ("cifar10:3.0.2", "3.0.2")):
        load(name, data_dir=tmp_path, cache_dir=tmp_path / version)
        assert [path.name.split("-")[1] for path in (tmp_path / version).iterdir()] == [version]
    with pytest.raises(FileNotFoundError, match=r"name='cifar10:9.9.9': not prepared under"):
        load("cifar10:9.9.9", data_dir=tmp_path)


def test_archive_is_downloaded_once_and_verified(tiny, tmp_path):
    folder = prepare_cifar10(tmp_path, expected=tiny[3])
    assert folder == tmp_path / "cifar10" / "3.0.2"
    assert [path.name for path in (tmp_path / "downloads").glob("*.gz")] == ["cifar-10-binary.tar.gz"]
    unreachable = tiny[3]._replace(url="file:///nowhere/cifar-10-binary.tar.gz")
    assert download(unreachable, tmp_path / "downloads").exists()
    with pytest.raises(ConnectionError, match=r"could not be downloaded .*add --archive FILE"):
        download(unreachable, tmp_path / "empty")
    assert [path.stat().st_size for path in (tmp_path / "empty").iterdir()] == [0]  # what is there to go on from


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_bytes": 1}, "bytes instead of 1; not file:"),
        ({"sha256": "0" * 64}, "SHA-256 [0-9a-f]{64} instead of 0{64}"),
        ({"records_per_file": 10_000}, "data_batch_1.bin: 61460 bytes; must be 10000 records of 3073 bytes"),
    ],
)
def test_another_archive_is_refused(tiny, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        prepare_cifar10(tmp_path, tiny[2], tiny[3]._replace(**change))
    assert not (tmp_path / "cifar10").exists()


def test_the_command_line_insists_on_the_official_archive(tiny, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["prepare", "cifar10", "--data-dir", str(tmp_path), "--archive", str(tiny[2])])
    assert exit_info.value.code == 1
    assert "bytes instead of 170,052,171" in capsys.readouterr().err
    main(["prepare", "cifar10", "--data-dir", str(tiny[0])])
    assert capsys.readouterr().out.strip() == f"Ready: {tiny[0] / 'cifar10' / '3.0.2'}"


@pytest.mark.parametrize("fault", ["label", "missing"])
def test_a_faulty_archive_with_the_right_checksum_is_refused(tmp_path, fault):
    records = random_records()
    if fault == "label":
        records["data_batch_3"][7, 0] = 10
    else:
        del records["data_batch_3"]
    archive = tmp_path / "archive.tar.gz"
    expected = write_archive(archive, records)
    message = {"label": r"data_batch_3.bin: label 10; must lie in 0..9", "missing": r"has no file .*data_batch_3.bin"}
    with pytest.raises(ValueError, match=message[fault]):
        prepare_cifar10(tmp_path, archive, expected)


def test_missing_data_is_an_immediate_error_with_the_command_to_run(tmp_path, monkeypatch):
    command = f"python -m lopjax.data prepare cifar10 --data-dir {tmp_path}"
    with pytest.raises(FileNotFoundError, match=command):
        load("cifar10", data_dir=tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=command):
        load("cifar10")
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(FileNotFoundError, match=f"--data-dir {tmp_path}/home/tensorflow_datasets"):
        load("cifar10")


@pytest.mark.parametrize("name", ["cifra10", "../cifar10", "", "cifar10:latest"])
def test_unknown_names_list_what_is_known(tiny, name):
    with pytest.raises(
        ValueError, match=r"unknown data set.* Ready on this machine: digits, .*cifar10; any other"
    ) as info:
        load(name, data_dir=tiny[0])
    assert f"name={name!r}" in str(info.value)
    assert ("Did you mean 'cifar10'" in str(info.value)) == ("cif" in name)


def test_prepare_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(ValueError, match="name='digits': is ready on every machine and needs no preparation"):
        prepare("digits")
    with pytest.raises(
        ValueError, match="archive=x: only for 'cifar10', 'cifar100', 'tiny_imagenet', not name='mnist'"
    ):
        prepare("mnist", tmp_path, "x")


def test_preparing_another_set_without_a_network_fails_at_once(tmp_path, monkeypatch):
    def no_address(host, port):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", no_address)
    with pytest.raises(ConnectionError, match=r"name='mnist': .*, where TFDS downloads this set from, cannot be"):
        prepare("mnist", tmp_path)


def test_files_that_tensorflow_alone_can_read_are_refused(tiny, tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    info = (tiny[0] / "cifar10" / "3.0.2" / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(info.replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="in the format tfrecord, which needs TensorFlow"):
        load("cifar10", data_dir=tmp_path, cache_dir=tmp_path)


def test_loading_twice_decodes_once(folders, monkeypatch):
    first = load("cifar10", **folders)
    monkeypatch.setattr("lopjax.data.tfds_source.decode", lambda folder: pytest.fail("decoded again"))
    second = load("cifar10", **folders)
    np.testing.assert_array_equal(first.train_images, second.train_images)
    np.testing.assert_array_equal(first.test_labels, second.test_labels)
    assert first.mean == second.mean
    assert [path.suffix for path in folders["cache_dir"].iterdir()] == [".npz"]


def test_a_set_prepared_anew_is_decoded_anew(folders, tiny):
    load("cifar10", **folders)
    (tiny[0] / "cifar10" / "3.0.2" / "label.labels.txt").touch()
    load("cifar10", **folders)
    assert len(list(folders["cache_dir"].iterdir())) == 2


def example_arrays():
    return {"images": np.arange(3000, dtype=np.uint8), "labels": np.arange(30, dtype=np.int32)}


@pytest.mark.parametrize("length", [0, 10, 1000, -1])
def test_a_truncated_cache_is_reported_and_rebuilt(tmp_path, length):
    load_or_build("a.npz", [tmp_path], example_arrays)
    path = tmp_path / "a.npz"
    intact = path.read_bytes()
    path.write_bytes(intact[:length])
    with pytest.warns(UserWarning, match=f"Rebuilding {path}"):
        rebuilt = load_or_build("a.npz", [tmp_path], example_arrays)
    np.testing.assert_array_equal(rebuilt["images"], example_arrays()["images"])
    again = load_or_build("a.npz", [tmp_path], lambda: pytest.fail("not replaced"))
    np.testing.assert_array_equal(again["labels"], example_arrays()["labels"])


@pytest.mark.filterwarnings("ignore:Rebuilding:UserWarning")
def test_no_flipped_bit_reaches_the_arrays(tmp_path):
    load_or_build("a.npz", [tmp_path], example_arrays)
    path = tmp_path / "a.npz"
    intact = path.read_bytes()
    built = []
    for position in np.random.default_rng(0).integers(0, len(intact), 60):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        arrays = load_or_build("a.npz", [tmp_path], lambda: built.append(1) or example_arrays())
        for key, expected in example_arrays().items():
            np.testing.assert_array_equal(arrays[key], expected)
    # Most of the file is data, and each flip in it must have been noticed.
    assert len(built) > 45


def test_concurrent_writers_leave_one_intact_file(tmp_path):
    barrier = threading.Barrier(4)
    results = []

    def build():
        barrier.wait()
        return example_arrays()

    threads = [
        threading.Thread(target=lambda: results.append(load_or_build("a.npz", [tmp_path], build))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    stored = load_or_build("a.npz", [tmp_path], lambda: pytest.fail("not stored"))
    np.testing.assert_array_equal(stored["images"], example_arrays()["images"])


def test_a_read_only_data_folder_sends_the_cache_to_the_user(tmp_path):
    shared, user = tmp_path / "shared", tmp_path / "user"
    shared.mkdir()
    shared.chmod(0o555)
    load_or_build("a.npz", [shared / "lopjax_cache", user], example_arrays)
    assert not list(shared.iterdir())
    assert [path.name for path in user.iterdir()] == ["a.npz"]
    with pytest.warns(UserWarning, match="could not be stored in .*cache_dir="):
        load_or_build("b.npz", [shared / "lopjax_cache"], example_arrays)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_TFDS.is_dir(), reason="CIFAR-10 is not there (../shared/data/tfds)")
def test_real_cifar10(tmp_path):
    dataset = load("cifar10", data_dir=SHARED_TFDS, cache_dir=tmp_path)
    assert dataset.train_images.shape == (50_000, 32, 32, 3)
    assert np.bincount(dataset.train_labels).tolist() == [5000] * 10
    assert np.bincount(dataset.test_labels).tolist() == [1000] * 10
    # The constants everybody uses; JPEG copies move them by less than a grey level.
    np.testing.assert_allclose(dataset.mean, (0.4914, 0.4822, 0.4465), atol=1 / 255)
    np.testing.assert_allclose(dataset.std, (0.2470, 0.2435, 0.2616), atol=1 / 255)
