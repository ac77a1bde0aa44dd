"""A step of the continual-learning experiment, compared with a plain PyTorch loop and with a lower bound.

    python -m benchmarks.continual --output continual.json    # about three minutes on 2 cores

On Tiny ImageNet's shapes (random images): gather 128 of 30,000 images of 64x64x3 bytes, normalise, an MLP of 5x128
without normalisation, a loss masked to five of 200 classes, Adam. On mixtures of Gaussians: batches of 100 points, a
tanh network of 10x100, Adam. Here the step of the experiment itself, with its records of accuracy and plasticity
(another forward pass at every tenth step) and its check that everything is finite; in PyTorch, forward and backward
pass, update and accuracy. Every implementation runs in a separate process, and they alternate. Both wall-clock and
processor seconds are given: on a busy machine only the latter are meaningful. The lower bound is the number of
operations of the step's matrix products, divided by the measured rate of a large product.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import harness

# name -> (examples per batch, units of every layer from the input on, the aim: how many times faster than PyTorch)
SHAPES: dict[str, tuple[int, tuple[int, ...], float]] = {
    "tiny_imagenet": (128, (12288, *(128,) * 5, 200), 1.3),
    "gaussian": (100, (2, *(100,) * 10, 2), 1.0),
}
IMAGES, CLASSES, TASK = 150, 200, 5


def step_flops(name: str) -> int:
    """Operations of the matrix products of a step: forward, gradients of the kernels, gradients of the inputs."""
    batch, sizes, _ = SHAPES[name]
    products = [a * b for a, b in pairwise(sizes)]
    return 2 * batch * (3 * sum(products) - products[0])


def clocked(run: Callable[[], Any], steps: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each call over its steps, by the clock and by the processor; the first call is left out."""
    seconds: dict[str, list[float]] = {"wall": [], "cpu": []}
    for _ in range(1 + repeats):
        starts = time.perf_counter(), time.process_time()
        run()
        for kind, start, now in zip(seconds, starts, (time.perf_counter(), time.process_time()), strict=True):
            seconds[kind].append((now - start) / steps)
    return {kind: values[1:] for kind, values in seconds.items()}


def by_lopjax(name: str, steps: int, repeats: int) -> dict[str, list[float]]:
    """The chunk of the experiment, one lane."""
    import jax

    from experiments.continual.config import PRESETS
    from experiments.continual.parts import Life, share
    from experiments.continual.problem import image_problem
    from experiments.continual.setup import build, setup_of
    from experiments.kit.group_lanes import GroupLanes

    preset = PRESETS["mlp"]["reference" if name == "tiny_imagenet" else "gaussian"]
    config = replace(preset, seeds=(0,), methods=("adam",), fresh=False)
    is_tiny = name == "tiny_imagenet"
    setup = setup_of(config, image_problem(config, random_images())) if is_tiny else build(config)
    shared = share(setup)
    life = Life(setup, shared, GroupLanes(setup.groups[0], config.seeds))
    lanes, done = life.begun(0, life.start()), 0
    keys = life.lanes.of_seeds(shared.data_keys)

    def run() -> None:
        nonlocal lanes, done
        lanes, _ = life.chunk(lanes, keys, done, steps, shared.data[0])
        jax.block_until_ready(lanes)
        done += steps

    return clocked(run, steps, repeats)


def random_images() -> Any:
    """Images of Tiny ImageNet's shape, as many as the reduced archive has."""
    import numpy as np

    from lopjax import data

    random, num = np.random.default_rng(0), IMAGES * CLASSES
    images, labels = random.integers(0, 256, (num, 64, 64, 3), np.uint8), np.arange(num) % CLASSES
    return data.from_arrays(images, labels, images[: CLASSES * 15], labels[: CLASSES * 15], CLASSES)


def by_torch(name: str, steps: int, repeats: int) -> dict[str, list[float]]:
    """A plain loop."""
    import torch

    batch, sizes, _ = SHAPES[name]
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    torch.manual_seed(0)
    activation = torch.nn.ReLU if name == "tiny_imagenet" else torch.nn.Tanh
    layers: list[torch.nn.Module] = [torch.nn.Flatten()]
    for reads, writes in pairwise(sizes[:-1]):
        layers += [torch.nn.Linear(reads, writes), activation()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(*sizes[-2:]))
    optimizer, loss = torch.optim.Adam(model.parameters(), 1e-3), torch.nn.CrossEntropyLoss()
    mask = torch.zeros(sizes[-1])
    if name == "tiny_imagenet":
        mask[TASK:] = -torch.inf
        images = torch.randint(0, 256, (IMAGES * CLASSES, 3, 64, 64), dtype=torch.uint8)
        mean, std = torch.full((1, 3, 1, 1), 0.45), torch.full((1, 3, 1, 1), 0.23)
        num, inputs = IMAGES * TASK, lambda chosen: (images[chosen].float() / 255 - mean) / std
    else:
        points = torch.randn(1000, 2)
        num, inputs = 1000, lambda chosen: points[chosen]
    labels = torch.randint(0, min(TASK, sizes[-1]), (num,))

    def run() -> None:
        for first in range(steps):
            if first * batch % num < batch:
                order = torch.randperm(num)
            chosen = order[first % (num // batch) * batch :][:batch]
            optimizer.zero_grad(set_to_none=True)
            logits = model(inputs(chosen)) + mask
            value = loss(logits, labels[chosen])
            value.backward()
            optimizer.step()
            (logits.argmax(1) == labels[chosen]).float().mean().item()

    return clocked(run, steps, repeats)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse; measure one implementation, or all alternately."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="steps per repeat (default 100)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats per turn; medians are taken (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each implementation (default 3)")
    parser.add_argument("--cores", type=int, default=0, help="cores that each implementation may use (default: all)")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="which (default all)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--measurement", choices=("lopjax", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if min(args.steps, args.repeats, args.rounds) < 1 or args.cores < 0:
        parser.error(f"--steps={args.steps} --repeats={args.repeats} --rounds={args.rounds}: must be positive")
    if args.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])  # before any threads are started
    if args.measurement is not None:
        measure = by_lopjax if args.measurement == "lopjax" else by_torch
        print(json.dumps(measure(args.shapes[0], args.steps, args.repeats) | {"peak_gb": harness.peak_gigabytes()}))
        return
    compare(args)


def compare(args: argparse.Namespace) -> None:
    """Every shape by both implementations; one table."""
    common = [f"--steps={args.steps}", f"--repeats={args.repeats}", f"--cores={args.cores}"]
    machine = harness.in_own_process("benchmarks.models", "--measurement", "machine")
    print(harness.described(machine), flush=True)
    frameworks = ("lopjax", "torch") if harness.has_torch() else ("lopjax",)
    rows, table = [], {}
    for name in args.shapes:
        found: dict[str, list[dict[str, Any]]] = {framework: [] for framework in frameworks}
        for _ in range(args.rounds):
            for framework in frameworks:
                arguments = ("--measurement", framework, "--shapes", name, *common)
                found[framework].append(harness.in_own_process("benchmarks.continual", *arguments))
        row = {"floor_wall": step_flops(name) / (1e9 * machine["matmul_gflops"])}
        for framework, results in found.items():
            for kind in ("wall", "cpu"):
                row[f"{framework}_{kind}"] = harness.median([s for result in results for s in result[kind]])
            row[f"{framework}_peak_gb"] = max(result["peak_gb"] for result in results)
        table[name] = row
        cells = [name, *(f"{1e3 * row[f'lopjax_{kind}']:.2f}" for kind in ("wall", "cpu"))]
        if "torch" in found:
            cells += [f"{1e3 * row[f'torch_{kind}']:.2f}" for kind in ("wall", "cpu")]
            cells += [f"{row[f'torch_{kind}'] / row[f'lopjax_{kind}']:.2f}" for kind in ("wall", "cpu")]
            cells[-1] += f" ({SHAPES[name][2]})"
        rows.append([*cells, *[""] * (7 - len(cells)), f"{1e3 * row['floor_wall']:.2f}"])
        print(f"  {name}: {cells[2]} ms of processor time per step", flush=True)
    columns = ("step", "ms", "CPU ms", "PyTorch ms", "PyTorch CPU ms", "ratio", "CPU ratio (aim)", "floor ms")
    print(harness.markdown(columns, rows))
    harness.write(args.output, {"machine": machine, "table": table})


if __name__ == "__main__":
    main()
