"""Training step of every architecture on 32x32 images, batch 128, compared with PyTorch: time and memory.

    python -m benchmarks.models --output models.json      # about ten minutes on 2 cores
    python -m benchmarks.models --seeds 1 5               # vmapped seeds, absolute times: what to run on an accelerator

Forward and backward pass and the SGD update, float32, batch norm (ViT: layer norm), inputs on the device. Steps of
lopjax run inside one compiled loop, as in training. Every implementation runs in a separate process, one after the
other. The fraction of the peak is the rate of operations of the step's matrix products, divided by the measured rate of
a large product.
"""

import argparse
import json
import os
from collections.abc import Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from benchmarks import harness

BATCH = 128
# name -> (constructor in lopjax.models, its options, the aim: how many times faster than PyTorch on a CPU)
SHAPES: dict[str, tuple[str, dict[str, Any], float]] = {
    "mlp 5x128": ("mlp", {"widths": (128,) * 5, "norm": "batch"}, 1.3),
    "mlp 5x256": ("mlp", {"widths": (256,) * 5, "norm": "batch"}, 1.3),
    "cnn 64-128-256": ("cnn", {"channels": (64, 128, 256), "dense": 512, "norm": "batch"}, 1.3),
    "resnet18": ("resnet18", {"width": 64, "blocks": (2, 2, 2, 2)}, 1.0),
    "vit": ("vit", {"patch": 8, "width": 384, "depth": 6, "heads": 6, "mlp_ratio": 4.0}, 1.0),
}
SMALL: dict[str, dict[str, Any]] = {
    "mlp 5x128": {"widths": (8, 8)},
    "mlp 5x256": {"widths": (8,)},
    "cnn 64-128-256": {"channels": (2, 4), "dense": 8},
    "resnet18": {"width": 2, "blocks": (1, 1)},
    "vit": {"patch": 16, "width": 8, "depth": 1, "heads": 2, "mlp_ratio": 2.0},
}


def options_of(name: str, is_small: bool) -> dict[str, Any]:
    """The options of a shape, or of a tiny version of it for trials."""
    return {**SHAPES[name][1], **(SMALL[name] if is_small else {})}


def multiply_adds(name: str, options: dict[str, Any]) -> int:
    """Multiply-adds of the forward pass of one image, without norms and activations."""
    kind = SHAPES[name][0]
    if kind == "mlp":
        sizes = (3072, *options["widths"], 10)
        return sum(a * b for a, b in pairwise(sizes))
    if kind == "cnn":
        reads, side, total = 3, 32, 0
        for units in options["channels"]:
            total += 9 * reads * units * side**2
            reads, side = units, side // 2
        return total + reads * side**2 * options["dense"] + 10 * options["dense"]
    if kind == "resnet18":
        reads, side = options["width"], 32
        total = 27 * reads * side**2
        for stage, blocks in enumerate(options["blocks"]):
            writes = options["width"] * 2**stage
            side = side if stage == 0 else side // 2
            projection = reads * writes if stage else 0
            total += (projection + 9 * reads * writes + 9 * (2 * blocks - 1) * writes**2) * side**2
            reads = writes
        return total + 10 * reads
    width, tokens = options["width"], 1 + (32 // options["patch"]) ** 2
    mlp = 2 * width * int(width * options["mlp_ratio"])
    block = tokens * (4 * width**2 + mlp + 2 * tokens * width)
    return options["depth"] * block + (tokens - 1) * 3 * options["patch"] ** 2 * width + 10 * width


def first_layer(name: str, options: dict[str, Any]) -> int:
    """Multiply-adds of the layer that reads the image, whose input needs no gradient."""
    kind = SHAPES[name][0]
    if kind == "mlp":
        return 3072 * options["widths"][0]
    if kind == "vit":
        return 3072 * options["width"]
    return 27 * 32**2 * (options["channels"][0] if kind == "cnn" else options["width"])


def step_flops(name: str, options: dict[str, Any], batch: int = BATCH) -> int:
    """Operations of the matrix products of a step: forward, gradients of the kernels, gradients of the inputs."""
    return 2 * batch * (3 * multiply_adds(name, options) - first_layer(name, options))


def by_lopjax(name: str, steps: int, repeats: int, seeds: int, dtype: str, is_small: bool) -> dict[str, float]:
    """Seconds per step of all seeds together, inside one compiled loop."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from lopjax import models
    from lopjax.training import init_state, train_step

    constructor, options = SHAPES[name][0], options_of(name, is_small)
    model = getattr(models, constructor)((32, 32, 3), num_classes=10, compute_dtype=dtype, **options)
    optimizer, random = optax.sgd(0.01), np.random.default_rng(0)
    batch = (
        jnp.asarray(random.normal(size=(BATCH, 32, 32, 3)), jnp.float32),
        jnp.asarray(random.integers(10, size=BATCH), jnp.int32),
    )
    keys = jax.random.split(jax.random.key(0), seeds)
    states = jax.jit(jax.vmap(lambda key: init_state(model.init(key), optimizer)))(keys)

    @partial(jax.jit, donate_argnums=0)
    def many(states: Any, batch: Any, steps: Any) -> Any:
        step = jax.vmap(lambda state: train_step(model, optimizer, state, batch)[0])
        if seeds == 1:  # as the training engine does on a CPU
            step = lambda states: jax.tree.map(  # noqa: E731
                lambda leaf: leaf[None],
                train_step(model, optimizer, jax.tree.map(lambda leaf: leaf[0], states), batch)[0],
            )
        return jax.lax.fori_loop(0, steps, lambda _, states: step(states), states)

    def run() -> Any:
        nonlocal states
        states = many(states, batch, jnp.int32(steps))
        return states

    seconds = harness.median(harness.timed(run, repeats)) / steps
    parameters = sum(leaf[0].size for leaf in jax.tree.leaves(states.variables["params"]))
    return {"seconds": seconds, "peak_gb": harness.peak_gigabytes(), "parameters": parameters}


def by_torch(name: str, steps: int, repeats: int, is_small: bool) -> dict[str, float]:
    """Seconds per step of the plain training loop."""
    import time

    import torch

    from benchmarks import torch_models

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    torch.manual_seed(0)
    kind, options = SHAPES[name][0], options_of(name, is_small)
    make = {
        "mlp": torch_models.mlp,
        "cnn": torch_models.cnn,
        "resnet18": torch_models.resnet18,
        "vit": torch_models.ViT,
    }
    model = make[kind](**{key: value for key, value in options.items() if key != "norm"})
    optimizer, loss = torch.optim.SGD(model.parameters(), 0.01), torch.nn.CrossEntropyLoss()
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss(model(images), labels).backward()
            optimizer.step()
        seconds.append((time.perf_counter() - start) / steps)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"seconds": harness.median(seconds[1:]), "peak_gb": harness.peak_gigabytes(), "parameters": parameters}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="which (default all)")
    parser.add_argument("--steps", type=int, default=0, help="steps per repeat (default: 3 to 200, by operations)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats per turn; medians are taken (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each implementation (default 3)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="vmapped seeds (default 1)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="lopjax's compute type")
    parser.add_argument("--small", action="store_true", help="tiny networks of the same kinds, for a trial")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--measurement", choices=("lopjax", "torch", "machine"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for option in ("repeats", "steps"):
        if getattr(args, option) < (option == "repeats"):
            parser.error(f"--{option}={getattr(args, option)}: must be positive")
    if min(args.seeds) < 1 or args.rounds < 1:
        parser.error(f"--seeds={args.seeds} --rounds={args.rounds}: must be positive")
    if args.measurement == "machine":
        print(json.dumps({**harness.describe_machine(), "matmul_gflops": harness.matmul_rate(args.dtype) / 1e9}))
        return
    if args.measurement is not None:
        (name,), (seeds,) = args.models, args.seeds
        work = step_flops(name, options_of(name, args.small)) * seeds
        steps = args.steps or max(3, min(200, int(1e12 / work)))
        if args.measurement == "lopjax":
            print(json.dumps(by_lopjax(name, steps, args.repeats, seeds, args.dtype, args.small)))
        else:
            print(json.dumps(by_torch(name, steps, args.repeats, args.small)))
        return
    compare(args)


def compare(args: argparse.Namespace) -> None:
    """Every shape by every implementation; one table, each row printed and written when it is measured."""
    common = [f"--repeats={args.repeats}", f"--steps={args.steps}", f"--dtype={args.dtype}"]
    common += ["--small"] if args.small else []
    machine = harness.in_own_process("benchmarks.models", "--measurement", "machine", f"--dtype={args.dtype}")
    rate, table = machine["matmul_gflops"] * 1e9, {}
    is_beside_torch = machine["platform"] == "cpu" and harness.has_torch()
    columns = ("training step", "parameters", "ms", "of peak", "GB", "PyTorch ms", "PyTorch GB", "speed-up (aim)")
    print(harness.described(machine), harness.heading(columns), sep="\n", flush=True)
    for name, seeds in product(args.models, args.seeds):
        frameworks = ("lopjax", "torch") if is_beside_torch and seeds == 1 else ("lopjax",)
        arguments = ("--models", name, "--seeds", str(seeds), *common)
        found = in_turns(frameworks, args.rounds, arguments)
        ours, title = found["lopjax"], f"{name}, {seeds} seed{'s' * (seeds > 1)}"
        floor = step_flops(name, options_of(name, args.small)) * seeds / rate
        row = {**ours, "floor_seconds": floor, "fraction_of_peak": floor / ours["seconds"]}
        cells = [title, f"{ours['parameters']:,}", f"{1e3 * ours['seconds']:.1f}"]
        cells += [f"{row['fraction_of_peak']:.0%}", f"{ours['peak_gb']:.2f}"]
        if "torch" in found:
            theirs = found["torch"]
            if theirs["parameters"] != ours["parameters"]:
                raise RuntimeError(f"{name}: {ours['parameters']} parameters here, {theirs['parameters']} in PyTorch")
            row |= {f"torch_{key}": value for key, value in theirs.items()}
            row |= {"speedup": theirs["seconds"] / ours["seconds"], "aim": SHAPES[name][2]}
            cells += [f"{1e3 * theirs['seconds']:.1f}", f"{theirs['peak_gb']:.2f}"]
            cells += [f"{row['speedup']:.2f} ({row['aim']})"]
        table[title] = row
        # Rows are printed and written at once, because a run of many minutes may be stopped.
        print(harness.line(cells + [""] * (len(columns) - len(cells))), flush=True)
        harness.write(args.output, {"machine": machine, "batch": BATCH, "dtype": args.dtype, "table": table})


def in_turns(frameworks: Sequence[str], rounds: int, arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Medians over rounds in which the implementations alternate, so that both see the same load."""
    found: dict[str, list[dict[str, Any]]] = {framework: [] for framework in frameworks}
    for _ in range(rounds):
        for framework in frameworks:
            found[framework].append(harness.in_own_process("benchmarks.models", "--measurement", framework, *arguments))
    return {
        framework: {
            **results[0],
            "seconds": harness.median([result["seconds"] for result in results]),
            "peak_gb": max(result["peak_gb"] for result in results),
        }
        for framework, results in found.items()
    }


if __name__ == "__main__":
    main()
