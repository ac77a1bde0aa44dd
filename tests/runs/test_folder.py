"""Every rule of the run folder, each with the case that must be refused; what a crash leaves can always be read."""

import importlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from oracles.folders import Config, Net, complete, contents

from lopjax.runs import CheckpointError, RunFolderError, config_hash, load, open_run, provenance, write_json

# --- Which folder may be used --------------------


def test_a_new_folder_holds_the_config_with_versions_and_revision(tmp_path):
    run = open_run(tmp_path / "a" / "b", Config())
    assert not run.is_complete
    recorded = json.loads((run.folder / "config.json").read_text())
    assert recorded["config"] == {"seeds": [0, 1], "rate": 0.1, "net": {"widths": [3, 3]}, "folder": "somewhere"}
    assert recorded["hash"] == config_hash(recorded["config"])
    assert recorded["versions"]["numpy"] == np.__version__
    assert recorded["python"] == sys.version.split()[0]
    assert not list(tmp_path.rglob("*.partial"))


def test_an_empty_folder_is_as_good_as_none(tmp_path):
    assert not open_run(tmp_path, Config()).is_complete


def test_a_crash_while_the_config_was_written_leaves_a_folder_that_can_be_used(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_run(tmp_path / "run", Config())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json.partial"]
    open_run(tmp_path / "run", Config())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_complete_run_of_the_same_config_is_recognised_and_untouched(tmp_path):
    complete(tmp_path / "run")
    before = contents(tmp_path)
    assert open_run(tmp_path / "run", Config()).is_complete
    assert open_run(str(tmp_path / "run"), Config()).is_complete
    assert contents(tmp_path) == before


@pytest.mark.parametrize("is_complete", [True, False])
def test_another_config_is_refused_and_the_differing_fields_named(tmp_path, is_complete):
    (complete if is_complete else lambda folder: open_run(folder, Config()))(tmp_path / "run")
    before = contents(tmp_path)
    with pytest.raises(RunFolderError) as error:
        open_run(tmp_path / "run", Config(rate=0.2, net=Net((3, 4))))
    message = str(error.value)
    assert "belongs to another config" in message
    assert "rate: 0.1 there, 0.2 now" in message
    assert "net.widths: [3, 3] there, [3, 4] now" in message
    assert "seeds" not in message
    assert contents(tmp_path) == before


def test_a_field_that_only_one_config_has_is_named(tmp_path):
    complete(tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "config.json").read_text())
    recorded["config"]["retired"] = None
    write_json(tmp_path / "run" / "config.json", recorded)
    with pytest.raises(RunFolderError, match="retired: null there, absent now"):
        open_run(tmp_path / "run", Config())


def test_an_incomplete_run_is_refused(tmp_path):
    open_run(tmp_path / "run", Config()).append({"step": 1})
    with pytest.raises(RunFolderError, match=r"incomplete run of this config.*overwrite"):
        open_run(tmp_path / "run", Config())


def test_an_incomplete_run_goes_on_where_its_checkpoint_is(tmp_path):
    state, like = {"a": np.arange(3.0, dtype=np.float32)}, lambda step: {"a": np.zeros(3, np.float32)}
    run = open_run(tmp_path / "run", Config(), resume=True)  # a new folder is created all the same
    assert run.restore(like) is None
    run.append({"step": 1})
    run.checkpoint(1, state)
    run.append({"step": 2})
    again = open_run(tmp_path / "run", Config(), resume=True)
    assert not again.is_complete
    found = again.restore(like)
    assert found.step == 1
    np.testing.assert_array_equal(found.tree["a"], state["a"])
    assert [record["step"] for record in load(again.folder).records] == [1]
    again.finish({})
    assert not again.checkpoint_folder.exists()
    assert open_run(tmp_path / "run", Config(), resume=True).is_complete
    with pytest.raises(RunFolderError, match="belongs to another config"):
        open_run(tmp_path / "run", Config(rate=0.5), resume=True)


def test_a_checkpoint_whose_records_are_lost_or_of_another_version_is_refused(tmp_path, monkeypatch):
    def like(step):
        return {"a": np.zeros(3, np.float32)}

    run = open_run(tmp_path / "run", Config())
    run.append({"step": 1})
    run.checkpoint(1, like(1))
    run.metrics_path.write_text("")
    with pytest.raises(CheckpointError, match=r"fewer than the 12 bytes that belong to the checkpoint of step 1"):
        run.restore(like)
    monkeypatch.setattr(provenance, "PACKAGES", ("lopjax", "numpy"))
    with pytest.raises(CheckpointError, match="belongs to versions"):
        run.restore(like)


def test_without_a_checkpoint_a_resumed_run_starts_with_no_records(tmp_path):
    run = open_run(tmp_path / "run", Config())
    run.append({"step": 1})
    assert open_run(tmp_path / "run", Config(), resume=True).restore(lambda step: {}) is None
    assert load(run.folder).records == []


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"no": 1}', '{"config": 3}'])
def test_a_folder_that_is_no_run_is_refused(tmp_path, content):
    (tmp_path / "thesis.tex").write_text("years of work")
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunFolderError, match="is not a run"):
        open_run(tmp_path, Config())
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        load(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("times", [1, 3])
def test_overwriting_moves_aside_and_deletes_nothing(tmp_path, times):
    complete(tmp_path / "run")
    first = contents(tmp_path / "run")
    for number in range(1, times + 1):
        run = open_run(tmp_path / "run", Config(rate=float(number)), overwrite=True)
        assert not run.is_complete
        assert sorted(contents(run.folder)) == ["config.json", "run.lock"]
    assert contents(tmp_path / "run.1") == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", *(f"run.{n}" for n in range(1, times + 1))]


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError, match="cannot be written"):
            open_run(folder, Config(), overwrite=True)
    assert (tmp_path / "file").read_text() == "kept"


def test_an_unwritable_folder_is_refused(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.geteuid() == 0:  # the superuser writes anywhere

        def refuse(*args, **kwargs):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunFolderError, match=r"cannot be written \(Permission denied\); choose another folder"):
        open_run(tmp_path / "locked" / "run", Config())


# --- Records --------------------


def test_records_come_back_in_order_and_columns_are_selected(tmp_path):
    run = open_run(tmp_path, Config())
    run.append({"seed": 0, "loss": 1.5}, {"seed": 1, "loss": np.float32(0.25)})
    run.append({"seed": 0, "loss": np.array(0.5), "extra": [1, np.int64(2)], "where": Path("a")})
    data = load(tmp_path)
    assert data.records[2] == {"seed": 0, "loss": 0.5, "extra": [1, 2], "where": "a"}
    np.testing.assert_array_equal(data.column("loss"), [1.5, 0.25, 0.5])
    np.testing.assert_array_equal(data.column("loss", seed=0), [1.5, 0.5])
    assert data.column("loss").dtype == np.float64
    assert data.summary is None
    with pytest.raises(KeyError, match=r"no record with 'accuracy'.*'loss'"):
        data.column("accuracy")
    with pytest.raises(KeyError, match=r"no record where \{'seed': 7\}.*seed in \[0, 1\]"):
        data.column("loss", seed=7)


def test_numbers_that_are_not_finite_are_null_on_disk_and_nan_in_columns(tmp_path):
    run = open_run(tmp_path, Config())
    run.append({"loss": math.nan}, {"loss": np.inf}, {"loss": np.array(-np.inf, np.float32)}, {"loss": 1.0})
    lines = [json.loads(line, parse_constant=pytest.fail) for line in run.metrics_path.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [None, None, None, 1.0]
    np.testing.assert_array_equal(load(tmp_path).column("loss"), [np.nan, np.nan, np.nan, 1.0])


@pytest.mark.parametrize("kept", [0, 1, 8, 21])
def test_a_last_line_cut_short_is_left_out(tmp_path, kept):
    run = open_run(tmp_path, Config())
    run.append({"step": 1}, {"step": 2})
    last = json.dumps({"step": 3, "loss": 0.5})
    run.metrics_path.write_text(run.metrics_path.read_text() + last[:kept])
    assert [record["step"] for record in load(tmp_path).records] == [1, 2]
    # The control: with its newline the line counts.
    run.metrics_path.write_text(run.metrics_path.read_text()[: -kept or None] + last + "\n")
    assert len(load(tmp_path).records) == 3


def test_what_a_killed_process_recorded_is_readable(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from dataclasses import dataclass\n"
        "from lopjax.runs import open_run\n"
        "Config = dataclass(type('Config', (), {}))\n"
        "run = open_run(sys.argv[1], Config())\n"
        "for step in range(5): run.append({'step': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], timeout=60, check=False)
    assert killed.returncode == -9
    data = load(tmp_path / "run")
    np.testing.assert_array_equal(data.column("step"), range(5))
    assert data.summary is None


# --- JSON --------------------


def test_a_crash_between_writing_and_renaming_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "file.json", {"value": 1})

    def crash(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_json(tmp_path / "file.json", {"value": 2})
    assert json.loads((tmp_path / "file.json").read_text()) == {"value": 1}
    monkeypatch.undo()
    write_json(tmp_path / "file.json", {"value": 2})
    assert json.loads((tmp_path / "file.json").read_text()) == {"value": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "file.json", {"value": 1})
    with pytest.raises(ValueError, match=r"file\.value: <object object at .*> of type object has no form in JSON"):
        write_json(tmp_path / "file.json", {"value": object()})
    assert json.loads((tmp_path / "file.json").read_text()) == {"value": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_run_is_complete_only_once_its_summary_is_in_place(tmp_path, monkeypatch):
    run = open_run(tmp_path / "run", Config())
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError("crash")))
        with pytest.raises(OSError, match="crash"):
            run.finish({"verdict": "fine"})
    assert load(run.folder).summary is None
    with pytest.raises(RunFolderError, match="incomplete"):
        open_run(run.folder, Config())
    run.finish({"verdict": "fine", "rounding": math.nan})
    assert load(run.folder).summary == {"verdict": "fine", "rounding": None}


def test_the_hash_depends_on_values_and_not_on_their_order():
    assert config_hash({"a": 1, "b": (1, 2)}) == config_hash({"b": [1, 2], "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    # Stable over processes and versions: what `sha256sum` says of '{"a": 1}'.
    assert config_hash({"a": 1}) == "f9d86028c6e0d64e225186f96acb69338b2c59764df79162107f5c4bb34d1310"


# --- Git --------------------


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_revision_is_that_of_the_checkout_this_file_is_in(tmp_path, monkeypatch):
    (tmp_path / "runs.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "runs.py"))
    assert provenance._git_revision() is None  # no checkout
    git(tmp_path, "init", "-q")
    (tmp_path / "other.py").write_text("")
    git(tmp_path, "add", "other.py")
    git(tmp_path, "commit", "-qm", "one")
    assert provenance._git_revision() is None  # somebody else's checkout: installed into an environment inside it
    git(tmp_path, "add", "runs.py")
    git(tmp_path, "commit", "-qm", "two")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert provenance._git_revision() == commit
    (tmp_path / "runs.py").write_text("changed")
    assert provenance._git_revision() == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert provenance._git_revision() is None  # no git


@pytest.mark.parametrize("name", ["checkpoints", "writers"])
def test_the_old_names_of_moved_modules_work_and_warn(name, monkeypatch):
    monkeypatch.delitem(sys.modules, f"lopjax.{name}", raising=False)
    with pytest.warns(DeprecationWarning, match=rf"lopjax\.{name} has moved to lopjax\.runs\.{name}"):
        old = importlib.import_module(f"lopjax.{name}")
    new = importlib.import_module(f"lopjax.runs.{name}")
    assert all(getattr(old, public) is getattr(new, public) for public in old.__all__)
