"""Command lines of the experiments: a preset, then any field of the config as a typed flag.

Nothing here imports JAX, so `--help` and a mistyped flag answer at once.
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from tyro.constructors import ConstructorRegistry

    from lopjax.runs import Run

ConfigType = TypeVar("ConfigType")
OutputType = TypeVar("OutputType", bound="Output")


@dataclass(frozen=True)
class Output:
    """Where the run goes; no field here changes a result."""

    preset: str = ""
    """Named starting point for all the other flags."""
    name: str = ""
    """Name of the run folder; default: the preset's name."""
    root: Path = Path("runs")
    """Folder of all runs."""
    data_dir: Path | None = None
    """Folder of prepared data sets; default: TFDS_DATA_DIR or TFDS's own default."""
    overwrite: bool = False
    """If the run folder exists, move it aside instead of refusing it."""
    resume: bool = False
    """If the run folder holds an interrupted run of this config, go on where it stopped."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay in the folder of an unfinished run."""
    tensorboard: bool = False
    """Write TensorBoard event files, too, into the folder tensorboard of the run."""


@dataclass(frozen=True)
class SpreadOutput(Output):
    """Where a run of many lanes goes, and the devices that it is spread over."""

    seed_devices: int = 1
    """Spread the seeds over this many devices, or groups of devices; it must divide the number of seeds."""
    batch_devices: int = 1
    """Spread every batch over this many devices: results then agree to rounding, not in every bit."""
    coordinator: str = ""
    """Of a run over several processes, each started with the same flags: host:port of process 0, or "auto" on a cluster
    that JAX knows (Slurm, Open MPI, TPU pods). All of them must see the same run folder."""
    num_processes: int = 1
    """How many processes there are, with a coordinator of host:port."""
    process_id: int = 0
    """Which of them this one is."""


def parse(
    experiment: str,
    description: str,
    presets: Mapping[str, ConfigType],
    argv: Sequence[str] | None = None,
    output: type[OutputType] = Output,
    suffix: str = "",
) -> tuple[ConfigType, OutputType]:
    """Read `--preset`, take that config as the default, and let flags override its fields.

    Args:
        experiment: module name of the experiment, `cloning`.
        description: what `--help` says first.
        presets: config of every preset; the first is the default.
        argv: arguments; default `sys.argv[1:]`.
        output: `Output`, or a dataclass of more such flags.
        suffix: of the default name of the run folder, after the preset's.

    Returns:
        The config and where the output goes.

    Raises:
        SystemExit: with status 2 after a message about a flag or value that cannot be read; 0 after `--help`.
    """
    import tyro

    # LAPACK's own threads fight XLA's over few cores: a probe of 5 layers took 3-10 s so, 0.2-0.8 s with one (load 10).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = sys.argv[1:] if argv is None else list(argv)
    prog = f"python -m experiments.{experiment}"
    preset = read_first(experiment, "preset", presets, arguments)
    default = presets[preset]
    both = make_dataclass(
        "Arguments",
        [
            ("config", Annotated[type(default), tyro.conf.arg(name="")]),
            ("output", Annotated[output, tyro.conf.arg(name="")]),
        ],
        frozen=True,
    )
    parsed = tyro.cli(
        both,
        prog=prog,
        description=f"{description}\n\nPresets (--preset): {', '.join(presets)}.",
        default=both(default, output(preset=preset, name=preset + suffix)),
        args=arguments,
        registry=_numbers(),
    )
    return parsed.config, parsed.output


def read_first(experiment: str, name: str, choices: Iterable[str], argv: Sequence[str] | None = None) -> str:
    """The value of a flag on which the other flags depend; the first choice if it is not given.

    Raises:
        SystemExit: with status 2 after a message if it is none of the choices.
    """
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{experiment}", add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", default=next(iter(choices)))
    given = getattr(parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))[0], name)
    if given not in choices:
        refuse(experiment, f"--{name}={given!r}: must be one of {list(choices)}")
    return given


def _numbers() -> "ConstructorRegistry":
    """How tyro reads numbers, with what is allowed in the message about something else."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    def reader(kind: Callable[[str], Any], metavar: str, allowed: str) -> Callable[..., Any]:
        def read(words: list[str]) -> Any:
            try:
                return kind(words[0])
            except ValueError:
                raise ValueError(f"{words[0]!r}: must be {allowed}") from None

        return lambda info: (
            PrimitiveConstructorSpec(
                nargs=1,
                metavar=metavar,
                instance_from_str=read,
                is_instance=lambda instance: isinstance(instance, info.type),
                str_from_instance=lambda instance: [str(instance)],
            )
            if info.type is kind
            else None
        )

    registry = ConstructorRegistry()
    registry.primitive_rule(reader(int, "INT", "an integer"))
    registry.primitive_rule(reader(float, "FLOAT", "a number"))
    return registry


# Where the library has another name for what the user has typed.
PHRASES = {
    "name=": "--dataset=",
    "another folder": "another --name or --root",
    "overwrite=True": "--overwrite",
    "resume=True": "--resume",
}


def open_folder(experiment: str, config: Any, output: Output) -> "Run":
    """The run folder that the flags ask for: new, complete, or one that goes on.

    Raises:
        ValueError: `keep_checkpoints` is not positive.
        RunFolderError: the folder cannot be used; see `lopjax.runs.open_run`.
    """
    from lopjax import runs

    if output.keep_checkpoints < 1:
        raise ValueError(f"keep_checkpoints={output.keep_checkpoints}: must be at least 1")
    arguments = (output.root / experiment / output.name, config)
    if not getattr(output, "coordinator", ""):
        return with_writers(runs.open_run(*arguments, output.overwrite, output.resume, experiment), output)
    # One process opens the folder, and the others learn what became of it.
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


def with_writers(run: "Run", output: Output) -> "Run":
    """The run with the writers that the flags ask for.

    Raises:
        ImportError: what a writer needs is not installed.
    """
    from lopjax.runs.writers import TensorBoardWriter

    if not output.tensorboard or run.is_complete:
        return run
    return run._replace(writers=(TensorBoardWriter(run.folder / "tensorboard"),))


def devices_of(output: SpreadOutput) -> "Mesh | None":
    """Join the other processes of the run, if there are any, and lay out the devices; first of all that uses JAX.

    Returns:
        The mesh of the lanes; None for a single device.

    Raises:
        ValueError: a flag is out of range, there are too few devices, or the other processes cannot be reached.
    """
    if not output.coordinator:
        for name, value, only in (("num_processes", output.num_processes, 1), ("process_id", output.process_id, 0)):
            if value != only:
                raise ValueError(f"{name}={value}: must be {only} without --coordinator")
    elif output.coordinator != "auto" and not 0 <= output.process_id < output.num_processes:
        raise ValueError(f"process_id={output.process_id}: must be in 0..{output.num_processes - 1}")
    import jax

    from lopjax.lanes import lane_mesh

    if output.coordinator:
        try:
            if output.coordinator == "auto":
                jax.distributed.initialize()
            else:
                jax.distributed.initialize(output.coordinator, output.num_processes, output.process_id)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"coordinator={output.coordinator}: {error}") from error
    return lane_mesh(output.seed_devices, output.batch_devices)


def is_main_process(output: SpreadOutput) -> bool:
    """Whether this process is the one that writes and prints."""
    if not output.coordinator:
        return True
    import jax

    return jax.process_index() == 0


def say_refused(reasons: Sequence[str]) -> None:
    """Say on stderr which newer checkpoints were passed over, and why."""
    for reason in reasons:
        print(f"resumed from an older checkpoint: {reason}", file=sys.stderr)


@contextmanager
def kept_records(experiment: str, folder: "Run") -> Iterator[None]:
    """Around a run: if it ends early, say why, what is kept and how to go on.

    Early ends: Ctrl-C, a full disk, a loss that is not finite, checkpoints that cannot be used.
    """
    from lopjax import runs
    from lopjax.runs.checkpoints import CheckpointError

    try:
        yield
    except KeyboardInterrupt:
        records = len(runs.load(folder.folder).records)
        print(
            f"interrupted: {records} records are kept, lopjax.runs.load({str(folder.folder)!r}) reads them; "
            "--resume goes on, --overwrite starts again and moves them aside",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    except (OSError, CheckpointError, FloatingPointError) as error:
        refuse(experiment, f"{error}; what was recorded is kept in {folder.folder}")


def refuse(experiment: str, message: object) -> None:
    """Say on stderr what is wrong and end with exit status 2."""
    print(f"python -m experiments.{experiment}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def user_errors(experiment: str, config: Any, phrases: Mapping[str, str] | None = None) -> Iterator[None]:
    """Around all that is checked before compilation: a mistake becomes one message on stderr and exit status 2.

    Ctrl-C ends quietly with status 130.

    The library speaks of arguments (`noise_decay=2.0: must be ...`); the user has typed flags. So the names of fields
    become those of their flags (`--noise-decay=2.0: must be ...`).

    Args:
        experiment: module name of the experiment.
        config: the config, for the names of its fields.
        phrases: what else to replace in messages: `{"name=": "--dataset="}` where a library argument has another name.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        refuse(experiment, as_flags(str(error), config, phrases or {}))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def as_flags(message: str, config: Any, phrases: Mapping[str, str]) -> str:
    """A message of the library in the words of the command line; arguments as in `user_errors`.

    >>> as_flags("data_dir=x: not a folder", Output(), {})
    '--data-dir=x: not a folder'
    """
    for phrase, replacement in phrases.items():
        message = message.replace(phrase, replacement)
    for path in (*_field_paths(config), *_field_paths(SpreadOutput())):
        field = path.rsplit(".", 1)[-1]
        # A name that is also an English word counts only where a value follows.
        follows = "" if "_" in field else "(?==|: )"
        flag = f"--{path.replace('_', '-')}"
        message = re.sub(rf"(?<![\w/.-])(?:{re.escape(path)}|{field})\b{follows}", flag, message)
    return message


def _field_paths(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields, nested ones included: `net.widths`."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _field_paths(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name
