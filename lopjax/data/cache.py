"""Decoded arrays on disk: one file per data set, written once, safe against crashes and concurrent writers."""

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

Arrays = Mapping[str, np.ndarray]


def load_or_build(filename: str, folders: Sequence[Path], build: Callable[[], Arrays]) -> Arrays:
    """The arrays stored as `filename` in the first of `folders` that has it; built and stored if none does.

    The file is an uncompressed `.npz`, whose checksums are verified by reading it: a truncated or altered file
    is reported, rebuilt and replaced. It is written to the first writable folder under a temporary name and
    renamed, so a reader never sees an incomplete file; of several writers the last one wins, with equal content.

    Args:
        filename: name of the file; must change whenever the content does.
        folders: folders to search and, in the same order, to try to write to; created when needed.
        build: makes the arrays.
    """
    for folder in folders:
        if (arrays := _read(folder / filename)) is not None:
            return arrays
    arrays = build()
    if not any(_write(folder / filename, arrays) for folder in folders):
        places = " and ".join(map(str, folders))
        warnings.warn(
            f"Decoded images could not be stored in {places}, so every run decodes them again; "
            "pass cache_dir=, a writable folder with enough space.",
            stacklevel=2,
        )
    return arrays


def user_cache_folder() -> Path:
    """`$XDG_CACHE_HOME/lopjax`, by default `~/.cache/lopjax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lopjax"


def _read(path: Path) -> Arrays | None:
    try:
        with path.open("rb") as file, np.load(file) as archive:
            return {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        return None
    except Exception as error:
        # A damaged zip directory can raise almost any exception: one flipped bit makes `zipfile` ask for a password.
        warnings.warn(f"Rebuilding {path}, which cannot be read ({error}).", stacklevel=3)
        return None


def _write(path: Path, arrays: Arrays) -> bool:
    if not _is_writable(path.parent):
        return False
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".npz", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, allow_pickle=False, **arrays)
        # NamedTemporaryFile is private to its owner; a cache next to shared data is for everyone who reads them.
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError:
        return False
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return True


def _is_writable(folder: Path) -> bool:
    """Whether permissions allow writing: an administrator could write to a read-only folder, but should not."""
    while not folder.exists():
        folder = folder.parent
    return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)
