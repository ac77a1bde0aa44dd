"""One writer at a time: real processes that hold, race for, lose and leave run folders, and owners made up on disk."""

import json
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lopjax import runs
from lopjax.runs import RunFolderError, follow_run, load, locks, open_run
from lopjax.runs.processes import flocks_are_shared, is_alive, this_process


@dataclass(frozen=True)
class Config:
    rate: float = 0.1


PROLOGUE = """
import os, sys, time, warnings
from dataclasses import dataclass
from pathlib import Path
warnings.simplefilter("ignore")
from lopjax.runs import RunFolderError, locks, open_run
Config = dataclass(frozen=True)(type("Config", (), {"__annotations__": {"rate": float}, "rate": 0.1}))
folder = Path(sys.argv[1])
"""
HOLDER = """
run = open_run(folder, Config())
for step in range(3): run.append({"step": step})
print(os.getpid(), flush=True)
for line in sys.stdin: run.append({"step": int(line)}); print("appended", flush=True)
"""


def process(program: str, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", PROLOGUE + textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def holder(tmp_path) -> Iterator[subprocess.Popen]:
    """A process that has recorded three steps in the folder `run` and goes on when told to."""
    with process(HOLDER, tmp_path / "run") as held:
        assert held.stdout.readline().strip() == str(held.pid)
        yield held
        held.kill()


def like(step):
    return {}


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in load(folder).records]


# --- Processes of this host --------------------


def test_while_a_process_writes_another_may_only_read_and_once_it_is_killed_it_may_go_on(tmp_path, holder):
    folder = tmp_path / "run"
    for options in ({}, {"resume": True}, {"overwrite": True}, {"resume": True, "overwrite": True}):
        with pytest.raises(RunFolderError, match=rf"process {holder.pid} on .* is writing there; wait until it ends"):
            open_run(folder, Config(), **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert steps(folder) == [0, 1, 2]
    follow_run(folder, Config(), is_complete=False).append({"step": 7})  # another process of the same run
    holder.stdin.write("3\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "appended\n"
    assert steps(folder) == [0, 1, 2, 3]
    holder.send_signal(signal.SIGKILL)
    holder.stdout.read()  # ended, and not yet waited for
    run = open_run(folder, Config(), resume=True)
    run.restore(like)
    run.append({"step": 0})
    assert steps(folder) == [0]


def test_a_refused_opening_does_not_take_the_folder_from_this_process(tmp_path):
    run = open_run(tmp_path, Config())
    for config in (Config(), Config(rate=0.2)):
        with pytest.raises(RunFolderError, match=r"incomplete|another config"):
            open_run(tmp_path, config)
    run.append({"step": 0})


def test_another_config_is_told_from_a_folder_in_use(tmp_path, holder):
    with pytest.raises(RunFolderError, match="belongs to another config"):
        open_run(tmp_path / "run", Config(rate=0.2))


@pytest.mark.parametrize("has_flock", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_of_processes_that_open_a_new_folder_at_once_exactly_one_writes(tmp_path, has_flock):
    """Four processes, twenty folders: each writes its name where it is let in, and stays until all have tried."""
    rounds, racers = 20, 4
    program = """
    if sys.argv[2] == "False": locks.fcntl = None
    rounds, racers, os.environ["PATH"] = int(sys.argv[3]), int(sys.argv[4]), ""  # no git: only the race takes time
    children = []
    start = time.monotonic() + 0.5
    for racer in range(racers):
        children.append(os.fork())
        if children[-1] == 0:
            runs = []
            for number in range(rounds):
                while time.monotonic() < start + 0.02 * number: pass
                try:
                    runs.append(open_run(folder / str(number), Config()))
                    runs[-1].append({"racer": racer})
                except RunFolderError as error:
                    (folder / f"{number}.{racer}.refused").write_text(str(error))
            os.close(1)
            sys.stdin.read()
            os._exit(0)
    """
    with process(program, tmp_path, has_flock, rounds, racers) as racing:
        racing.stdout.read()  # every child has closed it
        winners = [load(tmp_path / str(number)).column("racer") for number in range(rounds)]
        assert [len(names) for names in winners] == [1] * rounds
        racing.stdin.close()
    refusals = [path.read_text() for path in tmp_path.glob("*.refused")]
    assert len(refusals) == rounds * (racers - 1)
    assert all("writing there" in text or "lock file that cannot be read" in text for text in refusals)
    # The control: it was a race, which not always the same one won.
    assert len({names[0] for names in winners}) > 1


def test_a_copy_made_by_fork_neither_writes_nor_unlocks_nor_holds_the_lock(tmp_path):
    program = """
    run = open_run(folder, Config())
    child = os.fork()
    if child == 0:
        try: run.append({"step": 1})
        except RunFolderError as error: os.write(1, f"{error}\\n".encode())
        if sys.stdin.readline(): sys.exit()  # an ordinary end, with all that is done at exit
        time.sleep(60)
    elif sys.argv[2] == "waits": os.waitpid(child, 0); print(child, flush=True); sys.stdin.read()
    else: os.write(1, f"{child}\\n".encode()); time.sleep(60)  # one write: no line of the child falls into it
    """
    with process(program, tmp_path, "waits") as forked:
        assert "is a copy (fork)" in forked.stdout.readline()
        forked.stdin.write("end\n")
        forked.stdin.flush()
        forked.stdout.readline()
        with pytest.raises(RunFolderError, match=f"process {forked.pid} on"):
            open_run(tmp_path, Config(), resume=True)
        forked.stdin.close()
    killed = process(program, tmp_path / "killed", "is killed")
    lines = sorted(killed.stdout.readline() for _ in range(2))
    killed.kill()
    killed.wait()
    child = next(int(line) for line in lines if line.strip().isdigit())
    Path(f"/proc/{child}/stat").read_text()  # it lives
    open_run(tmp_path / "killed", Config(), resume=True)
    killed.stdin.close()
    killed.stdout.close()


# --- One process --------------------


def test_in_one_process_the_run_opened_last_counts(tmp_path):
    first = open_run(tmp_path, Config())
    first.append({"step": 0})
    first.checkpoint(1, {})
    first.append({"step": 1})
    second = open_run(tmp_path, Config(), resume=True)
    second.restore(like)
    second.append({"step": 1})
    for write in (lambda: first.append({"step": 2}), lambda: first.checkpoint(2, {}), lambda: first.restore(like)):
        with pytest.raises(RunFolderError, match="has been taken over by process"):
            write()
    for write in (lambda: first.keep("a", {}), lambda: first.finish({})):
        with pytest.raises(RunFolderError, match="has been taken over by process"):
            write()
    first.close()  # and does not unlock what the second has
    second.append({"step": 2})
    assert steps(tmp_path) == [0, 1, 2]


def test_a_lock_ends_with_the_run_object_its_closing_and_its_end(tmp_path):
    open_run(tmp_path / "dropped", Config())
    assert not (tmp_path / "dropped" / locks.FILE).exists()
    closed = open_run(tmp_path / "closed", Config())
    copy = closed._replace(writers=())
    closed.close()
    finished = open_run(tmp_path / "finished", Config())
    finished.finish({})
    for run in (closed, copy, finished):
        assert not (run.folder / locks.FILE).exists()
        with pytest.raises(RunFolderError, match="has been finished or closed by this process; open it again"):
            run.append({"step": 1})
    with pytest.raises(RunFolderError, match="holds a complete run; nothing more is written there"):
        open_run(tmp_path / "finished", Config()).restore(like)


def test_a_run_whose_lock_file_is_deleted_or_whose_folder_is_moved_writes_no_more(tmp_path):
    run = open_run(tmp_path / "run", Config())
    run.append({"step": 0})
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(RunFolderError, match="taken over by somebody who deleted the lock file or moved the folder"):
        run.append({"step": 1})
    assert not (tmp_path / "run").exists()
    assert steps(tmp_path / "moved") == [0]


def test_a_lock_cannot_be_handed_to_another_process(tmp_path):
    with pytest.raises(TypeError, match="belongs to one process; others open the folder with follow_run"):
        pickle.dumps(open_run(tmp_path, Config()).lock)


# --- Lock files that others have left --------------------


def left_by(folder: Path, **changes: object) -> None:
    """An incomplete run, and the lock file of a process like this one but for what is given."""
    open_run(folder, Config(), resume=True).close()
    owner = {**this_process()._asdict(), "since": "long ago", "flock": True, "token": "0", **changes}
    (folder / locks.FILE).write_text(json.dumps(owner))


def opens(folder: Path) -> bool:
    try:
        return not open_run(folder, Config(), resume=True).is_complete
    except RunFolderError as error:
        reason = str(error)
    assert "if it has ended, delete" in reason or "is writing there" in reason
    assert (folder / locks.FILE).exists()
    return False


ELSEWHERE = {"host": "node7", "boot": "another"}


@pytest.mark.parametrize(
    ("changes", "has_flock", "is_shared", "expected"),
    [
        (ELSEWHERE, True, True, True),  # its flock would be seen from here
        (ELSEWHERE, True, False, False),
        ({**ELSEWHERE, "flock": False}, True, True, False),
        (ELSEWHERE, False, True, False),
        ({"namespace": "pid:[1]"}, True, False, True),  # another container under the same kernel
        ({"namespace": "pid:[1]"}, False, False, False),
        ({"started": 1}, False, False, True),  # a process id that is used again
        ({"pid": 2**22 + 1}, False, False, True),
        ({}, False, False, True),  # this very process
        ({**ELSEWHERE, "job": "17", "restart": 0}, False, False, True),  # requeued by Slurm as 17, first restart
        ({**ELSEWHERE, "job": "17", "restart": 1}, False, False, False),  # another task of the same start
        ({**ELSEWHERE, "job": "16", "restart": 0}, False, False, False),
    ],
)
def test_a_lock_file_is_passed_over_only_where_its_owner_must_be_dead(
    tmp_path, monkeypatch, changes, has_flock, is_shared, expected
):
    left_by(tmp_path, **changes)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(locks, "flocks_are_shared", lambda path: is_shared)
    if not has_flock:
        monkeypatch.setattr(locks, "fcntl", None)
    assert opens(tmp_path) == expected
    if not expected:  # what the message says helps
        (tmp_path / locks.FILE).unlink()
        assert opens(tmp_path)


def test_without_flocks_a_process_that_lives_is_told_from_a_dead_and_a_dying_one(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        stat = Path(f"/proc/{sleeper.pid}/stat").read_text()
        owner = this_process()._replace(pid=sleeper.pid, started=int(stat.rpartition(")")[2].split()[19]))
        left_by(tmp_path, **owner._asdict())
        assert not opens(tmp_path)
        sleeper.kill()
        while "Z" not in Path(f"/proc/{sleeper.pid}/stat").read_text().rpartition(")")[2]:
            pass
        assert not is_alive(owner)
        assert opens(tmp_path)
    left_by(tmp_path, **owner._asdict())
    assert opens(tmp_path)


@pytest.mark.parametrize("content", ["", "\0\0\0", '{"pid": 1', "[]"])
def test_an_unreadable_lock_file_is_passed_over_only_with_flocks_that_all_see(tmp_path, monkeypatch, content):
    left_by(tmp_path)
    (tmp_path / locks.FILE).write_text(content)
    monkeypatch.setattr(locks, "flocks_are_shared", lambda path: False)
    monkeypatch.setattr(locks, "_PATIENCE", 0.05)
    with pytest.raises(RunFolderError, match="lock file that cannot be read; if no process is writing there, delete"):
        open_run(tmp_path, Config(), resume=True)
    monkeypatch.setattr(locks, "flocks_are_shared", lambda path: True)
    assert opens(tmp_path)


MOUNTS = r"""
22 27 0:21 / / rw,relatime - ext4 /dev/sda1 rw
23 22 0:22 / /home rw shared:1 - nfs4 server:/home rw,vers=4.2,local_lock=none
24 22 0:23 / /old rw - nfs server:/old rw,vers=3,local_lock=all
25 22 0:24 / /lustre/with rw - lustre mds:/a rw,flock,lazystatfs
26 22 0:25 / /lustre/local rw - lustre mds:/b rw,localflock
27 22 0:26 / /lustre/without rw - lustre mds:/c rw
28 22 0:27 / /a\040b rw - fuse.sshfs host:/ rw
29 22 0:28 / /home/ceph rw - ceph mon:/ rw
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/runs/a", True), ("/home/me/runs", True), ("/old/runs", False), ("/lustre/with/x", True), ("/homely", True),
        ("/lustre/local/x", False), ("/lustre/without/x", False), ("/a b/runs", False), ("/home/ceph/runs", True),
    ],
)  # fmt: skip
def test_which_file_systems_show_their_flocks_to_every_host(path, expected):
    assert flocks_are_shared(Path(path), MOUNTS) == expected
    assert not flocks_are_shared(Path(path), "")  # nothing known


def test_every_run_here_was_given_up(tmp_path):
    """The control of the control: `opens` is true of a folder that nobody has locked."""
    left_by(tmp_path)
    (tmp_path / locks.FILE).unlink()
    assert opens(tmp_path)
    assert runs.load(tmp_path).records == []
