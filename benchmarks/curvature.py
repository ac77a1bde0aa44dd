"""Cost of Hessian-vector products in units of gradients: medians of interleaved repetitions in one run.

    python -m benchmarks.curvature --output curvature.json

Prints a table, and writes the same numbers with a description of the machine. The aim is a Hessian-vector product at
the cost of at most three gradients.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks import harness
from lopjax.curvature import ggn_vp, hvp

SIZES = (3072, 256, 256, 256, 256, 256, 10)
BATCH = 128
AIM = 3.0


def make_network(key: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Kernels and biases of a dense ReLU network: plain JAX, so that only the derivatives are measured."""
    keys = jax.random.split(key, len(SIZES) - 1)
    return [
        (jax.random.normal(k, (n_in, n_out)) * (2 / n_in) ** 0.5, jnp.zeros(n_out))
        for k, (n_in, n_out) in zip(keys, pairwise(SIZES), strict=True)
    ]


def logits_of(params, inputs):
    """The forward pass."""
    hidden = inputs
    for kernel, bias in params[:-1]:
        hidden = jax.nn.relu(hidden @ kernel + bias)
    kernel, bias = params[-1]
    return hidden @ kernel + bias


def mean_cross_entropy(logits, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))


def loss_of(params, inputs, labels):
    return mean_cross_entropy(logits_of(params, inputs), labels)


def programs() -> dict[str, Callable]:
    """The timed programs by name; all take `(params, direction, inputs, labels)` and are compiled."""
    return {
        "gradient": jax.jit(lambda p, v, x, y: jax.grad(loss_of)(p, x, y)),
        "hvp": jax.jit(lambda p, v, x, y: hvp(lambda p: loss_of(p, x, y), p, v)),
        "ggn_vp": jax.jit(
            lambda p, v, x, y: ggn_vp(lambda p: logits_of(p, x), lambda z: mean_cross_entropy(z, y), p, v)
        ),
    }


def measure(repetitions: int) -> dict[str, dict[str, float]]:
    """Median, quartiles (milliseconds) and temporary memory of each program; repetitions alternate.

    Alternating distributes other load on the machine over all programs alike.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    params, direction = make_network(keys[0]), make_network(keys[1])
    inputs = jax.random.normal(keys[2], (BATCH, SIZES[0]))
    arguments = (params, direction, inputs, jax.random.randint(keys[3], (BATCH,), 0, SIZES[-1]))
    compiled = {name: program.lower(*arguments).compile() for name, program in programs().items()}
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for repetition in range(repetitions + 3):
        for name, program in compiled.items():
            begin = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            if repetition >= 3:  # the first ones warm up
                times[name].append(1e3 * (time.perf_counter() - begin))
    table = {}
    for name, program in compiled.items():
        low, median, high = statistics.quantiles(times[name], n=4)
        memory = program.memory_analysis()
        table[name] = {
            "median_ms": median,
            "quartile_1_ms": low,
            "quartile_3_ms": high,
            "gradients": median / statistics.median(times["gradient"]),
            "temporary_mib": memory.temp_size_in_bytes / 2**20 if memory is not None else float("nan"),
        }
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=40, help="measurements of each program (default 40)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    if options.repetitions < 2:
        parser.error(f"--repetitions={options.repetitions}: must be at least 2")
    machine, table = harness.describe_machine(), measure(options.repetitions)
    num_parameters = sum(n_in * n_out + n_out for n_in, n_out in pairwise(SIZES))
    print(f"MLP {'-'.join(map(str, SIZES))}, {num_parameters:,} parameters, batch {BATCH}, float32")
    print(harness.described(machine))
    print(f"{'':10}{'median ms':>12}{'quartiles ms':>18}{'gradients':>12}{'temporary MiB':>16}")
    for name, row in table.items():
        quartiles = f"{row['quartile_1_ms']:.2f} - {row['quartile_3_ms']:.2f}"
        print(f"{name:10}{row['median_ms']:12.2f}{quartiles:>18}{row['gradients']:12.2f}{row['temporary_mib']:16.1f}")
    is_met = table["hvp"]["gradients"] <= AIM
    print(f"hvp / gradient = {table['hvp']['gradients']:.2f}, aim <= {AIM}: {'met' if is_met else 'MISSED'}")
    report = {"sizes": SIZES, "batch": BATCH, "repetitions": options.repetitions, "machine": machine, **table}
    harness.write(options.output, report)
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
