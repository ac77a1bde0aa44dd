"""`python -m lopjax doctor RUN_OR_CHECKPOINT`: one page a user reads in a minute."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Arguments:
    """What to examine."""

    path: Annotated[Path, tyro.conf.Positional]
    """A run folder, or a checkpoint: .npz, .msgpack, or an orbax folder."""
    data: Path | None = None
    """An .npz with the arrays inputs and labels: a batch of a few hundred samples. For a run, its probe by default."""
    network: str | None = None
    """For a checkpoint: package.module:make, a function that gives a Model, or (apply, params, inputs) to trace."""
    name: str | None = None
    """For a run: method/network, such as sgd/clone. By default the last of them."""
    seed: int = 0
    """For a run: which of its seeds, counted from 0."""
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    """The loss, a mean over samples."""
    learning_rate: float | None = None
    """Learning rate, to give times in steps."""
    clone_tolerance: float = 0.01
    """Relative distance of activations up to which a unit is near a clone."""
    output: Path | None = None
    """Folder for doctor.html and doctor.json; by default the run folder, or that of the checkpoint."""


def examine_path(arguments: Arguments) -> tuple[str, tuple[Path, Path]]:
    """Diagnose and write both files.

    Returns:
        The page as text, and the files.

    Raises:
        OSError, ValueError: bad input; the message is for the user.
    """
    from lopjax.doctor.diagnosis import diagnose
    from lopjax.doctor.page import write_page
    from lopjax.doctor.patients import admit_checkpoint, admit_run, is_run
    from lopjax.losses import mean_cross_entropy, mean_squared_error

    path = arguments.path
    if is_run(path):
        patient = admit_run(path, arguments.data, arguments.name, arguments.seed)
    else:
        patient = admit_checkpoint(path, arguments.data, arguments.network)
    diagnosis = diagnose(
        patient.model,
        patient.variables,
        patient.batch,
        loss={"cross_entropy": mean_cross_entropy, "squared_error": mean_squared_error}[arguments.loss],
        learning_rate=arguments.learning_rate,
        clone_tolerance=arguments.clone_tolerance,
        lives=patient.lives,
    )
    folder = arguments.output or (path if is_run(path) else path.parent)
    folder.mkdir(parents=True, exist_ok=True)
    page, data = write_page(diagnosis, folder / "doctor.html", patient.name), folder / "doctor.json"
    text = json.dumps({"name": patient.name, **diagnosis.as_json()}, indent=1, allow_nan=False)
    data.write_text(text, encoding="utf-8")
    return f"{patient.name}\n{diagnosis}", (page, data)
