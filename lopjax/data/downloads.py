"""Downloads of published archives: resumed after interruptions, verified, and renamed only when complete."""

import fcntl
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, runtime_checkable

TIMEOUT_SECONDS = 30
BLOCK_BYTES = 1 << 20


@runtime_checkable
class Published(Protocol):
    """A file as published by its authors: address, number of bytes and SHA-256 (hexadecimal)."""

    @property
    def url(self) -> str: ...  # noqa: D102
    @property
    def num_bytes(self) -> int: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102


class File(NamedTuple):
    """A simple `Published`."""

    url: str
    num_bytes: int
    sha256: str


def check_file(path: Path, expected: Published, note: str = "") -> None:
    """Refuse a file that is not the published one.

    Args:
        path: the file.
        expected: the published file.
        note: a remark on similar files, in brackets after the address.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: its size or checksum differs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"archive={path}: no such file; it is published at {expected.url}")
    if (size := path.stat().st_size) != expected.num_bytes:
        raise ValueError(
            f"archive={path}: {size:,} bytes instead of {expected.num_bytes:,}; not {expected.url}{note}, or an "
            "incomplete download"
        )
    if (checksum := sha256_of(path)) != expected.sha256:
        raise ValueError(
            f"archive={path}: SHA-256 {checksum} instead of {expected.sha256}; delete it and download it again"
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(expected: Published, folder: Path) -> Path:
    """Download a published file into a folder, unless an intact copy is already there.

    Received data are kept as `<name>.part`, from which the next call resumes if the server supports it. The file is
    renamed only when it is complete and has the right checksum.

    Raises:
        ConnectionError: the download failed, or another process is downloading the file; the message says how to
            continue.
        ValueError: the received file is not the published one; the next call starts again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / expected.url.rpartition("/")[2]
    if path.is_file() and path.stat().st_size == expected.num_bytes:
        check_file(path, expected)
        return path
    part = path.with_name(f"{path.name}.part")
    with part.open("ab") as file:
        _lock(file, part)
        if path.is_file() and path.stat().st_size == expected.num_bytes:  # by the process that held the lock
            return path
        try:
            if file.tell() != expected.num_bytes:
                _fetch(expected.url, file, expected.num_bytes)
            check_file(part, expected)
        except ValueError:
            part.unlink()
            raise
        part.replace(path)
    return path


def _lock(file: BinaryIO, part: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConnectionError(f"{part}: another process is downloading this file; wait for it") from error


def _fetch(url: str, file: BinaryIO, num_bytes: int) -> None:
    """Append the missing part; start over if the server sends the whole file or the existing part does not fit."""
    if file.tell() > num_bytes:
        file.truncate(0)
    request = urllib.request.Request(url)
    if start := os.fstat(file.fileno()).st_size:
        request.add_header("Range", f"bytes={start}-")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            is_rest = (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-")
            if start and not is_rest:
                file.truncate(0)
            while block := response.read(BLOCK_BYTES):
                file.write(block)
        file.flush()
        if (size := os.fstat(file.fileno()).st_size) < num_bytes:
            raise OSError(f"the connection ended after {size:,} of {num_bytes:,} bytes")
    except (OSError, http.client.HTTPException) as error:
        file.flush()
        kept = os.fstat(file.fileno()).st_size
        raise ConnectionError(
            f"{url} could not be downloaded ({error}). {kept:,} bytes are kept: the same command resumes from there. "
            "Without a network: fetch the file on another machine, copy it here and add --archive FILE to the command."
        ) from error
