"""Checkpoints: one file that is either complete or absent, states what it belongs to, and detects flipped bits.

A checkpoint is an uncompressed npz archive `step_<number>.npz`: one member per array, named by its path in the tree,
and a JSON header. Members carry CRC-32 checksums, checked whenever they are read. Random keys are stored as their data,
and types that NumPy lacks (bfloat16) as unsigned integers of the same width; both are restored to their types. Nothing
is pickled, nothing is cast: a tree is restored to the same bits or not at all. Python numbers are restored as such, and
64-bit arrays, if JAX would truncate them to 32 bits, as NumPy arrays. Any other leaf is refused by name.

It is written under a temporary name, flushed to disk and renamed, so a crash at any moment leaves the older ones
intact.
"""

import json
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from lopjax.runs.plain import plain, short

HEADER = "header"
FORMAT = 1
_NAME = re.compile(r"step_(\d+)\.npz")


class CheckpointError(ValueError):
    """A checkpoint that must not be used: it is damaged or belongs to something else; the message says which."""


class Restored(NamedTuple):
    """A checkpoint read back.

    Attributes:
        step: the step that it was saved under.
        tree: the state, on the default device.
        header: the header stored with it.
        refused: newer checkpoints that could not be used, each with its reason.
    """

    step: int
    tree: PyTree
    header: dict[str, Any]
    refused: tuple[str, ...]


def save(folder: Path | str, step: int, tree: PyTree, header: Mapping[str, Any], keep: int = 2) -> Path:
    """Write the checkpoint of a step and remove all but the newest.

    Args:
        folder: the folder; created if it does not exist.
        step: number of the checkpoint, at least 0; larger is newer.
        tree: arrays and random keys, fully addressable by this process.
        header: JSON values; `restore` compares some of them to decide whether the file may be used.
        keep: number of newest checkpoints to keep, this one included.

    Returns:
        The file.

    Raises:
        ValueError: `step` is negative, `keep` is not positive, or `header` contains values that JSON cannot represent.
        CheckpointError: a leaf of the tree cannot be saved (a string, an object); the message names it. Nothing is
            written.
        OSError: it could not be written (disk full); older checkpoints are intact.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step={step}, keep={keep}: step must be at least 0, keep at least 1")
    folder = Path(folder)
    path = folder / f"step_{step}.npz"
    write(path, tree, header, step)
    for old, _ in list(_newest_first(folder))[keep:]:
        old.unlink(missing_ok=True)
    return path


def write(path: Path, tree: PyTree, header: Mapping[str, Any], step: int = 0) -> None:
    """Write a tree as one file, atomically; arguments as in `save`. The folder is created if it does not exist."""
    described, arrays = _described(tree)
    text = json.dumps(
        {"format": FORMAT, "step": step, "leaves": described, "header": plain(header, "header")}, allow_nan=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    try:
        with temporary.open("wb") as file:
            # The keyword arguments of savez could collide with array names; numbers cannot.
            members: dict[str, Any] = {str(index): array for index, array in enumerate(arrays)}
            np.savez(file, **{HEADER: np.frombuffer(text.encode(), np.uint8), **members})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def read(path: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a file of nested dictionaries of arrays, such as variables, without knowing their structure.

    Returns:
        The dictionaries, on the default device (but see above for 64 bits), and the header.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is damaged, or its tree is not made of nested
            dictionaries.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    stored, arrays = _archive(path)
    tree: dict[str, Any] = {}
    for array, leaf in zip(arrays, stored["leaves"]):
        names = re.findall(r"\['([^']*)'\]", leaf["path"])
        if "".join(f"['{name}']" for name in names) != leaf["path"]:
            raise CheckpointError(f"{path}: holds {leaf['path']}, which is not in nested dictionaries; use restore")
        inner = tree
        for name in names[:-1]:
            inner = inner.setdefault(name, {})
        inner[names[-1]] = _encoded(array, leaf)
    return tree, stored["header"]


def same_bits(one: Any, other: Any) -> bool:
    """Whether two arrays agree in type, shape and every bit; a NaN equals itself, 0.0 and -0.0 differ."""
    one, other = np.asarray(one), np.asarray(other)
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def restore(folder: Path | str, like: Callable[[int], PyTree], expected: Mapping[str, Any]) -> Restored | None:
    """Read the newest checkpoint that is intact and matches.

    Args:
        folder: the folder of the checkpoints.
        like: from a step to a tree with the expected structure, shapes and types (arrays, or the result of
            `jax.eval_shape`).
        expected: header values that must agree: the hash of the config, the version.

    Returns:
        The checkpoint, with the reasons why newer ones were skipped; None if the folder has none.

    Raises:
        CheckpointError: there are checkpoints and none can be used; the message lists the reasons.
    """
    refused: list[str] = []
    for path, step in _newest_first(Path(folder)):
        try:
            tree, header = _read(path, step, like, expected)
        except CheckpointError as error:
            refused.append(str(error))
            continue
        return Restored(step, tree, header, tuple(refused))
    if refused:
        raise CheckpointError("no checkpoint can be used: " + "; ".join(refused))
    return None


def remove(folder: Path | str) -> None:
    """Remove all checkpoints of a folder, and the folder if nothing else is in it."""
    folder = Path(folder)
    if not folder.is_dir():
        return
    for path in (*folder.glob("step_*.npz"), *folder.glob("step_*.npz.partial")):
        path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


# Errors from reading a damaged archive: each says that the file, not the program, is at fault.
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError, SyntaxError)


def _read(
    path: Path, step: int, like: Callable[[int], PyTree], expected: Mapping[str, Any]
) -> tuple[PyTree, dict[str, Any]]:
    """One checkpoint as a tree, or the reason why not."""
    stored, arrays = _archive(path)
    if stored["step"] != step:
        raise CheckpointError(f"{path}: is the checkpoint of step {stored['step']} under another name")
    header = stored["header"]
    for name, value in plain(expected, "expected").items():
        if header.get(name) != value:
            raise CheckpointError(f"{path}: belongs to {name} {header.get(name)!r}, not to {name} {value!r}")
    leaves, structure = jax.tree_util.tree_flatten_with_path(like(step))
    wanted = [_description(keys, leaf) for keys, leaf in leaves]
    if stored["leaves"] != wanted:
        different = [pair for pair in zip(stored["leaves"], wanted) if pair[0] != pair[1]]
        what = f"{different[0][0]} there, {different[0][1]} wanted" if different else "one has more arrays"
        raise CheckpointError(f"{path}: holds {len(arrays)} arrays for {len(wanted)} wanted, of another model ({what})")
    restored = [_encoded(array, one) for array, one in zip(arrays, stored["leaves"])]
    # Python numbers are restored as such: as arrays they would promote to other types differently.
    restored = [array.item() if _is_python_number(leaf) else array for array, (_, leaf) in zip(restored, leaves)]
    return structure.unflatten(restored), header


def _archive(path: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The header and the arrays of a file, with every checksum verified."""
    try:
        # Opened here, because NumPy leaves a file open that is not an archive.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            stored = _header(archive)
            return stored, [archive[str(index)] for index in range(len(stored["leaves"]))]
    except _DAMAGE as error:
        raise CheckpointError(f"{path}: damaged ({type(error).__name__}: {error})") from error


def _header(archive: Any) -> dict[str, Any]:
    stored = json.loads(archive[HEADER].tobytes().decode())
    if stored["format"] != FORMAT:
        raise ValueError(f"format {stored['format']}, this version reads {FORMAT}")
    return stored


def _described(tree: PyTree) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """A description of each leaf in JSON, and its bits as an array of a NumPy type."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [_description(keys, leaf) for keys, leaf in leaves], [_bits(leaf) for _, leaf in leaves]


def _description(keys: Any, leaf: Any) -> dict[str, Any]:
    path = jax.tree_util.keystr(keys)
    shape, dtype = _type_of(leaf)
    if dtype is None or not (_is_key(dtype) or _is_plain(dtype)):
        raise CheckpointError(
            f"{path or 'the tree'}: {short(leaf)} of type {type(leaf).__name__} cannot be saved; allowed are numbers "
            "of at most 64 bits, arrays of them, and random keys"
        )
    return {"path": path, "shape": list(shape), "dtype": str(dtype)}


def _type_of(leaf: Any) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of an array or shape structure; the dtype is None for anything but numbers and arrays."""
    if _is_python_number(leaf):
        return (), np.asarray(leaf).dtype
    if isinstance(leaf, np.ma.MaskedArray):
        return (), None  # its mask would be lost
    return getattr(leaf, "shape", ()), getattr(leaf, "dtype", None)


def _is_python_number(leaf: Any) -> bool:
    return isinstance(leaf, (bool, int, float, complex)) and not isinstance(leaf, np.generic)


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def _is_plain(dtype: Any) -> bool:
    """Whether a dtype is numeric and fully described by its name.

    This excludes strings, dates, objects, records, foreign byte orders, and long doubles, whose width depends on the
    platform.
    """
    try:
        is_number = dtype.kind in "biufcV" and dtype.char not in "gG"
        return is_number and dtype.isnative and jnp.dtype(str(dtype)) == dtype
    except TypeError:
        return False


def _bits(leaf: Any) -> np.ndarray:
    if hasattr(leaf, "dtype") and _is_key(leaf.dtype):
        return np.asarray(jax.random.key_data(leaf))
    array = np.asarray(leaf)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.kind == "V" else array


def _encoded(array: np.ndarray, description: Mapping[str, Any]) -> Any:
    """The inverse of `_bits`: a JAX array if JAX has the type, otherwise (64 bits without x64) a NumPy array."""
    name = description["dtype"]
    if name.startswith("key<"):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=_IMPLEMENTATIONS[name])
    dtype = jnp.dtype(name)
    exact = array.view(dtype) if array.dtype != dtype else array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX would only warn about truncation: checked here
        has_type = jax.dtypes.canonicalize_dtype(dtype) == dtype
    return jnp.asarray(exact) if has_type else exact[()]


# How JAX prints the type of a key, and the name of its implementation.
_IMPLEMENTATIONS = {
    "key<fry>": "threefry2x32",
    "key<phx2>": "philox2x32",
    "key<phx4>": "philox4x32",
    "key<rbg>": "rbg",
    "key<urbg>": "unsafe_rbg",
}


def _newest_first(folder: Path) -> Iterator[tuple[Path, int]]:
    numbered = [(path, int(match[1])) for path in folder.glob("step_*.npz") if (match := _NAME.fullmatch(path.name))]
    yield from sorted(numbered, key=lambda pair: -pair[1])


def _sync(folder: Path) -> None:
    """Flush the folder's own entry, so that the rename survives a power failure; not every system supports this."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
