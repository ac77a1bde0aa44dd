"""From records to curves: what a record's curve is called, where it is on it, and which numbers it has."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lopjax.runs.plain import plain

Record = Mapping[str, Any]

LANE = ("method", "seed", "phase", "task")
"""Fields that name a curve; those that a record lacks are left out."""

STEP = ("step", "epoch")
"""Fields that count; the first that a record has is the horizontal axis."""


def lane_of(record: Record, lane: Sequence[str]) -> str:
    """`noisy_sgd/0/clone`: the values of the lane fields, each a name that a folder may have."""
    return "/".join(_name(plain(record[field])) for field in lane if field in record)


def _name(value: object) -> str:
    text = str(value).replace("/", "_").replace("\0", "_")
    return "_" if text.strip(".") == "" else text


def step_of(record: Record, step: Sequence[str]) -> int | None:
    """Where the record is along its curve; None if nothing in it counts."""
    for field in step:
        value = plain(record.get(field))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(value)
    return None


def numbers_of(record: Record, without: Sequence[str]) -> Iterator[tuple[str, float]]:
    """Every number of a record under its name, nested ones as `a/b`: of Python, NumPy and JAX, infinite and NaN too.

    Truth values, strings, lists and missing numbers are left out, as are the fields `without`.
    """
    values = plain({name: value for name, value in record.items() if name not in without}, "record", not_finite=float)
    yield from _numbers(values, "")


def _numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, float(value)
