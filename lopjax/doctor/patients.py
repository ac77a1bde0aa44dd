"""From a path on the disk to what is examined: a network, its variables and a batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lopjax.detection.lives import LifeTable, lives_of_records, load_lives
from lopjax.doctor.checkpoints import matched, read_arrays, read_npz, variables_of
from lopjax.model import Model, Variables
from lopjax.runs import RunData, load
from lopjax.runs.networks import resolved

LIVES = "lives.npz"


class Admitted(NamedTuple):
    """What is examined.

    Attributes:
        model: the network.
        variables: its variables.
        batch: inputs and labels.
        lives: from `lives.npz` beside it, or from the records of its run; None if there are none.
        name: what it is called on the page.
    """

    model: Model
    variables: Variables
    batch: tuple[Any, Any]
    lives: LifeTable | None
    name: str


def is_run(path: Path) -> bool:
    """Whether a path is a run folder of ours."""
    return (path / "config.json").exists()


def admit_run(path: Path, data: Path | None, name: str | None, seed: int) -> Admitted:
    """The network of a run folder, as training ended, on the probe batch of the run.

    Args:
        path: path of the run.
        data: another batch.
        name: `method/network`, such as `sgd/clone`; None for the last network of the last method.
        seed: which of the seeds, by its place.

    Raises:
        FileNotFoundError: the run has not kept what is needed; says what.
        ValueError: an unknown name or seed; lists those there are.
    """
    run = load(path)
    names = [f"{file.stem}/{part}" for file in sorted((path / "variables").glob("*.npz")) for part in _parts(run, file)]
    if not names:
        raise FileNotFoundError(f"{path}: keeps no variables (variables/*.npz): the run is not finished, or kept none")
    chosen = names[-1] if name is None else name
    if chosen not in names:
        raise ValueError(f"--name={name}: must be one of {names}")
    method, part = chosen.split("/", 1)
    model, stacked = run.model(part), run.variables(method)[part]
    seeds = len(jax.tree.leaves(stacked)[0])
    if not 0 <= seed < seeds:
        raise ValueError(f"--seed={seed}: the run has {seeds}, numbered from 0")
    variables = jax.tree.map(lambda leaf: leaf[seed], stacked)
    batch = run.probe() if data is None else read_batch(data)
    lives = _lives(path / LIVES) or _recorded_lives(run, method, seed)
    return Admitted(model, variables, batch, lives, f"{path}: {chosen}, seed {seed}")


def _recorded_lives(run: RunData, method: str, seed: int) -> LifeTable | None:
    """From the records of a lane, where the run logged what its units were."""
    seeds = run.config.get("seeds", ())
    return lives_of_records(run.select(method=method, seed=seeds[seed])) if seed < len(seeds) else None


def _parts(run: RunData, file: Path) -> Sequence[str]:
    recorded = {network.stem for network in (run.folder / "networks").glob("*.json")}
    return [part for part in run.variables(file.stem) if part in recorded]


def admit_checkpoint(path: Path, data: Path | None, network: str | None) -> Admitted:
    """A user's own network from a checkpoint.

    Args:
        path: npz, msgpack or orbax.
        data: an npz with `inputs` and `labels`.
        network: `package.module:make`, a function without arguments that gives a `Model`, or `(apply, params, inputs)`
            to be traced.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: an argument is missing or names nothing; the checkpoint does not match, array by array.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; runs are under runs/<experiment>/<name>")
    if network is None or data is None:
        missing = " and ".join(each for each, given in (("--network", network), ("--data", data)) if given is None)
        what = "no run folder (it has no config.json), and a checkpoint" if path.is_dir() else "a checkpoint"
        raise ValueError(
            f"{path}: {what} needs {missing}: --network package.module:make, a function that gives the network, "
            "and --data batch.npz with the arrays inputs and labels"
        )
    try:
        made = resolved(network)()
    except ImportError as error:
        raise ValueError(f"--network={network}: {error}") from error
    arrays, batch = read_arrays(path), read_batch(data)
    if isinstance(made, Model):
        model, variables = made, variables_of(arrays, made, str(path))
    elif isinstance(made, tuple) and len(made) == 3:
        model, variables = _traced(made, arrays, str(path))
    else:
        raise ValueError(f"--network={network}: gave {type(made).__name__}; must be a Model or (apply, params, inputs)")
    return Admitted(model, variables, batch, _lives(path.parent / LIVES), str(path))


def _traced(made: tuple[Any, Any, Any], arrays: Any, where: str) -> tuple[Model, Variables]:
    """The wiring of any JAX function, by the tracer."""
    from lopjax.tracing import trace_model

    apply, params, inputs = made
    traced = trace_model(apply, params, inputs)
    return traced.model, traced.split(matched(arrays, params, where))


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of an npz file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of file, or arrays that are missing or of different lengths.
    """
    if not path.exists():
        raise FileNotFoundError(f"--data={path}: no such file")
    if path.suffix != ".npz":
        raise ValueError(f"--data={path}: must be an .npz with the arrays inputs and labels")
    arrays = read_npz(path, f"--data={path}")
    missing = [name for name in ("inputs", "labels") if name not in arrays]
    if missing:
        raise ValueError(f"--data={path}: has {list(arrays)}, not {missing}")
    inputs, labels = arrays["inputs"], arrays["labels"]
    if not inputs.ndim or not labels.ndim:
        raise ValueError(f"--data={path}: inputs and labels must have a leading axis over samples")
    if len(inputs) != len(labels) or not len(inputs):
        raise ValueError(f"--data={path}: {len(inputs)} inputs, {len(labels)} labels; must be as many, at least one")
    return inputs, labels


def _lives(path: Path) -> LifeTable | None:
    return load_lives(path) if path.exists() else None
