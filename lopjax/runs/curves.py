"""From records to curves: the name of a record's curve, its position on the curve, and its numbers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lopjax.runs.plain import plain

Record = Mapping[str, Any]

LANE = ("method", "seed", "phase", "task")
"""Fields that name a curve; missing ones are left out."""

STEP = ("step", "epoch")
"""Fields that count steps; the first one in a record is the horizontal axis."""


def lane_of(record: Record, lane: Sequence[str]) -> str:
    """`noisy_sgd/0/clone`: the values of the lane fields, made valid as folder names."""
    return "/".join(_name(plain(record[field])) for field in lane if field in record)


def _name(value: object) -> str:
    text = str(value).replace("/", "_").replace("\0", "_")
    return "_" if text.strip(".") == "" else text


def step_of(record: Record, step: Sequence[str]) -> int | None:
    """The record's position on its curve; None if it has no counting field."""
    for field in step:
        value = plain(record.get(field))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(value)
    return None


def numbers_of(record: Record, without: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Every number of a record by name, nested ones as `a/b`: Python, NumPy and JAX numbers, infinities and NaN too.

    Booleans, strings, lists and missing numbers are left out, as are the fields `without`.
    """
    values = plain({name: value for name, value in record.items() if name not in without}, "record", not_finite=float)
    yield from _numbers(values, "")


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, float(value)
