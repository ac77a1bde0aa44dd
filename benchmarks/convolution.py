"""Gradient of one convolution inside `scan`: time and memory of chunked patches and of XLA's own convolution.

    python -m benchmarks.convolution --output convolution.json

On a CPU `lopjax.models.convolution.convolve` uses the first, elsewhere the second; run this on a new machine to see
whether that is the right choice there.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks import harness
from lopjax.models.convolution import convolve
from lopjax.wiring import Window

WINDOW = Window((1, 1), ((1, 1), (1, 1)))
# name -> (batch, height, width, channels), units
SHAPES = {
    "32x32, 3 to 64": ((64, 32, 32, 3), 64),
    "16x16, 32 to 64": ((64, 16, 16, 32), 64),
    "8x8, 64 to 128": ((64, 8, 8, 64), 128),
}


def by_xla(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
    """The implementation with which `convolve` is compared."""
    return jax.lax.conv_general_dilated(
        x, kernel, window.strides, window.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def descend(conv: Callable, steps: int, kernel: jax.Array, x: jax.Array) -> jax.Array:
    """`steps` gradient steps on the kernel in one `scan`, as in training."""

    def step(kernel: jax.Array, _: None) -> tuple[jax.Array, None]:
        gradient = jax.grad(lambda k: jnp.mean(jnp.square(conv(x, k, WINDOW))))(kernel)
        return kernel - 1e-3 * gradient, None

    return jax.lax.scan(step, kernel, None, length=steps)[0]


def measure(shape: tuple[int, ...], units: int, steps: int, repetitions: int) -> dict[str, float]:
    """Median milliseconds per step and temporary memory of both implementations; repetitions alternate."""
    x_key, kernel_key = jax.random.split(jax.random.key(0))
    x = jax.random.normal(x_key, shape)
    kernel = jax.random.normal(kernel_key, (3, 3, shape[-1], units)) * (9 * shape[-1]) ** -0.5
    programs = {
        name: jax.jit(partial(descend, conv, steps)).lower(kernel, x).compile()
        for name, conv in (("lopjax", convolve), ("xla", by_xla))
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for repetition in range(repetitions + 1):
        for name, program in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(program(kernel, x))
            if repetition > 0:  # the first one warms up
                times[name].append(1e3 * (time.perf_counter() - begin) / steps)
    row = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    for name, program in programs.items():
        memory = program.memory_analysis()
        row[f"{name}_mib"] = memory.temp_size_in_bytes / 2**20 if memory is not None else float("nan")
    return {**row, "speedup": row["xla_ms"] / row["lopjax_ms"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2, help="gradient steps per scan (default 2)")
    parser.add_argument("--repetitions", type=int, default=3, help="scans of each implementation (default 3)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    machine = harness.describe_machine()
    print(harness.described(machine))
    print(f"{'3x3, batch 64':20}{'lopjax ms':>12}{'xla ms':>12}{'speedup':>10}{'lopjax MiB':>12}{'xla MiB':>10}")
    table = {}
    for name, (shape, units) in SHAPES.items():
        row = table[name] = measure(shape, units, options.steps, options.repetitions)
        print(
            f"{name:20}{row['lopjax_ms']:12.1f}{row['xla_ms']:12.1f}{row['speedup']:10.1f}"
            f"{row['lopjax_mib']:12.1f}{row['xla_mib']:10.1f}"
        )
    harness.write(options.output, {"machine": machine, "table": table})


if __name__ == "__main__":
    main()
