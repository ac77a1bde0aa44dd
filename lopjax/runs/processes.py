"""Identity of this process, whether another one still runs, and which hosts see the locks of a file system."""

import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# File systems used by a single kernel, which therefore sees every flock.
_OF_ONE_KERNEL = frozenset({"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"})


class Process(NamedTuple):
    """A process, distinguishable from any other at any time.

    Attributes:
        host: name of the host, for the reader only: containers and pods reuse names.
        boot: identity of the running kernel since boot; the host's name if there is none.
        namespace: namespace of its id (containers have their own); empty if there are none.
        pid: process id.
        started: start time in clock ticks since boot; None if it cannot be read.
        job: Slurm's number of the job; None outside Slurm.
        restart: number of times that Slurm has restarted the job.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: int | None
    job: str | None
    restart: int

    @property
    def identity(self) -> tuple[str, str, int, int | None]:
        """The fields that together are unique to a process."""
        return self.boot, self.namespace, self.pid, self.started

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Process | None":
        """From the JSON of `_asdict`; None if a field is missing."""
        return cls(*(record[name] for name in cls._fields)) if set(cls._fields) <= set(record) else None


def this_process() -> Process:
    """The calling process; after a fork this is a different one."""
    host = socket.gethostname()
    return Process(
        host=host,
        boot=_text("/proc/sys/kernel/random/boot_id") or host,
        namespace=_link("/proc/self/ns/pid"),
        pid=os.getpid(),
        started=_started(os.getpid()),
        job=os.environ.get("SLURM_JOB_ID"),
        restart=int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0),
    )


def is_alive(process: Process) -> bool:
    """Whether a process of this kernel and namespace still runs; a zombie does not."""
    if process.started is not None:
        return _started(process.pid) == process.started
    if os.name != "posix":
        return True  # there is no harmless way to find out
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> int | None:
    """Ticks from boot to the start of a process; None if it does not exist, has ended, or there is no /proc."""
    # pid (name) state ppid ...: the name may contain spaces and brackets; the 22nd field is the start time.
    fields = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] not in "ZX" else None


def flocks_are_shared(path: Path, mounts: str | None = None) -> bool:
    """Whether every host that sees a file also sees its flock.

    True for file systems of one kernel; for NFS, whose clients turn an flock into a lock of the server (flock(2)); for
    Lustre mounted with `flock`; for CephFS. For any other it is unknown, and taken to be false.

    Args:
        path: path of the file.
        mounts: text in the format of `/proc/self/mountinfo`; by default that file's.
    """
    kind, options = _mount(path.resolve(), _text("/proc/self/mountinfo") if mounts is None else mounts)
    if kind in ("nfs", "nfs4"):
        return not options & {"nolock", "local_lock=flock", "local_lock=all"}
    if kind == "lustre":
        return "flock" in options
    return kind in _OF_ONE_KERNEL or kind == "ceph"


def _mount(path: Path, mounts: str) -> tuple[str, set[str]]:
    """Type and options of a path's file system; a later mount at the same place hides an earlier one."""
    deepest: tuple[int, str, Sequence[str]] = (-1, "", ())
    for line in mounts.splitlines():
        # id parent device root mount-point options [fields] - type source super-options
        before, separator, after = line.partition(" - ")
        if not separator:
            continue
        fields, (kind, _, *superoptions) = before.split(), after.split()
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        if path.is_relative_to(point) and len(point.parts) >= deepest[0]:
            deepest = len(point.parts), kind, (fields[5], *superoptions)
    return deepest[1], {option for text in deepest[2] for option in text.split(",")}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
