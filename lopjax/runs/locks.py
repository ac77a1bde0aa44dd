"""One writer at a time in a run folder, whether it is opened by the same process, another process or another host.

The writer keeps a file `run.lock` in the folder that identifies it, and holds an `flock` on it if the file system
supports that. The kernel releases an flock when its process ends, however it ends. So a lock file can be ignored if

1. its flock is free, on the same kernel or on a file system whose flocks are visible to all hosts; or 2. its process,
on this host, no longer exists (process ids are reused, so its start time is compared too); or 3. its process was an
earlier start of the same Slurm job, which Slurm ended before starting it again.

Anything else is refused with advice: deciding between "dead" and "unreachable" takes a person. Before every write the
writer checks that the lock file is still its own, so of two processes that believe they hold it only one continues.

Readers need no lock.
"""

import errno
import json
import os
import secrets
import socket
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from lopjax.runs.errors import RunFolderError
from lopjax.runs.processes import Process, flocks_are_shared, is_alive, this_process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FILE = "run.lock"
_PATIENCE = 2.0  # seconds that another process may take between creating a lock file and writing to it


class Lock:
    """This process's right to write to a folder.

    It ends with `release`, when nothing refers to it any more, with the process, or when the same process opens the
    folder again: then the newer lock is valid and the older one refuses.
    """

    def __init__(self, path: Path, descriptor: int, token: str) -> None:
        self.path = path
        self._token = token
        self._pid = os.getpid()
        self._descriptor = descriptor
        # Also called at exit; releasing the flock alone would leave the file to block hosts that do not see flocks.
        self._release = weakref.finalize(self, _release, path, descriptor, token, self._pid)
        _HELD.add(self)

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self.path}: a lock belongs to one process; others open the folder with follow_run")

    def check(self) -> None:
        """Raise RunFolderError unless this process may still write to the folder."""
        if os.getpid() != self._pid:
            what = f"was opened by process {self._pid}, of which this is a copy (fork); only that one may write there"
        elif not self._release.alive:
            what = "has been finished or closed by this process; open it again to write there"
        elif (owner := _owner(self.path)).get("token") != self._token:
            taken = _named(owner) if owner else "somebody who deleted the lock file or moved the folder"
            what = f"has been taken over by {taken}; nothing more is written there from here"
        else:
            return
        raise RunFolderError(f"run folder {self.path.parent}: {what}")

    def release(self) -> None:
        """Release the folder; does nothing if it was released before or another process holds it."""
        self._release()

    def forget(self) -> None:
        """In a forked copy: leave the lock to the parent, which still has the file open and hence locked."""
        self._release.detach()
        with suppress(OSError):
            os.close(self._descriptor)


# A copy of this process must not keep a lock that its parent has lost, for instance because it was killed.
_HELD: "weakref.WeakSet[Lock]" = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: [lock.forget() for lock in _HELD])


def acquire(folder: Path) -> Lock:
    """Become the writer of an existing folder.

    Raises:
        RunFolderError: another process is writing there, or may be; the message says which, and what to do.
        OSError: the lock file cannot be written.
    """
    path = folder / FILE
    until = time.monotonic() + _PATIENCE
    while True:
        lock = _created(path)
        if lock is not None:
            return lock
        state, owner = _found(path, remove=True)
        if state in (_State.ALIVE, _State.UNKNOWN) or (state is _State.CHANGING and time.monotonic() > until):
            raise RunFolderError(f"run folder {folder}: {_refusal(state, owner, path)}")
        if state is _State.CHANGING:
            time.sleep(0.02)


def check_free(folder: Path) -> None:
    """Raise RunFolderError if another process is writing in a folder; changes nothing."""
    state, owner = _found(folder / FILE, remove=False)
    if state is not _State.FREE:
        raise RunFolderError(f"run folder {folder}: {_refusal(state, owner, folder / FILE)}")


class _State(Enum):
    """The meaning of an existing lock file."""

    FREE = "nobody's"
    ALIVE = "another process's"
    CHANGING = "being made or taken over just now"
    UNKNOWN = "of a process that cannot be seen from here"


def _created(path: Path) -> Lock | None:
    """The lock, if there was no lock file; of several processes that try, one succeeds."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return None
    try:
        token = secrets.token_hex(8)
        has_flock = _flock(descriptor)
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        record = {**this_process()._asdict(), "since": since, "flock": has_flock is True, "token": token}
        os.write(descriptor, json.dumps(record).encode())
        # In between, another process may have removed the empty file as abandoned.
        if has_flock is not False and _is_at(descriptor, path):
            return Lock(path, descriptor, token)
    except BaseException:
        if _is_at(descriptor, path):
            path.unlink()
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _found(path: Path, remove: bool) -> tuple[_State, dict[str, Any]]:
    """The meaning and content of the existing lock file; `remove` deletes it if it is abandoned."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return _State.FREE, {}
    try:
        has_flock = _flock(descriptor)
        owner = _parsed(os.pread(descriptor, 1 << 16, 0))
        state = _judged(owner, has_flock, path)
        if remove and state is _State.FREE and _is_at(descriptor, path):
            path.unlink(missing_ok=True)
        return state, owner
    finally:
        os.close(descriptor)


def _judged(owner: Mapping[str, Any], has_flock: bool | None, path: Path) -> _State:
    """The meaning of a lock file, from its content and whether this process got its flock (None if unsupported)."""
    here = this_process()
    there = Process.read(owner)
    if there is None:
        # Truncated by a power failure, or another process is about to write to it.
        return _State.FREE if has_flock and flocks_are_shared(path) else _State.CHANGING
    if there.identity == here.identity:
        return _State.FREE  # opened again by the same process: the newer lock is valid
    is_visible = there.boot == here.boot and there.namespace == here.namespace
    if has_flock is False:
        return _State.CHANGING if is_visible and not is_alive(there) else _State.ALIVE
    if has_flock and owner.get("flock") and (there.boot == here.boot or flocks_are_shared(path)):
        return _State.FREE
    if is_visible:
        return _State.ALIVE if is_alive(there) else _State.FREE
    is_earlier_start = there.job is not None and there.job == here.job and there.restart < here.restart
    return _State.FREE if is_earlier_start else _State.UNKNOWN


def _refusal(state: _State, owner: Mapping[str, Any], path: Path) -> str:
    if state is _State.ALIVE:
        return f"{_named(owner)} is writing there; wait until it ends, end it, or choose another folder"
    if not owner:
        return f"has a lock file that cannot be read; if no process is writing there, delete {path}"
    return (
        f"{_named(owner)} was writing there, and whether it still does cannot be told on {socket.gethostname()}; "
        f"if it has ended, delete {path}, else choose another folder"
    )


def _named(owner: Mapping[str, Any]) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')} (since {owner.get('since', '?')})"


def _owner(path: Path) -> dict[str, Any]:
    """The content of a lock file; empty if it is missing or truncated."""
    try:
        return _parsed(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _flock(descriptor: int) -> bool | None:
    """Whether this process got the flock; None if flocks are not supported."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that currently has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _release(path: Path, descriptor: int, token: str, pid: int) -> None:
    if os.getpid() != pid:
        return
    with suppress(OSError):
        if _owner(path).get("token") == token:
            path.unlink()
    with suppress(OSError):
        os.close(descriptor)
