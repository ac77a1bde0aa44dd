"""A config, a complete run of it, and what is in a folder: for the tests of run folders."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lopjax import runs
from lopjax.runs import open_run


@dataclass(frozen=True)
class Net:
    widths: tuple[int, ...] = (3, 3)


@dataclass(frozen=True)
class Config:
    seeds: tuple[int, ...] = (0, 1)
    rate: float = 0.1
    net: Net = field(default_factory=Net)
    folder: Path = Path("somewhere")


def complete(folder: Path, config: Any = None) -> runs.Run:
    run = open_run(folder, config or Config())
    run.append({"seed": 0, "step": 1, "loss": 0.5})
    run.finish({"verdict": "fine"})
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
