"""What determines the numbers of a run: its config, package versions and the git revision."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from lopjax.runs.plain import plain, tagged, untagged

PACKAGES = ("lopjax", "jax", "jaxlib", "flax", "optax", "numpy", "matfree")


def config_hash(config: Mapping[str, Any]) -> str:
    """SHA-256 of `canonical(config)`: equal configs, equal hash."""
    return hashlib.sha256(canonical(config).encode()).hexdigest()


def canonical(config: Mapping[str, Any]) -> str:
    """The text by which configs are compared: 1, 1.0 and True differ, as do 0.0 and -0.0, inf and None."""
    return json.dumps(plain(untagged(config), "config", tagged), sort_keys=True)


def environment() -> dict[str, Any]:
    """Versions of Python and packages and the git revision, as recorded in `config.json`."""
    return {"python": sys.version.split()[0], "versions": versions(), "git": _git_revision()}


def versions() -> dict[str, str | None]:
    """Version of each package that affects the bits of a result; None if it is not installed."""
    installed: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed[package] = None
    return installed


def _git_revision() -> str | None:
    """Commit of the checkout this file is in, `-dirty` if tracked files differ; None outside a checkout."""
    path = Path(__file__)
    # If installed in an environment inside another repository, this file is not part of that repository.
    is_tracked = _git("ls-files", "--error-unmatch", path.name, folder=path.parent) is not None
    return (
        _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", folder=path.parent)
        if is_tracked
        else None
    )


def _git(*arguments: str, folder: Path) -> str | None:
    """The output of git; None if it fails or is not installed."""
    try:
        process = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()
