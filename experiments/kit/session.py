"""The environment of a run: folder, devices, and messages about mistakes and interruptions in terms of flags."""

import dataclasses
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from experiments.kit.flags import Output
    from lopjax.runs import Run

# Names in the library's messages that have other names on the command line.
PHRASES = {
    "name=": "--dataset=",
    "another folder": "another --name or --root",
    "overwrite=True": "--overwrite",
    "resume=True": "--resume",
}
# Flags that do not belong to a config but whose names occur in messages of the library.
OUTPUT_FIELDS = (
    *("preset", "name", "root", "data_dir", "overwrite", "resume", "keep_checkpoints", "tensorboard", "writer"),
    *("seed_devices", "batch_devices", "coordinator", "num_processes", "process_id"),
)


def open_folder(experiment: str, config: Any, output: "Output") -> "Run":
    """The run folder that the flags ask for: new, complete or resumed.

    Raises:
        ValueError: `keep_checkpoints` is not positive.
        RunFolderError: the folder cannot be used; see `lopjax.runs.open_run`.
    """
    from lopjax import runs
    from lopjax.runs.writers import writer_of

    if output.keep_checkpoints < 1:
        raise ValueError(f"keep_checkpoints={output.keep_checkpoints}: must be at least 1")
    for name in writer_names(output):
        writer_of(name, output.root)  # raises, if necessary, before a folder is created or moved
    arguments = (output.root / experiment / output.name, config)
    if not getattr(output, "coordinator", ""):
        return with_writers(runs.open_run(*arguments, output.overwrite, output.resume, experiment), output)
    # One process opens the folder and tells the others the outcome.
    import jax
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    new, complete, refused = range(3)
    run, state = None, refused
    try:
        if jax.process_index() == 0:
            run = with_writers(runs.open_run(*arguments, output.overwrite, output.resume, experiment), output)
            state = complete if run.is_complete else new
    finally:
        state = int(broadcast_one_to_all(np.int32(state)))
    if state == refused:
        raise SystemExit(2)
    return run or runs.follow_run(*arguments, is_complete=state == complete)


def with_writers(run: "Run", output: "Output") -> "Run":
    """The run with the writers that the flags ask for.

    Raises:
        ImportError: a package that a writer needs is not installed.
        ValueError: a writer cannot be used.
    """
    from lopjax.runs.writers import writer_of

    if run.is_complete:
        return run
    return run._replace(writers=tuple(writer_of(name, run.folder) for name in writer_names(output)))


def writer_names(output: "Output") -> list[str]:
    """The writers that the flags ask for, each once."""
    return sorted({*output.writer, *(["tensorboard"] if output.tensorboard else [])})


def devices_of(output: Any) -> "Mesh | None":
    """Join the other processes of the run, if any, and arrange the devices; must precede any use of JAX.

    Returns:
        The mesh of the lanes; None for a single device.

    Raises:
        ValueError: a flag is out of range, there are too few devices, or the other processes cannot be reached.
    """
    coordinator = getattr(output, "coordinator", None)
    if coordinator is None:
        return None
    if not coordinator:
        for name, value, only in (("num_processes", output.num_processes, 1), ("process_id", output.process_id, 0)):
            if value != only:
                raise ValueError(f"{name}={value}: must be {only} without --coordinator")
    elif output.coordinator != "auto" and not 0 <= output.process_id < output.num_processes:
        raise ValueError(f"process_id={output.process_id}: must be in 0..{output.num_processes - 1}")
    import jax

    from lopjax.training.lanes import lane_mesh

    if output.coordinator:
        try:
            if output.coordinator == "auto":
                jax.distributed.initialize()
            else:
                jax.distributed.initialize(output.coordinator, output.num_processes, output.process_id)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"coordinator={output.coordinator}: {error}") from error
    return lane_mesh(output.seed_devices, output.batch_devices)


def is_main_process(output: "Output") -> bool:
    """Whether this process is the one that writes and prints."""
    if not getattr(output, "coordinator", ""):
        return True
    import jax

    return jax.process_index() == 0


def say(sentence: str) -> None:
    """One line on stderr."""
    print(sentence, file=sys.stderr)


@contextmanager
def kept_records(experiment: str, folder: "Run") -> Iterator[None]:
    """Context of a run: if it ends early, say why, what is kept and how to continue.

    Early ends: Ctrl-C, a full disk, a loss that is not finite, checkpoints that cannot be used.
    """
    from lopjax import runs
    from lopjax.runs.checkpoints import CheckpointError

    try:
        yield
    except KeyboardInterrupt:
        records = len(runs.load(folder.folder).records)
        print(
            f"interrupted: the records so far ({records}) are kept, lopjax.runs.load({str(folder.folder)!r}) reads "
            "them; --resume continues, --overwrite moves them aside and starts again",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    except (OSError, CheckpointError, FloatingPointError) as error:
        refuse(experiment, f"{error}; what was recorded is kept in {folder.folder}")


def refuse(experiment: str, message: object) -> NoReturn:
    """Say on stderr what is wrong and end with exit status 2."""
    print(f"python -m experiments.{experiment}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def user_errors(experiment: str, config: Any) -> Iterator[None]:
    """Context of all checks before compilation: a mistake becomes one message on stderr and exit status 2.

    Ctrl-C exits silently with status 130. The library's messages name arguments (`noise_decay=2.0: must be ...`), but
    the user typed flags, so names of fields are replaced by those of their flags (`--noise-decay=2.0: must be ...`).

    Args:
        experiment: module name of the experiment.
        config: the config, for the names of its fields.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        refuse(experiment, as_flags(str(error), config))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def as_flags(message: str, config: Any) -> str:
    """A message of the library with arguments replaced by flags.

    Example:
        >>> from experiments.kit.grid import Axis
        >>> as_flags("data_dir=x: not a folder", Axis("", ()))
        '--data-dir=x: not a folder'
    """
    for phrase, replacement in PHRASES.items():
        message = message.replace(phrase, replacement)
    message = re.sub("^grid ", "--grid ", message)
    for path in (*_field_paths(config), *OUTPUT_FIELDS):
        field = path.rsplit(".", 1)[-1]
        # A name that is also an English word counts only if a value follows.
        follows = "" if "_" in field else "(?==|: )"
        flag = f"--{path.replace('_', '-')}"
        message = re.sub(rf"(?<![\w/.,-])(?<!--grid )(?:{re.escape(path)}|{field})\b{follows}", flag, message)
    return message


def _field_paths(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, nested ones included: `net.widths`."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _field_paths(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name
