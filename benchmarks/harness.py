"""Helpers shared by all benchmarks: description of the machine, medians, separate processes, tables, files."""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """The hardware and versions on which the numbers depend."""
    import jax

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "processor": platform.processor() or platform.machine(),
        "usable_cores": usable or 1,
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else -1,
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def timed(
    function: Callable[[], Any], repeats: int, warm_up: int = 1, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each call by a clock, results ready; the first calls, which also compile, are left out."""
    import jax

    seconds = []
    for _ in range(warm_up + repeats):
        start = clock()
        jax.block_until_ready(function())
        seconds.append(clock() - start)
    return seconds[warm_up:]


def matmul_rate(dtype: str = "float32", repeats: int = 5) -> float:
    """Floating-point operations per second of a large matrix product (two per multiply-add), best of several calls."""
    import jax
    import jax.numpy as jnp

    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size), dtype)
    return 2 * size**3 / min(timed(lambda: jax.jit(jnp.matmul)(a, a), repeats))


def peak_gigabytes() -> float:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def in_own_process(module: str, *arguments: str) -> dict[str, Any]:
    """The JSON on the last line printed by `python -m <module> <arguments>`, whose peak memory is then its own, too."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"python -m {module} {' '.join(arguments)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def heading(columns: Sequence[str]) -> str:
    """The first two lines of a table whose first column is text and the others numbers."""
    return f"{line(columns)}\n{line(['---', *['---:'] * (len(columns) - 1)])}"


def line(cells: Sequence[str]) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A whole table."""
    return "\n".join([heading(columns), *map(line, rows)])


def described(machine: dict[str, Any]) -> str:
    """One line that describes the machine."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in machine.items()
    )


def write(path: Path | None, report: dict[str, Any]) -> None:
    """Write the JSON file, if requested."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n")


def median(values: Sequence[float]) -> float:
    """The median of the repeats of one measurement."""
    return statistics.median(values)


def has_torch() -> bool:
    """Whether PyTorch is installed; prints how to install it if not."""
    try:
        import torch  # noqa: F401
    except ImportError:
        print("PyTorch is not installed: its column is left out; run pip install -e '.[bench]'", file=sys.stderr)
        return False
    return True
