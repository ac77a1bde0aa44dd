"""A run as a list of parts, and the one loop that executes them.

A *part* is the work between two checkpoints: a chunk of training with the measurements after it, a cloning, a
measurement. After each, its records are flushed and then the state is saved under the number of parts done, so that
a
run that is killed at any moment and resumed ends with the same bits.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from lopjax.runs.plain import write_json
from lopjax.runs.run import Run
from lopjax.training.chunks import Lanes
from lopjax.training.lanes import gathered, place

State = Any
Record = Mapping[str, Any]


class Part(NamedTuple):
    """One part of a run.

    Attributes:
        name: text of the progress bar, such as `clone: sgd`.
        steps: its weight in the progress bar: training steps of all lanes together.
        do: `state -> (state, records)`.
        like: structure, shapes and types of the state after it: arrays, or the result of `jax.eval_shape`.
        num_records: number of records that it appends.
        is_start: whether it starts from scratch, so that `do` ignores the state that it receives.
        keep: `state -> {name: nested dictionaries of arrays}`: the parts of the state after it that are saved in the
            run folder.
    """

    name: str
    steps: int
    do: Callable[[State], tuple[State, Sequence[Record]]]
    like: Callable[[], Any]
    num_records: int = 0
    is_start: bool = False
    keep: Callable[[State], Mapping[str, Mapping[str, Any]]] | None = None


def play(
    parts: Sequence[Part],
    state: State,
    folder: Run,
    *,
    progress: Callable[[str, int], None] = lambda description, steps: None,
    keep: int = 2,
    mesh: Mesh | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> State:
    """Execute the parts of a run, starting from the folder's last checkpoint.

    Completed parts are skipped. Once every lane of a state is frozen, the parts up to the next one that starts from
    scratch are skipped, too; what they would have saved is saved from the frozen state, if it has the same structure.

    Args:
        parts: all of them, in order.
        state: the state passed to the first part.
        folder: an incomplete run folder.
        progress: called for every part with its name and the number of further steps done.
        keep: number of newest checkpoints to keep in the folder.
        mesh: the devices over which the lanes of the state are distributed.
        say: called with a sentence about each newer checkpoint that was skipped.

    Returns:
        The state after the last part.

    Raises:
        CheckpointError: the folder has checkpoints and none of them can be used.
    """
    if folder.is_writer:
        totals = {"steps": sum(part.steps for part in parts), "records": sum(part.num_records for part in parts)}
        write_json(folder.folder / "schedule.json", {**totals, "parts": [part.name for part in parts]})
    checkpoint, done = folder.restore(lambda number: parts[number - 1].like()), 0
    if checkpoint is not None:
        done, state = checkpoint.step, place(checkpoint.tree, mesh, is_per_lane=True)
        for reason in checkpoint.refused:
            say(f"resumed from an older checkpoint: {reason}")
    for number, part in enumerate(parts, start=1):
        if number <= done:
            progress(f"resumed: {part.name}", part.steps)
            continue
        is_over = not part.is_start and _is_frozen(state, mesh)
        progress(f"not finite: {part.name}" if is_over else part.name, 0)
        if not is_over:
            state, records = part.do(state)
            folder.append(*records)
        # Before the checkpoint: the saved variables must exist once the part counts as done.
        if part.keep is not None and (not is_over or state.frozen_at.shape == part.like().frozen_at.shape):
            for name, arrays in part.keep(state).items():
                folder.keep(name, arrays)
        if not is_over:
            folder.checkpoint(number, gathered(state, mesh), keep)
        progress(f"not finite: {part.name}" if is_over else part.name, part.steps)
    return state


def expected_records(folder: Path) -> int | None:
    """Number of records of a folder's run in the end, unless lanes are frozen; None if it has not started."""
    try:
        return json.loads((folder / "schedule.json").read_text(encoding="utf-8"))["records"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_frozen(state: State, mesh: Mesh | None) -> bool:
    """Whether all lanes of the state are frozen."""
    return isinstance(state, Lanes) and bool((jax.device_get(gathered(state.frozen_at, mesh)) >= 0).all())
