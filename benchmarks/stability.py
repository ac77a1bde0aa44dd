"""Time and memory of the stability analysis of the paper's cloned network.

    python -m benchmarks.stability                       # everything: about four minutes on 2 cores
    python -m benchmarks.stability --repeats 1 --only closed_form_float32

Every measurement runs in a separate process, which gives its own peak resident memory. Prints one JSON object per
measurement and a table. `--samples` and `--width` make it small enough for a trial.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import harness
from benchmarks.harness import timed

# Limits in seconds and GB; a plain gradient pass has no limit of its own.
LIMITS = {
    "closed_form_float32": (60.0, 2.0),
    "closed_form_float64": (60.0, 2.0),
    "dense_classify": (20.0, 2.0),
}
DEPTH, NUM_CLASSES, FACTOR = 5, 10, 2


def closed_form(dtype: str, samples: int, width: int, repeats: int) -> dict[str, Any]:
    """Unit blocks of a 5-layer ReLU network cloned twice, and one plain gradient pass of the cloned network."""
    import jax
    import numpy as np

    from lopjax.cloning import clone_variables, widen
    from lopjax.losses import mean_cross_entropy
    from lopjax.models import mlp
    from lopjax.stability import unit_blocks

    base, generator = mlp((32, 32, 3), (width,) * DEPTH, NUM_CLASSES), np.random.default_rng(0)
    variables = base.init(jax.random.key(0))
    batch = (
        jax.numpy.asarray(generator.normal(size=(samples, 32, 32, 3)), dtype),
        jax.numpy.asarray(generator.integers(NUM_CLASSES, size=samples)),
    )
    wide_model, wide = widen(base, FACTOR), clone_variables(variables, base.wiring, FACTOR)
    gradient_pass = make_gradient_pass(wide_model, mean_cross_entropy, batch)
    # The first call of each also compiles.
    gradients = timed(lambda: gradient_pass(wide["params"]), max(repeats, 1))
    totals = []
    start = time.process_time()
    first, *seconds = timed(
        lambda: totals.append(unit_blocks(base, variables, batch, FACTOR).total),
        repeats + 1,
        warm_up=0,
    )
    seconds, total = seconds or [first], totals[-1]
    return {
        "seconds": statistics.median(seconds),
        "cpu_seconds_per_call": (time.process_time() - start) / len(totals),
        "first_seconds": first,
        "gradient_pass_seconds": statistics.median(gradients),
        "ratio_to_gradient_pass": statistics.median(seconds) / statistics.median(gradients),
        "verdict": total.verdict.name,
        "inertia": [total.n_plus, total.n_minus, total.n_zero],
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(wide["params"])),
    }


def dense_classify(repeats: int) -> dict[str, Any]:
    """`classify(method="dense")` of a cloned network of about 2,000 parameters, in double precision."""
    import jax
    import numpy as np

    from lopjax.cloning import clone_variables, uniform_partition, widen
    from lopjax.losses import cross_entropy
    from lopjax.manifolds import cloned_manifold
    from lopjax.models import mlp
    from lopjax.stability import classify

    base, generator = mlp((20,), (16, 16), NUM_CLASSES, activation="tanh"), np.random.default_rng(0)
    wide_model = widen(base, FACTOR)
    wide = clone_variables(base.init(jax.random.key(0)), base.wiring, FACTOR)
    batch = (
        jax.numpy.asarray(generator.normal(size=(500, 20))),
        jax.numpy.asarray(generator.integers(NUM_CLASSES, size=500)),
    )
    manifold = cloned_manifold(wide["params"], wide_model.wiring, uniform_partition(wide_model.wiring, FACTOR))
    loss, reports = cross_entropy(wide_model, wide, batch), []
    seconds = timed(
        lambda: reports.append(classify(loss, wide["params"], manifold, method="dense")), max(repeats, 1), 0
    )
    return {
        "seconds": statistics.median(seconds),
        "verdict": reports[-1].verdict.name,
        "inertia": [reports[-1].n_plus, reports[-1].n_minus, reports[-1].n_zero],
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(wide["params"])),
    }


def make_gradient_pass(model, loss, batch, size: int = 500) -> Callable[[Any], Any]:
    """`params -> gradient` of the cloned network over all the data, in batches."""
    import jax

    step = jax.jit(jax.grad(lambda params, part: loss(model.apply({"params": params}, part[0]).logits, part[1])))
    starts = range(0, len(batch[0]), size)

    def gradient_pass(params: Any) -> Any:
        total = jax.tree.map(jax.numpy.zeros_like, params)
        for start in starts:
            gradient = step(params, (batch[0][start : start + size], batch[1][start : start + size]))
            total = jax.tree.map(jax.numpy.add, total, gradient)
        return total

    return gradient_pass


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(LIMITS), help="one measurement, in this process")
    parser.add_argument("--repeats", type=int, default=3, help="0: only the first call, which also compiles")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=128)
    args = parser.parse_args(argv)
    if args.only:
        print(json.dumps(measure(args.only, args.samples, args.width, args.repeats)))
        return
    results = []
    for name in LIMITS:
        flags = (f"--repeats={args.repeats}", f"--samples={args.samples}", f"--width={args.width}")
        results.append(harness.in_own_process("benchmarks.stability", "--only", name, *flags))
        print(json.dumps(results[-1]), flush=True)
    print(table(results))


def measure(name: str, samples: int, width: int, repeats: int) -> dict[str, Any]:
    """One measurement with its peak resident memory and the machine it ran on."""
    import jax

    jax.config.update("jax_enable_x64", name != "closed_form_float32")
    if name == "dense_classify":
        result = dense_classify(repeats)
    else:
        result = closed_form(name.removeprefix("closed_form_"), samples, width, repeats)
    return {
        "name": name,
        **result,
        "peak_gb": harness.peak_gigabytes(),
        "limits": LIMITS[name],
        "samples": samples,
        "repeats": repeats,
        "machine": harness.described(harness.describe_machine()),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table of the measurements."""
    lines = [
        "| measurement | parameters | seconds (limit) | peak GB (limit) | gradient pass, s | ratio | verdict |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for result in results:
        gradient = result.get("gradient_pass_seconds")
        extra = f"{gradient:.2f} | {result['ratio_to_gradient_pass']:.0f}" if gradient else " | "
        seconds, gigabytes = result["limits"]
        lines.append(
            f"| {result['name']} | {result['num_params']:,} | {result['seconds']:.1f} ({seconds:.0f}) "
            f"| {result['peak_gb']:.2f} ({gigabytes:.0f}) | {extra} | {result['verdict']} |"
        )
    return "\n".join([*lines, "", results[0]["machine"]])


if __name__ == "__main__":
    main()
