"""Axes of a grid: `--grid noise_scale=0.01,0.02,0.05`, once per axis."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import UseAppendAction


@dataclass(frozen=True)
class Axis:
    """One axis of a grid over numbers."""

    name: str
    """The field of the config."""
    values: tuple[float, ...]
    """The values that it takes."""

    def __str__(self) -> str:
        """The axis as on the command line."""
        return f"{self.name}={','.join(map(repr, self.values))}"


Grid = Annotated[tuple[Axis, ...], UseAppendAction]


def read_axis(text: str) -> Axis:
    """Read an axis from the command line.

    Raises:
        ValueError: it is not `name=number,number,...`.

    Example:
        >>> read_axis("noise_scale=0.01,0.02")
        Axis(name='noise_scale', values=(0.01, 0.02))
    """
    name, equals, values = text.partition("=")
    try:
        numbers = tuple(float(value) for value in values.split(","))
    except ValueError:
        numbers = ()
    if not (name and equals and numbers):
        raise ValueError(f"{text!r}: must be a field and numbers, noise_scale=0.01,0.02")
    return Axis(name.strip().replace("-", "_"), numbers)


def axes_of(config: Any) -> list[tuple[str, tuple[float, ...]]]:
    """The axes of a config, a dataclass or the JSON of a run folder; empty if it has no grid."""
    grid = config.get("grid", ()) if isinstance(config, Mapping) else config.grid
    axes = [dataclasses.asdict(axis) if isinstance(axis, Axis) else axis for axis in grid]
    return [(axis["name"], tuple(axis["values"])) for axis in axes]


def check_grid(grid: tuple[Axis, ...], allowed: tuple[str, ...]) -> None:
    """Refuse a grid that cannot be run as lanes of one program, before anything is compiled.

    Raises:
        ValueError: a repeated axis or value, or a field that is not allowed.
    """
    names = [axis.name for axis in grid]
    for axis in grid:
        if axis.name not in allowed:
            raise ValueError(
                f"grid {axis}: must be one of {list(allowed)}; over any other field python -m experiments.sweep runs a "
                "grid as one job per point"
            )
        if names.count(axis.name) > 1 or len(set(axis.values)) < len(axis.values):
            raise ValueError(f"grid {axis}: must be one axis of distinct values")
