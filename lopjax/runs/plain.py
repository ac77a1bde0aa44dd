"""Values as plain JSON, and JSON files that are never seen half written."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_FLOAT = "$float"


def null(value: float) -> None:
    """The value recorded for a number that is not finite."""


def tagged(value: float) -> dict[str, str]:
    """A number that is not finite, in JSON that distinguishes infinities, NaN and None; `untagged` reads it."""
    return {_FLOAT: repr(float(value))}


def plain(value: Any, where: str = "value", not_finite: Callable[[float], Any] = null) -> Any:
    """The value in JSON's types: arrays become lists, arrays without axes numbers, and dataclasses mappings.

    Args:
        value: numbers, strings, None, paths and arrays, in mappings, lists, tuples and dataclasses.
        where: name of the value in messages; parts are named below it, `config.net.widths[1]`.
        not_finite: conversion of infinities and NaN: `null`, `tagged`, or `float` to keep them.

    Raises:
        ValueError: a value of another type, or two keys of the same name; the message says where.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        names = [str(key) for key in value]
        if len(set(names)) < len(names) or (not_finite is tagged and _FLOAT in names):
            raise ValueError(f"{where}: has keys that JSON cannot tell apart, {list(value)}; rename them")
        items = zip(names, value.values())
        return {name: plain(item, f"{where}.{name}", not_finite) for name, item in items}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]", not_finite) for index, item in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist") and not isinstance(value, type):
        with suppress(TypeError, RuntimeError):  # random keys, values of a function under transformation
            return plain(value.tolist(), where, not_finite)
    elif isinstance(value, float):
        return value if math.isfinite(value) else not_finite(value)
    elif value is None or isinstance(value, (str, int)):
        return value
    kind = type(value).__name__
    raise ValueError(
        f"{where}: {short(value)} of type {kind} has no form in JSON; allowed are numbers, strings, None, paths, "
        f"arrays, and mappings, lists, tuples and dataclasses of them{_advice(value)}"
    )


def untagged(value: Any) -> Any:
    """The inverse of `plain(..., not_finite=tagged)`, up to JSON's types."""
    if isinstance(value, dict):
        return float(value[_FLOAT]) if set(value) == {_FLOAT} else {key: untagged(item) for key, item in value.items()}
    return [untagged(item) for item in value] if isinstance(value, list) else value


def short(value: object, length: int = 60) -> str:
    """A value's `repr` on one line, shortened to a length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= length else f"{text[:length]}..."


def _advice(value: object) -> str:
    if isinstance(value, (set, frozenset)):
        return " (a set has no order: write a sorted tuple)"
    return " (write its name, as a string)" if isinstance(value, type) or callable(value) else ""


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name and move it into place: readers see the old file or the new, never a part.

    Raises:
        ValueError: a value that JSON cannot represent; the message says where. Nothing is written.
        OSError: it could not be written; nothing is left behind.
    """
    text = json.dumps(plain(value, path.stem), indent=1, allow_nan=False)
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
