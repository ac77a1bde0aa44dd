"""Damaged lines, files and folders: each costs itself alone, and is named."""

import errno
import os
from pathlib import Path

import pytest
from oracles.folders import Config, complete

from lopjax import runs
from lopjax.runs import RunFolderError, load, open_run


def damaged(folder: Path, line: bytes) -> runs.Run:
    """A run of ten records whose fifth line is replaced."""
    run = open_run(folder, Config())
    run.append(*({"step": step} for step in range(10)))
    lines = run.metrics_path.read_bytes().splitlines()
    lines[4] = line
    run.metrics_path.write_bytes(b"\n".join(lines) + b"\n")
    return run


LINES = [b'{"step": 5{"step": 6}', b"\0" * 20, b"\xff\xfe", b"5", b"null", b"", b"[" * 100_000, b'{"step": 4'][::-1]


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_damaged_line_costs_itself_alone_and_is_named(tmp_path, line):
    run = damaged(tmp_path, line)
    with pytest.warns(
        UserWarning, match=r"left out of the run: .*metrics\.jsonl: line 5 (cannot be read|is no record)"
    ):
        data = load(tmp_path)
    assert [record["step"] for record in data.records] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert len(data.damage) == 1
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl: line 5"):
        load(tmp_path, strict=True)
    run.restore(lambda step: {})  # nor does it stop a run from being taken up again
    assert load(tmp_path, strict=True).damage == ()  # the control: no warning


def test_a_damaged_summary_is_named_and_the_run_stays_complete(tmp_path):
    complete(tmp_path)
    (tmp_path / "summary.json").write_bytes(b"\0\0")
    with pytest.warns(UserWarning, match=r"summary\.json: cannot be read"):
        data = load(tmp_path)
    assert (data.summary, data.is_complete, len(data.records)) == (None, True, 1)
    with pytest.raises(RunFolderError, match=r"summary\.json"):
        load(tmp_path, strict=True)


def test_a_run_that_concludes_nothing_is_complete_all_the_same(tmp_path):
    run = open_run(tmp_path, Config())
    assert not load(tmp_path).is_complete
    run.finish(None)
    assert load(tmp_path).is_complete


def test_a_bad_folder_does_not_hide_the_other_runs(tmp_path):
    for name in ("a", "c"):
        complete(tmp_path / name)
    damaged(tmp_path / "b", b"{")
    for name, content in (("empty", b""), ("foreign", b'{"name": "a package"}'), ("torn", b'{"config": {"rate"')):
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "config.json").write_bytes(content)
    (tmp_path / "e" / "config.json").mkdir(parents=True)
    found, refused = runs.load_all(tmp_path)
    assert [(run.folder.name, len(run.records), len(run.damage)) for run in found] == [
        ("a", 1, 0),
        ("b", 9, 1),
        ("c", 1, 0),
    ]
    assert sorted(folder.name for folder in refused) == ["e", "empty", "foreign", "torn"]
    assert all("not a run folder" in reason for reason in refused.values())
    with pytest.raises(FileNotFoundError, match="nowhere: not a run folder"):
        runs.load_all(tmp_path / "nowhere")


@pytest.mark.parametrize("left", [b'{"step": 1, "lo', b"x" * 10_000])
def test_a_record_is_not_glued_to_one_that_was_cut_short(tmp_path, left):
    run = open_run(tmp_path, Config())
    run.append({"step": 0})
    with run.metrics_path.open("ab") as file:
        file.write(left)
    run.append({"step": 1})
    assert [record["step"] for record in load(tmp_path, strict=True).records] == [0, 1]


def test_a_full_disk_leaves_no_part_of_a_record(tmp_path, monkeypatch):
    run = open_run(tmp_path, Config())
    run.append({"step": 0})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run.append({"step": 1}, {"step": 2})
    assert run.metrics_path.read_bytes() == b'{"step": 0}\n'
    with pytest.raises(ValueError, match=r"record\.loss: 1j of type complex"):
        run.append({"step": 1}, {"loss": 1j})
    assert run.metrics_path.read_bytes() == b'{"step": 0}\n'
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunFolderError, match=r"cannot be written \(No space left on device\)"):
            open_run(tmp_path / "new", Config())
    assert not list((tmp_path / "new").iterdir())
