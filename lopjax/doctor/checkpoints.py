"""Read checkpoints of other programs: flat or nested npz, Flax msgpack, orbax; and check that they fit a network."""

import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lopjax.model import Model, Variables
from lopjax.runs import checkpoints

_SEPARATORS = re.compile(r"[/.]|\['|'\]|\[|\]")

Flat = dict[tuple[str, ...], Any]


class MismatchError(ValueError):
    """A checkpoint that does not match the network; the message names every array that differs."""


def read_arrays(path: Path) -> Flat:
    """All arrays of a checkpoint, by path.

    npz archives may be ours, or anyone's whose names say where an array belongs, with any of `/ . ['']` between the
    parts: `params/hidden_0/kernel`. Files that end in `.msgpack` are those of `flax.serialization`, folders of orbax.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: a kind of file that is not known, or that cannot be read; a package that is missing.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        return _flat(_orbax(path))
    if path.suffix == ".npz":
        return _npz(path)
    if path.suffix in (".msgpack", ".flax"):
        from flax import serialization

        try:
            return _flat(serialization.msgpack_restore(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not a msgpack file of Flax ({error})") from error
    raise ValueError(f"{path}: not a run folder, nor .npz, .msgpack or a folder of orbax")


def _npz(path: Path) -> Flat:
    arrays = read_npz(path, str(path))
    if checkpoints.HEADER in arrays:
        return _flat(checkpoints.read(path)[0])
    return {tuple(filter(None, _SEPARATORS.split(name))): array for name, array in arrays.items()}


def read_npz(path: Path, where: str) -> dict[str, np.ndarray]:
    """All arrays of an npz archive.

    Raises:
        ValueError: another kind of file, a damaged one, or objects in it; the message begins with `where`.
    """
    try:
        # Opened here: of a damaged archive NumPy would leave the file open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{where}: not an npz archive of arrays, or damaged ({error})") from error


def _orbax(path: Path) -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ValueError(f"{path}: a folder; if orbax wrote it, `pip install orbax-checkpoint` first") from error
    try:
        # As NumPy arrays: a checkpoint of eight devices is read on one.
        with ocp.PyTreeCheckpointer() as reader:
            tree = reader.metadata(path.resolve()).item_metadata
            kinds = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), dict(tree))
            return reader.restore(path.resolve(), restore_args=kinds)
    except (ValueError, FileNotFoundError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: neither a run folder nor a checkpoint of orbax ({error})") from error


def _flat(tree: Any, above: tuple[str, ...] = ()) -> Flat:
    if isinstance(tree, Mapping):
        return {path: leaf for key, item in tree.items() for path, leaf in _flat(item, (*above, str(key))).items()}
    if isinstance(tree, (list, tuple)):
        return {path: leaf for key, item in enumerate(tree) for path, leaf in _flat(item, (*above, str(key))).items()}
    return {} if tree is None else {above: tree}


def matched(arrays: Flat, expected: Any, where: str) -> Any:
    """The arrays as a tree like the expected one.

    A collection above all arrays (`params`) may be missing in the checkpoint, or be there where bare parameters are
    expected, and whatever else it holds (the state of an optimizer) is left aside if it lies beside what is wanted.

    Args:
        arrays: result of `read_arrays`.
        expected: a tree of arrays or shapes.
        where: what the message calls the checkpoint.

    Raises:
        MismatchError: missing arrays, arrays of another shape or that are no numbers, and arrays that the network does
            not have, one per line.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(expected)
    by_path = {tuple(_name(key) for key in keys): leaf for keys, leaf in leaves}
    collections = {path[0] for path in by_path}
    given = _wanted(arrays, collections)
    lines = {path: f"missing: {_path(path)} {tuple(leaf.shape)}" for path, leaf in by_path.items() if path not in given}
    for path, array in given.items():
        if path not in by_path:
            lines[path] = f"not in the network: {_path(path)} {np.shape(array)}"
            continue
        kind, wanted = np.asarray(array).dtype, by_path[path]
        if np.shape(array) != tuple(wanted.shape):
            lines[path] = f"shape: {_path(path)} is {np.shape(array)}, the network has {tuple(wanted.shape)}"
        elif jax.numpy.issubdtype(wanted.dtype, np.floating) and not jax.numpy.issubdtype(kind, np.floating):
            lines[path] = f"type: {_path(path)} is {kind}, the network has {wanted.dtype}"
        elif not jax.numpy.issubdtype(kind, np.number):
            lines[path] = f"type: {_path(path)} is {kind}, no numbers"
    if lines or not given:
        differ = sum(path in by_path for path in lines)
        head = (
            f"{where} does not match the network: {differ} of its {len(by_path)} arrays are not there as they should be"
        )
        raise MismatchError("\n  ".join([head, *lines.values(), *([] if given else [f"it holds {_names(arrays)}"])]))
    return structure.unflatten([jax.numpy.asarray(given[path]) for path in by_path])


def _wanted(arrays: Flat, collections: set[str]) -> Flat:
    """Of a checkpoint, the arrays that lie where the network's do."""
    is_there = any(path[0] in collections for path in arrays)
    if not is_there and "params" in collections:
        arrays = {("params", *path): array for path, array in arrays.items()}
    elif not is_there:  # bare parameters are wanted; a Linen network saves them below one or two `params`
        below = arrays
        while below and not any(path[0] in collections for path in below):
            below = {path[1:]: array for path, array in below.items() if path[0] == "params" and len(path) > 1}
        arrays = below or arrays
    return {path: array for path, array in arrays.items() if path[0] in collections}


def variables_of(arrays: Flat, model: Model, where: str) -> Variables:
    """The variables of a network from a checkpoint; raises as `matched`."""
    return matched(arrays, jax.eval_shape(model.init, jax.random.key(0)), where)


def _name(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def _path(path: tuple[str, ...]) -> str:
    return "/".join(path)


def _names(arrays: Flat) -> str:
    names = [_path(path) for path in arrays]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
