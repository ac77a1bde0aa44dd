"""Cost of training on CIFAR-10: epochs, noisy steps, metric probes and memory, with aims and lower bounds.

    python -m benchmarks.training --data-dir DATA --output training.json   # about five minutes on 2 cores

The paper's MLP (ReLU, batch norm, batch 128) and its clone of twice the width, an epoch in one compiled call over
images held as bytes: shuffle, gather, normalise, forward and backward pass, update. If CIFAR-10 is not prepared, random
images of its size are used. It is compared with the same network in plain PyTorch, on the same images stored in the
same way. Every measurement runs in a separate process. There are two lower bounds: the number of operations of a step's
matrix products, divided by the measured rate of a large product; and the time of these products alone, in their own
shapes, measured in turns with the epochs. The aims are for two cores that reach 125 GFLOP/s.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.models import step_flops

BATCH = 128
# name -> what is shown: (unit, aim, the same in the paper authors' PyTorch code)
FIGURES = {
    "epoch 5x128": ("s", 1.5, "2.1-3.2"),
    "epoch 5x256": ("s", 3.0, "4.1-4.4"),
    "products alone, 5x128": ("s", None, ""),
    "products alone, 5x256": ("s", None, ""),
    "epoch / products alone, 5x128": ("", None, ""),
    "epoch / products alone, 5x256": ("", None, ""),
    "epoch 5x256, crops and flips": ("s", None, ""),
    "step 5x256": ("ms", None, ""),
    "noisy step 5x256": ("ms", 14.0, "20"),
    "noisy step / step": ("", 1.75, ""),
    "metric probe 5x256, 500 images": ("ms", 150.0, "1700"),
    "peak memory": ("GB", 1.3, ""),
    "--help": ("s", 0.5, ""),
    "PyTorch epoch 5x128": ("s", None, ""),
    "PyTorch epoch 5x256": ("s", None, ""),
    "PyTorch / lopjax, epoch 5x128": ("", None, ""),
    "PyTorch / lopjax, epoch 5x256": ("", None, ""),
}


def images(data_dir: Path | None, num: int) -> tuple[Any, Any, str]:
    """Training images as bytes, labels, and what they are."""
    import numpy as np

    from lopjax import data

    try:
        found = data.load("cifar10", data_dir)
        return found.train_images[:num], found.train_labels[:num], "CIFAR-10"
    except FileNotFoundError:
        random = np.random.default_rng(0)
        return random.integers(0, 256, (num, 32, 32, 3), np.uint8), random.integers(10, size=num), "random images"


def epochs(
    width: int, noises: Sequence[float], augment: bool, data_dir: Path | None, num: int, repeats: int
) -> dict[str, Any]:
    """Seconds of every epoch of one network, alternating between several noise scales and, last, products alone."""
    import jax
    import jax.numpy as jnp
    import optax

    from lopjax.models import mlp
    from lopjax.optim import noisy_sgd
    from lopjax.training import Preprocess, init_state, logs_of, make_chunk, start_lanes, train_step
    from lopjax.training import epochs as epochs_of

    x, y, what = images(data_dir, num)
    stream = epochs_of(jnp.asarray(x), jnp.asarray(y, jnp.int32), BATCH)
    model = mlp((32, 32, 3), (width,) * 5, 10, norm="batch")
    preprocess = Preprocess((0.5,) * 3, (0.25,) * 3, *((4, True) if augment else (0, False)))
    key = jax.random.key(0, impl="philox4x32")
    variables, steps = model.init(key), num // BATCH

    def trainer(noise: float) -> Callable[[], Any]:
        optimizer = noisy_sgd(0.01, noise, 0.999, seed=key) if noise else optax.sgd(0.01)

        def step(state: Any, drawn: Any, key: Any, index: Any) -> Any:
            images, labels = drawn.batch
            batch = preprocess.inputs(images, key if augment else None), labels
            state, seen = train_step(model, optimizer, state, batch)
            return state, logs_of(seen, "loss", "accuracy")

        chunk, done = make_chunk(step, stream), 0
        lanes = start_lanes(jax.tree.map(lambda leaf: leaf[None], init_state(variables, optimizer)))

        def epoch() -> Any:
            nonlocal lanes, done
            lanes, logs = chunk(lanes, key[None], done, steps, stream.data)
            done += steps
            return logs

        return epoch

    trainers = [*(trainer(noise) for noise in noises), *([] if augment else [products(width, steps)])]
    rounds = [[harness.timed(epoch, 1, warm_up=turn == 0)[0] for epoch in trainers] for turn in range(repeats)]
    return {"seconds": [list(column) for column in zip(*rounds)], "steps": steps, "images": what}


def probe(width: int, repeats: int) -> dict[str, Any]:
    """Seconds of one call of all symptoms at all sites, clones included."""
    import jax
    import numpy as np

    from lopjax.cloning import clone_variables, uniform_partition, widen
    from lopjax.models import mlp
    from lopjax.probes import symptoms

    base, random = mlp((32, 32, 3), (width // 2,) * 5, 10, norm="batch"), np.random.default_rng(0)
    model, variables = widen(base, 2), clone_variables(base.init(jax.random.key(0)), base.wiring, 2)
    batch = random.normal(size=(500, 32, 32, 3)).astype(np.float32), random.integers(10, size=500)
    partition = uniform_partition(model.wiring, 2)
    call = jax.jit(lambda variables, x, y: symptoms(model, variables, (x, y), partition=partition))
    return {"seconds": [harness.timed(lambda: call(variables, *batch), repeats)]}


def products(width: int, steps: int) -> Callable[[], Any]:
    """An epoch that does nothing but the network's matrix products, in their own shapes.

    No step is faster than that without a faster product. The rate of a large square product, from which the other lower
    bound is computed, is not reached by products of a batch of 128.
    """
    import jax
    import jax.numpy as jnp

    sizes = (32 * 32 * 3, *(width,) * 5, 10)
    keys = jax.random.split(jax.random.key(0), len(sizes))
    kernels = [jax.random.normal(key, shape) / shape[0] ** 0.5 for key, shape in zip(keys, pairwise(sizes))]
    batches = jax.random.normal(keys[-1], (8, BATCH, sizes[0]))

    def step(kernels: list[Any], index: Any) -> tuple[list[Any], None]:
        layers = [batches[index % len(batches)]]
        for kernel in kernels:
            layers.append(layers[-1] @ kernel)
        backward, gradients = layers.pop(), []
        for kernel in reversed(kernels):
            gradients.insert(0, layers.pop().T @ backward)
            backward = backward @ kernel.T if layers else backward
        # The next step multiplies with what this one made, so that none of it can be left out or done once for all.
        return [kernel + 1e-9 * gradient for kernel, gradient in zip(kernels, gradients)], None

    epoch = jax.jit(lambda kernels: jax.lax.scan(step, kernels, jnp.arange(steps))[0])
    return lambda: epoch(kernels)


def torch_epochs(width: int, data_dir: Path | None, num: int, repeats: int) -> dict[str, Any]:
    """Seconds per epoch of a plain loop over images in memory."""
    import torch

    from benchmarks import torch_models

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    torch.manual_seed(0)
    x, y, what = images(data_dir, num)
    x, y = torch.tensor(x), torch.tensor(y, dtype=torch.long)
    model, loss = torch_models.mlp((width,) * 5), torch.nn.CrossEntropyLoss()
    optimizer, seconds = torch.optim.SGD(model.parameters(), 0.01), []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        order = torch.randperm(num)
        for first in range(0, num // BATCH * BATCH, BATCH):
            chosen = order[first : first + BATCH]
            optimizer.zero_grad(set_to_none=True)
            loss(model((x[chosen].float() / 255 - 0.5) / 0.25), y[chosen]).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    return {"seconds": [seconds[1:]], "images": what}


def help_seconds(repeats: int) -> float:
    """Seconds that a user waits for `python -m experiments.cloning --help`."""
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "experiments.cloning", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return harness.median(seconds[1:])


MEASUREMENTS = {
    "epoch 5x128": lambda args: epochs(128, (0.0,), False, args.data_dir, args.images, args.repeats),
    "epoch 5x256": lambda args: epochs(256, (0.0, 0.01), False, args.data_dir, args.images, args.repeats),
    "epoch 5x256, crops and flips": lambda args: epochs(256, (0.0,), True, args.data_dir, args.images, args.repeats),
    "metric probe 5x256, 500 images": lambda args: probe(256, args.repeats),
    "PyTorch epoch 5x128": lambda args: torch_epochs(128, args.data_dir, args.images, args.repeats),
    "PyTorch epoch 5x256": lambda args: torch_epochs(256, args.data_dir, args.images, args.repeats),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder of prepared data sets (default: TFDS's own)")
    parser.add_argument("--images", type=int, default=50_000, help="number of training images (default all)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats per turn; medians are taken (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every measurement (default 3)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--measurement", choices=list(MEASUREMENTS), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.images < BATCH or args.repeats < 1 or args.rounds < 1:
        parser.error(
            f"--images={args.images} --repeats={args.repeats} --rounds={args.rounds}: at least {BATCH} images, 1 and 1"
        )
    if args.measurement is not None:
        print(json.dumps({**MEASUREMENTS[args.measurement](args), "peak_gb": harness.peak_gigabytes()}))
        return
    compare(args)


def compare(args: argparse.Namespace) -> None:
    """All measurements, alternating; one table."""
    machine = harness.in_own_process("benchmarks.models", "--measurement", "machine")
    print(harness.described(machine), flush=True)
    measured = measure_in_turns(args)
    values = values_of(measured) | {"--help": help_seconds(args.repeats)}
    first = measured["epoch 5x256"][0]
    floors = floors_of(first["steps"], machine["matmul_gflops"] * 1e9)
    rows, missed = [], []
    for name, (unit, aim, theirs) in FIGURES.items():
        if name not in values:
            continue
        over = f"{values[name] / floors[name]:.2f}" if name in floors else ""
        rows.append((name, f"{values[name]:.3g} {unit}".strip(), "" if aim is None else f"{aim:g}", over, theirs))
        if aim is not None and values[name] > aim:
            missed.append(name)
    print(harness.markdown(("figure", "measured", "aim, at most", "over its floor", "paper's code"), rows))
    print(f"images: {first['images']}; missed: {', '.join(missed) or 'nothing'}")
    report = {"machine": machine, "values": values, "floors": floors, "missed": missed, "measured": measured}
    harness.write(args.output, report)


def measure_in_turns(args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """What every measurement found in every round, each in a process of its own."""
    common = [f"--images={args.images}", f"--repeats={args.repeats}"]
    common += [] if args.data_dir is None else [f"--data-dir={args.data_dir}"]
    measured: dict[str, list[dict[str, Any]]] = {}
    with_torch = harness.has_torch()
    # The measurements alternate, so that other work on the machine affects all of them alike.
    for turn in range(args.rounds):
        for name in MEASUREMENTS:
            if with_torch or not name.startswith("PyTorch"):
                found = harness.in_own_process("benchmarks.training", "--measurement", name, *common)
                measured.setdefault(name, []).append(found)
        print(f"  round {turn + 1} of {args.rounds}", flush=True)
    return measured


def values_of(measured: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The figures of the table, in their units."""

    def seconds_of(name: str, column: int = 0) -> list[float]:
        return [second for result in measured[name] for second in result["seconds"][column]]

    seconds = {name: harness.median(seconds_of(name)) for name in measured}
    plain, noisy = (seconds_of("epoch 5x256", column) for column in range(2))
    steps = measured["epoch 5x256"][0]["steps"]
    values = {name: seconds[name] for name in FIGURES if name in seconds}
    values["step 5x256"] = 1e3 * harness.median(plain) / steps
    values["noisy step 5x256"] = 1e3 * harness.median(noisy) / steps
    values["noisy step / step"] = harness.median([b / a for a, b in zip(plain, noisy)])
    values["metric probe 5x256, 500 images"] *= 1e3
    ours = [result for name, results in measured.items() if "PyTorch" not in name for result in results]
    values["peak memory"] = max(result["peak_gb"] for result in ours)
    for width in (128, 256):
        trained, alone = (seconds_of(f"epoch 5x{width}", column) for column in (0, -1))
        values[f"products alone, 5x{width}"] = harness.median(alone)
        values[f"epoch / products alone, 5x{width}"] = harness.median([a / b for a, b in zip(trained, alone)])
        if f"PyTorch epoch 5x{width}" in seconds:
            ratio = seconds[f"PyTorch epoch 5x{width}"] / seconds[f"epoch 5x{width}"]
            values[f"PyTorch / lopjax, epoch 5x{width}"] = ratio
    return values


def floors_of(steps: int, rate: float) -> dict[str, float]:
    """Seconds of an epoch, and milliseconds of a step, in matrix products alone at `rate` operations per second."""
    floors = {
        f"epoch 5x{width}": steps * step_flops(f"mlp 5x{width}", {"widths": (width,) * 5}) / rate
        for width in (128, 256)
    }
    floors |= {name.replace("epoch", "products alone,"): floor for name, floor in floors.items()}
    floors["noisy step 5x256"] = floors["step 5x256"] = 1e3 * floors["epoch 5x256"] / steps
    return floors


if __name__ == "__main__":
    main()
