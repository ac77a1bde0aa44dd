"""The command line of an experiment: a preset, then any field of its config as a typed flag.

Nothing here imports JAX, so `--help` and mistyped flags get an immediate answer.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from experiments.kit.grid import Axis, read_axis
from experiments.kit.session import refuse

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

    from experiments.kit.experiment import Experiment


@dataclass(frozen=True)
class Output:
    """Output options of a run; none of them changes a result."""

    preset: str = ""
    """Named starting point for all other flags."""
    name: str = ""
    """Name of the run folder; default: the preset's name."""
    root: Path = Path("runs")
    """Folder of all runs."""
    data_dir: Path | None = None
    """Folder of prepared data sets; default: TFDS_DATA_DIR or TFDS's own default."""
    overwrite: bool = False
    """If the run folder exists, move it aside instead of stopping."""
    resume: bool = False
    """If the run folder holds an interrupted run of this config, continue where it stopped."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep in the folder of an unfinished run."""
    writer: tuple[str, ...] = ()
    """Also send the records elsewhere: "tensorboard", into a folder of the run, or any module with wandb's init, log
    and finish: "trackio", "wandb"."""
    tensorboard: bool = False
    """The same as --writer tensorboard."""


@dataclass(frozen=True)
class SpreadOutput(Output):
    """Output options of a run of many lanes, and the devices over which it is distributed."""

    seed_devices: int = 1
    """Distribute the seeds over this many devices or groups of devices; must divide the number of seeds."""
    batch_devices: int = 1
    """Shard every batch over this many devices: results then agree up to rounding, not bit for bit."""
    coordinator: str = ""
    """For a run over several processes, each started with the same flags: host:port of process 0, or "auto" on a
    cluster that JAX knows (Slurm, Open MPI, TPU pods). All of them must see the same run folder."""
    num_processes: int = 1
    """Number of processes, if the coordinator is host:port."""
    process_id: int = 0
    """Index of this process."""


def parse(experiment: "Experiment", argv: Sequence[str] | None = None) -> tuple[Any, Output]:
    """Read `--model` and `--preset`, use that config as the default, and let flags override its fields.

    Args:
        experiment: the experiment whose flags they are.
        argv: arguments; default `sys.argv[1:]`.

    Returns:
        The config and the output options.

    Raises:
        SystemExit: with status 2 after a message about a flag or value that cannot be read; 0 after `--help`.
    """
    import tyro

    # LAPACK's threads compete with XLA's for few cores: a probe of 5 layers took 3-10 s, but 0.2-0.8 s with one thread
    # (load 10).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = sys.argv[1:] if argv is None else list(argv)
    presets, suffix = experiment.presets, ""
    if experiment.variants:
        model = read_first(experiment.name, "model", experiment.variants, arguments)
        presets = experiment.variants[model]
        suffix = "" if presets is experiment.presets else f"_{model}"
    preset = read_first(experiment.name, "preset", presets, arguments)
    default, output = presets[preset], SpreadOutput if experiment.is_spread else Output
    arguments_type = make_dataclass(
        "Arguments",
        [
            ("config", Annotated[type(default), tyro.conf.arg(name="")]),
            ("output", Annotated[output, tyro.conf.arg(name="")]),
        ],
        frozen=True,
    )
    parsed = tyro.cli(
        arguments_type,
        prog=f"python -m experiments.{experiment.name}",
        description=f"{experiment.description}\n\nPresets (--preset): {', '.join(presets)}.",
        default=arguments_type(default, output(preset=preset, name=preset + suffix)),
        args=arguments,
        registry=_readers(),
    )
    return parsed.config, parsed.output


def read_first(experiment: str, name: str, choices: Iterable[str], argv: Sequence[str] | None = None) -> str:
    """The value of a flag on which other flags depend; the first choice if it is not given.

    Raises:
        SystemExit: the value is not one of the choices; status 2, after a message.
    """
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{experiment}", add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", default=next(iter(choices)))
    choice = getattr(parser.parse_known_args(sys.argv[1:] if argv is None else list(argv))[0], name)
    if choice not in choices:
        refuse(experiment, f"--{name}={choice!r}: must be one of {list(choices)}")
    return choice


def _readers() -> "ConstructorRegistry":
    """How tyro reads numbers and axes of a grid, with messages about invalid values."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    def reader(kind: type, read: Callable[[str], Any], metavar: str) -> Callable[..., Any]:
        return lambda info: (
            PrimitiveConstructorSpec(
                nargs=1,
                metavar=metavar,
                instance_from_str=lambda words: read(words[0]),
                is_instance=lambda instance: isinstance(instance, info.type),
                str_from_instance=lambda instance: [str(instance)],
            )
            if info.type is kind
            else None
        )

    def number(kind: Callable[[str], Any], allowed: str) -> Callable[[str], Any]:
        def read(word: str) -> Any:
            try:
                return kind(word)
            except ValueError:
                raise ValueError(f"{word!r}: must be {allowed}") from None

        return read

    registry = ConstructorRegistry()
    registry.primitive_rule(reader(int, number(int, "an integer"), "INT"))
    registry.primitive_rule(reader(float, number(float, "a number"), "FLOAT"))
    registry.primitive_rule(reader(Axis, read_axis, "FIELD=NUMBER,NUMBER"))
    return registry
