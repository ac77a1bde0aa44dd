"""A run as a list of parts, and the one loop that plays them.

A *part* is what is done between two checkpoints: a chunk of training with what is measured after it, a cloning, a
measurement. After each, its records are flushed and then the state is saved under the number of parts done, so that a
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
        name: what the progress bar says: `clone: sgd`.
        steps: what the progress bar counts it for: training steps of all lanes together.
        do: `state -> (state, records)`.
        like: the structure, shapes and types of the state after it: arrays, or what `jax.eval_shape` returns.
        num_records: how many records it appends.
        is_start: whether it starts anew, from nothing: `do` is given whatever came before and makes no use of it.
        keep: `state -> {name: nested dictionaries of arrays}`: what of the state after it stays in the run folder.
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
    """Play the parts of a run, from where the folder's checkpoints end.

    Parts that are done are passed over. Once every lane of a state is frozen, the parts up to the next one that starts
    anew are passed over, too; what they would have kept is kept of the frozen state, if it is a state of theirs.

    Args:
        parts: all of them, in order.
        state: what the first is given.
        folder: a run folder that is not complete.
        progress: told of every part: what goes on, and how many more steps are done.
        keep: how many of the newest checkpoints stay in the folder.
        mesh: devices that the lanes of the state are spread over.
        say: told, in a sentence each, which newer checkpoints were passed over.

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
        # Before the checkpoint that says so: what is kept must be there once the part counts as done.
        if part.keep is not None and (not is_over or state.frozen_at.shape == part.like().frozen_at.shape):
            for name, arrays in part.keep(state).items():
                folder.keep(name, arrays)
        if not is_over:
            folder.checkpoint(number, gathered(state, mesh), keep)
        progress(f"not finite: {part.name}" if is_over else part.name, part.steps)
    return state


def expected_records(folder: Path) -> int | None:
    """How many records the run of a folder has in the end, unless lanes are frozen; None if it has not started."""
    try:
        return json.loads((folder / "schedule.json").read_text(encoding="utf-8"))["records"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_frozen(state: State, mesh: Mesh | None) -> bool:
    """Whether no lane of the state goes on."""
    return isinstance(state, Lanes) and bool((jax.device_get(gathered(state.frozen_at, mesh)) >= 0).all())
