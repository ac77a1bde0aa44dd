"""Runs that differ in nothing but their seeds, as one: a long run can be made a seed at a time."""

from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.continual.config import Config

if TYPE_CHECKING:
    from lopjax.runs import RunData

# These say which fresh networks stand beside the methods, and change nothing about the methods themselves.
_CONTROLS = ("fresh", "fresh_every")


def joined(runs: "Sequence[RunData]") -> "RunData":
    """One run with the seeds of all.

    A field that did not exist when a run was recorded counts as its default, which is what was done before. The result
    has fresh networks only if all runs have them at the same tasks.

    Raises:
        ValueError: two runs have a seed in common, or differ in more than their seeds; names what.
    """
    first, seeds = runs[0], [seed for run in runs for seed in run.config["seeds"]]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{', '.join(str(run.folder) for run in runs)}: have seeds {seeds}; must be distinct")
    ours, *others = [_completed(run.config) for run in runs]
    for run, config in zip(runs[1:], others, strict=True):
        names = {*ours, *config} - {"seeds", *_CONTROLS}
        if differing := sorted(name for name in names if config.get(name) != ours.get(name)):
            name = differing[0]
            raise ValueError(
                f"{run.folder}: {name}={config.get(name)}, and {first.folder} has {ours.get(name)}; "
                "only seeds may differ"
            )
    controls: list[tuple[Any, Any]] = [(config["fresh"], config["fresh_every"]) for config in (ours, *others)]
    config = {**first.config, "seeds": seeds, "fresh": len(set(controls)) == 1 and first.config["fresh"]}
    return first._replace(config=config, records=[record for run in runs for record in run.records], summary=None)


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """A recorded config with the defaults of the fields that it lacks."""
    defaults = {field.name: field.default for field in fields(Config) if field.default is not MISSING}
    as_recorded = {name: list(each) if isinstance(each, tuple) else each for name, each in defaults.items()}
    return {**as_recorded, **config}


def load_joined(folders: str) -> "RunData":
    """The run, or the runs joined, of folders written with commas between them.

    Raises:
        ValueError: not a run folder, or runs that cannot be joined.
    """
    from lopjax.runs import load

    runs = [load(Path(folder)) for folder in folders.split(",")]
    for run in runs:
        if missing := {"methods", "seeds", "fresh", "steps"} - set(run.config):
            raise ValueError(
                f"{run.folder}: a run of experiments.{run.experiment}, without {min(missing)}; must be of continual"
            )
    return joined(runs)
