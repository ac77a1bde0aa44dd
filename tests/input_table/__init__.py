"""A table, public function by kind of input: each cell is called, and is right or one sentence.

A row is a function of named arrays (`Row`); what the arrays are, and what can be wrong with them, is its `Subject`,
which rows share. `failures` calls one cell and says what is false in it.
"""

import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lopjax

TYPES = ("bfloat16", "float16", "float32", "float64", "int32")
VALUES = (*TYPES, "tiny", "huge", "no samples", "no units", "one sample", "one unit")
"""Axes along which a result must be that of double precision, or a sentence."""

BROKEN = ("nan", "inf")
"""Axes along which a result must not be finite, or undecided, or a sentence."""

REFUSED = ("wrong width", "wrong rank", "strings", "labels")
"""Axes along which nothing but a sentence will do."""

AXES = (*VALUES, *BROKEN, *REFUSED)
SCALES = {"tiny": 2.0**-40, "huge": 2.0**40}
_LIBRARY = str(Path(lopjax.__file__).parent)
_SAYS_WHAT_TO_DO = re.compile(
    r"must|give|pass|use|make|call|take|needs?|choose|at least|add|begin|leave|correct|expect"
)


@dataclass(frozen=True)
class Subject:
    """The arrays that the functions of some rows are called with, and what can be changed about them.

    Attributes:
        arrays: by name; floating-point ones hold small integers, which every type holds exactly.
        cast: arrays whose type is changed; all that are floating-point if not given.
        integers: those of them that may be integers.
        scaled: arrays that are made tiny and huge.
        samples: the axis of samples of the arrays that have one; likewise of units, and of a width that only one
            length fits.
        units: see there.
        width: see there.
        carriers: arrays that get NaN or infinity, one at a time.
        numbers: arrays that are given as strings, one at a time.
        ranked: arrays that get an axis too many, and lose all, one at a time.
        labels: the array of classes.
        excused: axes that make no sense here, and why.
    """

    arrays: Mapping[str, Any]
    cast: tuple[str, ...] | None = None
    integers: tuple[str, ...] | None = None
    scaled: tuple[str, ...] = ()
    samples: Mapping[str, int] = field(default_factory=dict)
    units: Mapping[str, int] = field(default_factory=dict)
    width: Mapping[str, int] = field(default_factory=dict)
    carriers: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    ranked: tuple[str, ...] = ()
    labels: str | None = None
    excused: Mapping[str, str] = field(default_factory=dict)

    def cases(self, axis: str, usual: Any = np.float32) -> Iterator[dict[str, Any]]:
        """The arrays as this axis gives them, of the usual type but where types are the axis; several ways of some."""
        base = {name: np.asarray(each) for name, each in self.arrays.items()}
        floats = tuple(name for name, each in base.items() if each.dtype.kind == "f")
        cast = floats if self.cast is None else self.cast
        single = base | {name: base[name].astype(usual) for name in cast}
        if axis in TYPES:
            names = cast if axis != "int32" or self.integers is None else self.integers
            yield base_of(single, names, axis)
        elif axis in SCALES and self.scaled:
            yield single | {name: single[name] * usual(SCALES[axis]) for name in self.scaled}
        elif axis in ("no samples", "one sample", "no units", "one unit"):
            axes, count = getattr(self, axis.split()[1].rstrip("s") + "s"), int(axis.startswith("one"))
            if axes:
                yield single | {name: np.take(single[name], range(count), each) for name, each in axes.items()}
        elif axis in BROKEN:
            for name in self.carriers:
                yield single | {name: broken(single[name], float(axis))}
        elif axis == "wrong width":
            for name, each in self.width.items():
                yield single | {name: np.take(single[name], range(single[name].shape[each] - 1), each)}
        elif axis == "wrong rank":
            for name in self.ranked:
                yield single | {name: np.stack([single[name]] * 2, axis=-1)}
                if single[name].ndim:
                    yield single | {name: single[name].ravel()[0]}
        elif axis == "strings":
            for name in self.numbers:
                yield single | {name: single[name].astype(str)}
                yield single | {name: "ab"}
        elif axis == "labels" and self.labels:
            given = single[self.labels]
            wrong = {"halves": given + 0.5, "one-hot": np.eye(2, dtype=np.float32)[given], "beyond": given + 7}
            wrong |= {"below": given - 1, "too few": given[:-1], "one for all": given[:1], "column": given[:, None]}
            yield from (single | {self.labels: each} for each in wrong.values())


def base_of(arrays: Mapping[str, np.ndarray], names: tuple[str, ...], dtype: str) -> dict[str, Any]:
    """The arrays, those that are named in another type."""
    return dict(arrays) | {name: arrays[name].astype(jnp.dtype(dtype)) for name in names}


def broken(array: np.ndarray, value: float) -> np.ndarray:
    """The same with one entry that is not finite."""
    array = array.copy()
    array[(0,) * array.ndim] = value
    return array


@dataclass(frozen=True)
class Row:
    """A public function, as a function of a subject's arrays.

    Attributes:
        call: what is called, with the arrays in their order; it returns arrays, numbers or a tree of them.
        subject: of what.
        excused: axes that make no sense for this function, and why; they add to the subject's own.
        allowed: axes along which a value that double precision or common sense would not give is right, and why.
        rtol: what is allowed besides rounding, relative to the largest expected number.
        half: the same for 16-bit input, of which something is computed in its own type.
        usual: the type of the floats where types are not the axis.
        is_judge: NaN stands for "undecided", which no coarser type contradicts.
    """

    call: Callable[..., Any]
    subject: Subject
    excused: Mapping[str, str] = field(default_factory=dict)
    allowed: Mapping[str, str] = field(default_factory=dict)
    rtol: float = 0.0
    half: float = 0.0
    usual: Any = np.float32
    is_judge: bool = False

    def reason(self, axis: str) -> str | None:
        """Why there is nothing to call along an axis."""
        return {**self.subject.excused, **self.excused}.get(axis)


def flat(result: Any) -> np.ndarray:
    """All numbers of a result as one vector of double precision."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result) if leaf is not None]
    leaves = [np.zeros(leaf.shape) if leaf.dtype.kind in "US" else leaf for leaf in leaves]  # strings handed back
    return np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in leaves] or [np.zeros(0)])


def precision(result: Any, given: Mapping[str, Any]) -> float:
    """The coarsest rounding among the floats of a result, single precision at least if none was given in double."""
    types = [np.asarray(leaf).dtype for leaf in jax.tree.leaves(result) if leaf is not None]
    inputs = [np.asarray(leaf).dtype for leaf in given.values()]
    finest = 1e-15 if all(each != np.float32 for each in inputs) else float(np.finfo(np.float32).eps)
    if any(jnp.issubdtype(each, jnp.floating) and each.itemsize == 2 for each in inputs):
        finest = float(np.finfo(np.float32).eps)
    return max([finest, *(float(jnp.finfo(each).eps) for each in types if jnp.issubdtype(each, jnp.floating))])


def in_double_precision(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same numbers, those of floating point in float64."""
    is_float = lambda each: jnp.issubdtype(np.asarray(each).dtype, jnp.floating)  # noqa: E731
    return {name: np.asarray(each, np.float64) if is_float(each) else each for name, each in given.items()}


def sentence(error: BaseException) -> str | None:
    """What is wrong with an error as a sentence for users; None if nothing is."""
    message, frames = str(error), traceback.extract_tb(error.__traceback__)
    kind = f"{type(error).__name__}: {message[:200]!r}"
    own = type(error).__module__ == "builtins" or type(error).__module__.startswith("lopjax")
    if not isinstance(error, ValueError | TypeError) or isinstance(error, UnicodeError) or not own:
        return f"not an error of ours, {kind}"
    if not frames[-1].filename.startswith(_LIBRARY):
        return f"raised in {frames[-1].filename}, {kind}"
    if "\n" in message or not 15 <= len(message) <= 450 or not _SAYS_WHAT_TO_DO.search(message):
        return f"no sentence that says what to do, {kind}"
    return None


def _nearly_infinite(array: Any) -> Any:
    array = np.asarray(array)
    return np.where(np.isinf(array), np.sign(array) * 2.0**500, array) if array.dtype.kind == "f" else array


def outcome(row: Row, given: Mapping[str, Any]) -> Any:
    """What a call returns, or the error that it raises."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error")
        try:
            return jax.device_get(row.call(*given.values()))
        except Exception as error:
            return error


def failures(row: Row, axis: str) -> list[str]:
    """What is false in a cell: nothing, if every way of giving such input is right or one sentence."""
    cases = list(row.subject.cases(axis, row.usual))
    if not cases:
        return [f"{axis}: nothing to call, and no reason why"]
    found = []
    for number, given in enumerate(cases):
        result = outcome(row, given)
        problem = sentence(result) if isinstance(result, BaseException) else _falsehood(row, axis, given, result)
        if isinstance(result, BaseException) and axis == np.dtype(row.usual).name and axis not in row.allowed:
            problem = problem or f"ordinary input is refused: {result}"
        if problem:
            found.append(f"{axis}[{number}]: {problem}")
    return found


def _falsehood(row: Row, axis: str, given: Mapping[str, Any], result: Any) -> str | None:
    """What is wrong with a value."""
    if axis in row.allowed:
        return None
    found = flat(result)
    if axis in REFUSED:
        # Under jit nothing can be refused for its values: there NaN says it.
        return None if np.isnan(found).any() else f"accepted: {found[:4]}"
    if axis in BROKEN:
        if not np.isfinite(found).all():
            return None
        # Infinity may have a meaning: what the largest numbers approach.
        limit = {name: _nearly_infinite(each) for name, each in in_double_precision(given).items()}
        expected = None if axis == "nan" else outcome(row, limit)
        if expected is None or isinstance(expected, BaseException) or flat(expected).shape != found.shape:
            return f"finite: {found[:6]}"
        return (
            None
            if np.allclose(found, flat(expected), rtol=1e-4, atol=1e-5)
            else f"{found[:4]} for {flat(expected)[:4]}"
        )
    other = in_double_precision(given) if axis != "float64" else base_of(given, tuple(given_floats(given)), "float32")
    wide = outcome(row, other)
    if isinstance(wide, BaseException) and axis == "float64" and row.usual == np.float64 and sentence(wide) is None:
        return None if np.isfinite(found).all() else f"not finite: {found[:4]}"  # coarser types are refused by name
    if isinstance(wide, BaseException):
        return f"a value, but in another precision {type(wide).__name__}: {str(wide)[:150]}"
    expected = flat(wide)
    if found.shape != expected.shape:
        return f"{found.shape} numbers for {expected.shape}"
    if row.is_judge:
        known = ~np.isnan(found) & ~np.isnan(expected)
        found, expected = found[known], expected[known]
    eps = precision(result, given) if axis != "float64" else precision(wide, other)
    is_half = any(np.asarray(each).dtype.itemsize == 2 for each in given.values())
    tolerance = 32 * eps + row.rtol + (row.half if is_half else 0)
    finite = expected[np.isfinite(expected)]
    size = np.abs(finite).max(initial=0)
    with np.errstate(all="ignore"):
        # What single precision cannot hold is infinite or 0 there.
        limits = np.finfo(np.float32)
        leaves = map(np.asarray, jax.tree.leaves(result))
        floats = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
        is_single = axis != "float64" and all(each.itemsize <= 4 for each in floats)
        expected = (
            np.where(np.abs(expected) > limits.max, np.sign(expected) * np.inf, expected) if is_single else expected
        )
        is_close = np.isclose(found, expected, rtol=tolerance, atol=tolerance * min(size, limits.max), equal_nan=True)
    return None if is_close.all() else f"{found[~is_close][:4]} for {expected[~is_close][:4]}"


def given_floats(given: Mapping[str, Any]) -> Iterator[str]:
    """Names of the arrays of floating point."""
    return (name for name, each in given.items() if jnp.issubdtype(np.asarray(each).dtype, jnp.floating))
