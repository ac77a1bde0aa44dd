"""Runs that differ in nothing but their seeds, as one: a long run can be made a seed at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lopjax.runs import RunData

# These say which fresh networks stand beside the methods, and change nothing about the methods themselves.
_CONTROLS = ("fresh", "fresh_every")


def joined(runs: "Sequence[RunData]") -> "RunData":
    """One run with the seeds of all.

    It has fresh networks only if all runs have them at the same tasks.

    Raises:
        ValueError: two runs have a seed in common, or differ in more than their seeds; names what.
    """
    first, seeds = runs[0], [seed for run in runs for seed in run.config["seeds"]]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{', '.join(str(run.folder) for run in runs)}: have seeds {seeds}; must be distinct")
    for run in runs[1:]:
        names = {*first.config, *run.config} - {"seeds", *_CONTROLS}
        if differing := sorted(name for name in names if run.config.get(name) != first.config.get(name)):
            name = differing[0]
            raise ValueError(
                f"{run.folder}: {name}={run.config.get(name)}, and {first.folder} has {first.config.get(name)}; "
                "only seeds may differ"
            )
    controls: list[tuple[Any, Any]] = [(run.config["fresh"], run.config.get("fresh_every", 1)) for run in runs]
    config = {**first.config, "seeds": seeds, "fresh": len(set(controls)) == 1 and first.config["fresh"]}
    return first._replace(config=config, records=[record for run in runs for record in run.records], summary=None)


def load_joined(folders: str) -> "RunData":
    """The run, or the runs joined, of folders written with commas between them.

    Raises:
        ValueError: not a run folder, or runs that cannot be joined.
    """
    from lopjax.runs import load

    return joined([load(Path(folder)) for folder in folders.split(",")])
