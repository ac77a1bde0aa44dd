"""Cost of a step of a lane on the bit-flipping stream: on the fast path, with the library's own step, and in PyTorch.

    python -m benchmarks.bit_flipping --output bit_flipping.json   # about two minutes on 2 idle cores

Twenty bits, five ReLU units, SGD, one example per step. Processor time is measured, so that other work on the machine
matters little; measurements alternate in one process. Aims: 2 us per step for one seed, 0.8 us per step and seed for
30; continual backprop at most 3 times plain. The loops in PyTorch and NumPy are written in the style of the official
code: stored inputs, one Python step per example.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness

STEPS, WIDTH, INPUTS, STEP_SIZE = 20_000, 5, 20, 0.01
AIMS = {"one seed": 2.0, "30 seeds": 0.8, "continual backprop / backprop, 30 seeds": 3.0}


def fused_steps(method: str, seeds: int) -> Callable[[], Any]:
    """The fast path: a function that runs a further `STEPS` steps."""
    from experiments.bit_flipping.parts import Life, keys_of

    life, keys_of_streams = _training(method, seeds, Life, keys_of)
    lanes, start = life.start(), 0

    def advance() -> Any:
        nonlocal lanes, start
        lanes, logs = life.chunk(lanes, keys_of_streams, start, STEPS)
        start += STEPS
        return logs

    return advance


def library_steps(method: str, seeds: int) -> Callable[[], Any]:
    """The library's own step, one lane after the other; a tenth of the steps."""
    from experiments.bit_flipping.lane import plain_step
    from experiments.bit_flipping.parts import Life, keys_of
    from lopjax.training import make_chunk

    life, keys_of_streams = _training(method, seeds, Life, keys_of)
    chunk, lanes, start = make_chunk(plain_step(life.program), life.setup.stream), life.start(), 0

    def advance() -> Any:
        nonlocal lanes, start
        lanes, logs = chunk(lanes, keys_of_streams, start, STEPS // 10, ())
        start += STEPS // 10
        return logs

    return advance


def _training(method: str, seeds: int, life: Any, keys_of: Any) -> tuple[Any, Any]:
    from experiments.bit_flipping.config import Config
    from experiments.bit_flipping.setup import build

    config = Config(methods=(method,), seeds=tuple(range(seeds)), widths=(WIDTH,), step_sizes=(STEP_SIZE,))
    setup = build(config)
    made = life(setup, setup.groups[0], keys_of(config), None)
    return made, made.lanes.of_seeds(made.data_keys)


def numpy_loop() -> Callable[[], Any]:
    """Gradient descent in NumPy, one Python step per example."""
    import numpy as np

    random = np.random.default_rng(0)
    inputs = random.integers(2, size=(STEPS // 10, INPUTS)).astype(np.float32)
    targets = random.normal(size=STEPS // 10).astype(np.float32)
    w, b = random.normal(size=(INPUTS, WIDTH)).astype(np.float32) * 0.3, np.zeros(WIDTH, np.float32)
    v, c = random.normal(size=WIDTH).astype(np.float32) * 0.3, np.float32(0)

    def advance() -> None:
        nonlocal w, b, v, c
        for x, y in zip(inputs, targets):
            pre = x @ w + b
            post = np.maximum(pre, 0)
            slope = 2 * np.float32(STEP_SIZE) * (post @ v + c - y)
            signal = slope * v * (pre > 0)
            v, c = v - slope * post, c - slope
            w, b = w - np.outer(x, signal), b - signal

    return advance


def torch_loop() -> Callable[[], Any]:
    """In the style of the official code: modules, `mse_loss`, `optim.SGD`, one example per step."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(1)
    inputs = torch.randint(2, (STEPS // 10, INPUTS)).float()
    targets = torch.randn(STEPS // 10, 1)
    net = torch.nn.Sequential(torch.nn.Linear(INPUTS, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=STEP_SIZE)

    def advance() -> None:
        for index in range(len(inputs)):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(net(inputs[index : index + 1]), targets[index : index + 1])
            loss.backward()
            optimizer.step()

    return advance


def microseconds_per_step(repeats: int) -> dict[str, float]:
    """Microseconds of processor time per step and seed, medians over turns."""
    import jax

    runs: dict[str, tuple[Callable[[], Any], int, int]] = {
        "one seed": (fused_steps("sgd", 1), STEPS, 1),
        "30 seeds": (fused_steps("sgd", 30), STEPS, 30),
        "continual backprop, one seed": (fused_steps("continual_backprop", 1), STEPS, 1),
        "continual backprop, 30 seeds": (fused_steps("continual_backprop", 30), STEPS, 30),
        "continual backprop, official, 30 seeds": (fused_steps("continual_backprop_official", 30), STEPS, 30),
        "Adam, 30 seeds": (fused_steps("adam", 30), STEPS, 30),
        "library's own step": (library_steps("sgd", 1), STEPS // 10, 1),
        "library's own step, continual backprop": (library_steps("continual_backprop", 1), STEPS // 10, 1),
        "NumPy loop": (numpy_loop(), STEPS // 10, 1),
    }
    if harness.has_torch():
        runs["PyTorch loop"] = (torch_loop(), STEPS // 10, 1)
    for advance, _, _ in runs.values():
        jax.block_until_ready(advance())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (advance, steps, seeds) in runs.items():
            start = time.process_time()
            jax.block_until_ready(advance())
            seconds[name].append((time.process_time() - start) / steps / seeds)
    return {name: harness.median(values) * 1e6 for name, values in seconds.items()}


def table_of(microseconds: dict[str, float]) -> str:
    """Microseconds, aims, and ratios of the loops to the fast path."""
    rows = [(name, f"{value:.3g}", f"{AIMS[name]:g}" if name in AIMS else "") for name, value in microseconds.items()]
    ratios = {
        f"continual backprop / backprop, {seeds}": microseconds[f"continual backprop, {seeds}"] / microseconds[seeds]
        for seeds in ("one seed", "30 seeds")
    }
    ratios["official continual backprop / backprop, 30 seeds"] = (
        microseconds["continual backprop, official, 30 seeds"] / microseconds["30 seeds"]
    )
    ratios |= {
        f"{name} / fast path, {seeds}": microseconds[name] / microseconds[seeds]
        for name in ("library's own step", "NumPy loop", "PyTorch loop")
        if name in microseconds
        for seeds in ("one seed", "30 seeds")
    }
    rows += [(name, f"{value:.3g} x", f"{AIMS[name]:g} x" if name in AIMS else "") for name, value in ratios.items()]
    return harness.markdown(("per step and seed", "us of processor time", "aim, at most"), rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the file if requested."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bit_flipping", description=str(__doc__))
    parser.add_argument("--repeats", type=int, default=7, help="number of turns, of which the median is taken")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args(argv)
    machine, found = harness.describe_machine(), microseconds_per_step(arguments.repeats)
    print(harness.described(machine))
    print(table_of(found))
    harness.write(arguments.output, {"machine": machine, "microseconds": found})


if __name__ == "__main__":
    main()
