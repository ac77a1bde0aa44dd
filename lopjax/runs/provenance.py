"""What the numbers of a run follow from: its config, package versions and the git revision."""

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
    """The text that says whether two configs are the same: 1, 1.0 and True differ, as do 0.0 and -0.0, inf and None."""
    return json.dumps(plain(untagged(config), "config", tagged), sort_keys=True)


def environment() -> dict[str, Any]:
    """Python, packages and git revision, as `config.json` records them."""
    return {"python": sys.version.split()[0], "versions": versions(), "git": _git_revision()}


def versions() -> dict[str, str | None]:
    """Version of each package that decides the bits of a result; None if it is not installed."""
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
    # Installed into an environment inside somebody's repository, this file is not part of it.
    is_tracked = _git("ls-files", "--error-unmatch", path.name, folder=path.parent) is not None
    return (
        _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", folder=path.parent)
        if is_tracked
        else None
    )


def _git(*arguments: str, folder: Path) -> str | None:
    """What git prints; None if it fails or is not installed."""
    try:
        process = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()
