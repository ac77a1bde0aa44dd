"""`metrics.jsonl`: one JSON object per line. A line that cannot be read does not affect the others."""

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def append_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append records of plain JSON and flush them to disk: all of them or, if an OSError is raised, none."""
    lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()
    size = _whole(path)
    try:
        with path.open("ab") as file:
            file.truncate(size)
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)
        raise


def _whole(path: Path) -> int:
    """Number of bytes up to the end of the last complete line: anything after it is a truncated write."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def read_records(path: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Every record that can be read, in order, and a sentence for every line that cannot.

    Every complete record ends with a newline, so anything after the last one was truncated by a crash and is not
    damage.
    """
    records: list[dict[str, Any]] = []
    damage: list[str] = []
    if not path.exists():
        return records, ()
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            damage.append(f"{path}: line {number} cannot be read ({error})")
            continue
        if isinstance(record, dict):
            records.append(record)
        else:
            damage.append(f"{path}: line {number} is no record ({type(record).__name__}, not an object)")
    return records, tuple(damage)
