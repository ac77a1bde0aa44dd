"""Births and deaths of units along a run: what each was at every measurement, and what happened to it in between."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int

from lopjax.arguments.numbers import check_numbers
from lopjax.detection.clones import check_per_unit
from lopjax.detection.nearness import Status

EVENTS = ("died", "revived", "cloned", "freed", "saturated", "reset")
"""What can happen to a unit between two measurements."""

LETTERS: Mapping[Status, str] = {
    Status.ALIVE: "a",
    Status.SATURATED: "s",
    Status.NEAR_CLONE: "c",
    Status.DEAD: "d",
    Status.UNKNOWN: "u",
}
"""How a status is written in the records of a run; a capital where an intervention has touched the unit."""
RECORDED = "lives/"
"""Fields of a record that hold the units of a space are called this and the space."""

Statuses = Mapping[str, Int[Array, " units"]]


class Lives(NamedTuple):
    """What units are now, by unit space. The state of `update_lives`, for scan and vmap.

    Attributes:
        status: a number of `Status` per unit, int8.
        since: step at which it was first measured to be that, int32.
        totals: how often each of `EVENTS` has happened since the start, int32.
    """

    status: dict[str, jax.Array]
    since: dict[str, jax.Array]
    totals: dict[str, jax.Array]


def start_lives(status: Statuses, step: ArrayLike = 0) -> Lives:
    """The first measurement; a unit that is dead in it was born dead.

    Raises:
        ValueError: statuses that are not integers, one per unit.
    """
    _check_statuses(status)
    since = {space: jnp.full(now.shape, step, jnp.int32) for space, now in status.items()}
    return Lives(dict(status), since, {event: jnp.int32(0) for event in EVENTS})


def update_lives(
    lives: Lives, status: Statuses, step: ArrayLike, touched: Mapping[str, Bool[Array, " units"]] | None = None
) -> tuple[Lives, dict[str, jax.Array]]:
    """A further measurement. Pure.

    Args:
        lives: so far.
        status: what units are now, of `unit_status`.
        step: step of this measurement.
        touched: which units an intervention has changed since the last one (`Report.touched`).

    Returns:
        The lives, and how often each of `EVENTS` happened since the last measurement.

    Raises:
        ValueError: statuses that are not integers, one per unit; other units than before; units touched that are not
            there.
    """
    _check_statuses(status)
    for space, now in status.items():
        check_per_unit(before=lives.status[space], now=now, touched=(touched or {}).get(space, now))
    counts, reset = count_events(lives.status, status, touched), touched or {}
    since = {
        space: jnp.where((now != lives.status[space]) | reset.get(space, False), step, lives.since[space])
        for space, now in status.items()
    }
    totals = {event: lives.totals[event] + counts[event] for event in EVENTS}
    return Lives(dict(status), {space: when.astype(jnp.int32) for space, when in since.items()}, totals), counts


def count_events(
    before: Statuses, now: Statuses, touched: Mapping[str, Bool[Array, " units"]] | None = None
) -> dict[str, jax.Array]:
    """How often each of `EVENTS` has happened between two measurements, over all spaces, int32.

    Args:
        before: what units were.
        now: what they are.
        touched: which units an intervention has changed in between.
    """

    def total(event: str) -> jax.Array:
        return sum((jnp.sum(_happened(event, before[s], now[s]), dtype=jnp.int32) for s in now), jnp.int32(0))

    counts = {event: total(event) for event in EVENTS[:-1]}
    counts["reset"] = sum((jnp.sum(units, dtype=jnp.int32) for units in (touched or {}).values()), jnp.int32(0))
    return counts


def _happened(event: str, before: jax.Array, now: jax.Array) -> jax.Array:
    """Units of which this can be said between two measurements."""
    kind = {"died": Status.DEAD, "revived": Status.DEAD, "saturated": Status.SATURATED}.get(event, Status.NEAR_CLONE)
    was, is_now = before == kind, now == kind
    return was & ~is_now if event in ("revived", "freed") else is_now & ~was


def _check_statuses(status: Mapping[str, Any]) -> None:
    for space, now in status.items():
        check_numbers(f"status of {space}", now, ranks=1)
        if not jnp.issubdtype(now.dtype, jnp.integer):
            raise ValueError(f"status of {space} has dtype {now.dtype}: must be integers, numbers of Status")


class LifeTable(NamedTuple):
    """The lives of all units of one run, measurement after measurement.

    Attributes:
        steps: steps of the measurements, `(records,)`.
        status: by unit space, `(records, units)`.
        touched: likewise, whether an intervention changed the unit since the measurement before.
    """

    steps: np.ndarray
    status: dict[str, np.ndarray]
    touched: dict[str, np.ndarray]


def lives_as_text(status: ArrayLike, touched: ArrayLike | None = None) -> str:
    """The units of one space as a string for a record, a letter each.

    Args:
        status: numbers of `Status`, `(units,)`.
        touched: which units an intervention has changed since the record before; None for none.

    Raises:
        ValueError: not one status per unit, or others than are touched.

    Example:
        >>> lives_as_text([0, 3, 2, -1], [False, True, False, False])
        'aDcu'
    """
    numbers = np.asarray(status)
    capitals = np.zeros(numbers.shape, bool) if touched is None else np.asarray(touched)
    _check_statuses({"the space": numbers})
    check_per_unit(status=numbers, touched=capitals)
    letters = [LETTERS[Status(int(number))] for number in numbers]
    return "".join(one.upper() if is_touched else one for one, is_touched in zip(letters, capitals, strict=True))


def lives_of_records(records: Sequence[Mapping[str, Any]]) -> LifeTable | None:
    """The lives of the units of one network from its records, in their order; None where they tell nothing of units.

    Args:
        records: records of one lane, with `step` and, for every space, `lives/<space>` as `lives_as_text` writes it.

    Raises:
        ValueError: letters that mean nothing, or numbers of units that change.
    """
    told = [record for record in records if any(name.startswith(RECORDED) for name in record)]
    if not told:
        return None
    steps, status, touched = np.array([record["step"] for record in told]), {}, {}
    numbers = {letter: int(one) for one, letter in LETTERS.items()}
    for name in (name for name in told[0] if name.startswith(RECORDED)):
        rows = [record.get(name, "") for record in told]
        unknown = set("".join(rows).lower()) - set(numbers)
        if unknown or len(set(map(len, rows))) > 1:
            lengths = sorted(set(map(len, rows)))
            raise ValueError(f"{name}: {lengths} units and letters {sorted(unknown)}: must be as many in every record")
        space = name.removeprefix(RECORDED)
        status[space] = np.array([[numbers[letter.lower()] for letter in row] for row in rows], np.int8)
        touched[space] = np.array([[letter.isupper() for letter in row] for row in rows])
    return LifeTable(steps, status, touched)


def save_lives(table: LifeTable, path: Path | str) -> Path:
    """Write a table as one npz file, `lives.npz` beside a run: what `python -m lopjax doctor` draws."""
    path = Path(path)
    arrays = {f"status/{space}": array for space, array in table.status.items()}
    arrays |= {f"touched/{space}": array for space, array in table.touched.items()}
    with path.open("wb") as file:
        np.savez_compressed(file, steps=table.steps, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def load_lives(path: Path | str) -> LifeTable:
    """Read what `save_lives` has written.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or arrays that do not go together.
    """
    with np.load(Path(path), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if "steps" not in arrays:
        raise ValueError(f"{path}: holds {sorted(arrays)} and no 'steps': not the lives of units")
    parts = {
        kind: {name.removeprefix(f"{kind}/"): array for name, array in arrays.items() if name.startswith(f"{kind}/")}
        for kind in ("status", "touched")
    }
    num = len(arrays["steps"])
    wrong = [name for part in parts.values() for name, array in part.items() if array.ndim != 2 or len(array) != num]
    if wrong:
        raise ValueError(f"{path}: {num} steps, and of {wrong} other numbers of records")
    return LifeTable(arrays["steps"], parts["status"], parts["touched"])
