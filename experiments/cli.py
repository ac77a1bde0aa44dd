"""Command lines of the experiments: a preset, then any field of the config as a typed flag.

Nothing here imports JAX, so `--help` and a mistyped flag answer at once.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import TypeVar

ConfigType = TypeVar("ConfigType")


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


def parse(
    experiment: str, description: str, presets: Mapping[str, ConfigType], argv: Sequence[str] | None = None
) -> tuple[ConfigType, Output]:
    """Read `--preset`, take that config as the default, and let flags override its fields.

    Args:
        experiment: module name of the experiment, `cloning`.
        description: what `--help` says first.
        presets: config of every preset; the first is the default.
        argv: arguments; default `sys.argv[1:]`.

    Returns:
        The config and where the output goes.
    """
    import tyro

    # LAPACK's own threads fight XLA's over few cores: a probe of 5 layers took 3-10 s so, 0.2-0.8 s with one (load 10).
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = sys.argv[1:] if argv is None else list(argv)
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=next(iter(presets)))
    preset = first.parse_known_args(arguments)[0].preset
    prog = f"python -m experiments.{experiment}"
    if preset not in presets:
        print(f"{prog}: error: preset={preset!r}: must be one of {list(presets)}", file=sys.stderr)
        raise SystemExit(2)
    default = presets[preset]
    both = make_dataclass("Arguments", [("config", type(default)), ("output", Output)], frozen=True)
    parsed = tyro.cli(
        both,
        prog=prog,
        description=f"{description}\n\nPresets (--preset): {', '.join(presets)}.",
        default=both(default, Output(preset=preset, name=preset)),
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff),
    )
    return parsed.config, parsed.output


@contextmanager
def user_errors(experiment: str) -> Iterator[None]:
    """Around all that is checked before compilation: a mistake becomes one line on stderr and exit status 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"python -m experiments.{experiment}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
