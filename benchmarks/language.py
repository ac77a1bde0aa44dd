"""Cost of a step of a small causal transformer, alternating with the same network in plain PyTorch in one run.

    python -m benchmarks.language --output language.json   # about a minute on 2 cores

Forward and backward pass and update by Adam, on windows of tokens in memory: in lopjax as in experiments, with many
steps in one compiled call that also draws the batches; in PyTorch a loop over drawn batches, in eager mode. The sizes
are those of `experiments.language` and of arXiv 2410.20098. The ratio is that of the medians over all turns.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness


class Sizes(NamedTuple):
    """A network and its batches."""

    length: int
    vocabulary: int
    width: int
    depth: int
    heads: int
    mlp: int
    batch: int = 8


SIZES = {
    "experiments.language": Sizes(32, 256, 32, 1, 2, 256),
    "arXiv 2410.20098": Sizes(128, 2048, 32, 1, 2, 256),
    "small": Sizes(8, 16, 8, 1, 2, 16, 2),
}
SHOWN = ("experiments.language", "arXiv 2410.20098")
WINDOWS = 256


def lopjax_steps(sizes: Sizes, windows: Any, steps: int) -> Callable[[], Any]:
    """A call that runs `steps` steps."""
    import jax
    import jax.numpy as jnp
    import optax

    from lopjax.models import gpt
    from lopjax.training import epochs, init_state, logs_of, make_chunk, start_lanes, train_step

    ratio = sizes.mlp / sizes.width
    model = gpt(
        (sizes.length,), sizes.vocabulary, sizes.width, sizes.depth, sizes.heads, ratio, tied=False, activation="relu"
    )
    stream = epochs(jnp.asarray(windows[:, :-1]), jnp.asarray(windows[:, 1:]), sizes.batch)
    optimizer, key = optax.adam(1e-3), jax.random.key(0, impl="philox4x32")

    def step(state: Any, drawn: Any, key: Any, index: Any) -> Any:
        state, seen = train_step(model, optimizer, state, drawn.batch)
        return state, logs_of(seen, "loss")

    chunk, done = make_chunk(step, stream), 0
    lanes = start_lanes(jax.tree.map(lambda leaf: leaf[None], init_state(model.init(key), optimizer)))

    def call() -> Any:
        nonlocal lanes, done
        lanes, logs = chunk(lanes, key[None], done, steps, stream.data)
        done += steps
        return logs

    return call


def torch_steps(sizes: Sizes, windows: Any, steps: int) -> Callable[[], Any]:
    """The same in PyTorch; the loss is likewise read at the end of a call."""
    import torch

    from benchmarks import torch_models

    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    torch.manual_seed(0)
    data = torch.tensor(windows, dtype=torch.long)
    model = torch_models.GPT(*sizes[:-1])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def call() -> Any:
        total = torch.zeros(())
        order = torch.randperm(len(data))
        for number in range(steps):
            first = number * sizes.batch % (len(data) - sizes.batch + 1)
            read = data[order[first : first + sizes.batch]]
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(read[:, :-1]).flatten(0, 1), read[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            total += loss.detach()
        return float(total)

    return call


def measure(sizes: Sizes, steps: int, repeats: int, has_torch: bool) -> dict[str, Any]:
    """Milliseconds per step of every call, alternating between the two."""
    import numpy as np

    windows = np.random.default_rng(0).integers(sizes.vocabulary, size=(WINDOWS, sizes.length + 1)).astype(np.int32)
    calls = {"lopjax": lopjax_steps(sizes, windows, steps)}
    if has_torch:
        calls["PyTorch"] = torch_steps(sizes, windows, steps)
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats):
        for name, call in calls.items():
            found[name] += [1e3 * seconds / steps for seconds in harness.timed(call, 1, warm_up=turn == 0)]
    return {"milliseconds": found}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.language", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SHOWN))
    parser.add_argument("--steps", type=int, default=50, help="of a call")
    parser.add_argument("--repeats", type=int, default=5, help="calls of each, alternating")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the file."""
    args, has_torch, start = parse(argv), harness.has_torch(), time.perf_counter()
    report: dict[str, Any] = {"machine": harness.describe_machine(), "steps": {}}
    rows = []
    for name in args.sizes:
        found = report["steps"][name] = measure(SIZES[name], args.steps, args.repeats, has_torch)
        medians = {framework: harness.median(times) for framework, times in found["milliseconds"].items()}
        if has_torch:
            found["ratio"] = medians["PyTorch"] / medians["lopjax"]
        rows.append(
            (name, *(f"{medians[framework]:.2f}" for framework in medians), f"{found.get('ratio', float('nan')):.2f}")
        )
    report["seconds"] = time.perf_counter() - start
    columns = ("step of", "lopjax, ms", *(["PyTorch, ms"] if has_torch else []), "PyTorch / lopjax")
    print(harness.described(report["machine"]), harness.markdown(columns, rows), sep="\n\n")
    harness.write(args.output, report)


if __name__ == "__main__":
    main()
