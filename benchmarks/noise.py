"""Cost of relative noise: its parts alone, and a training step with and without it.

    python -m benchmarks.noise --output noise.json   # about a minute on 2 idle cores

The parts act on the first kernel of the 5x256 MLP for CIFAR-10 (786,432 entries), repeatedly inside one compiled loop.
The steps are those of that MLP (ReLU, batch norm, batch 128, 1,055,000 parameters). All measurements alternate in one
process, and ratios are medians over the turns. Both wall-clock seconds and processor seconds of all threads are given:
on a shared machine only the latter show the cost of the work itself.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import harness

BATCH, SHAPE = 128, (3072, 256)
Repeat = Callable[[], Any]


def noise_parts(num: int) -> dict[str, Repeat]:
    """Calls that do one part of the work `num` times, each time on the last result."""
    import jax
    import jax.numpy as jnp

    from lopjax.random.normals import philox2x32, standard_normal

    def add(draw: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        return lambda key, gradient: gradient + 1e-3 * jnp.linalg.norm(gradient) * draw(key)

    def words(key: Any) -> Any:
        low, high = philox2x32(jax.random.bits(key), jnp.arange(SHAPE[0] * SHAPE[1], dtype=jnp.uint32), jnp.uint32(0))
        return (low ^ high).reshape(SHAPE).astype(jnp.int32).astype(jnp.float32) * 2.0**-32

    def bits(key: Any) -> Any:
        return jax.random.bits(key, SHAPE).astype(jnp.int32).astype(jnp.float32) * 2.0**-32

    kinds = {
        "norm and addition alone": add(lambda key: jax.random.bits(key).astype(jnp.float32) * 2.0**-32),
        "with jax.random.bits, philox4x32": add(bits),
        "with blocks of philox2x32": add(words),
        "with jax.random.normal": add(lambda key: jax.random.normal(key, SHAPE)),
        "with standard_normal": add(lambda key: standard_normal(key, SHAPE)),
    }
    key, gradient = jax.random.key(0, impl="philox4x32"), jnp.ones(SHAPE)

    def repeat(one: Callable[[Any, Any], Any]) -> Repeat:
        many = jax.jit(lambda g: jax.lax.fori_loop(0, num, lambda i, g: one(jax.random.fold_in(key, i), g), g))
        return lambda: many(gradient)

    return {name: repeat(one) for name, one in kinds.items()}


def steps(width: int, num: int) -> dict[str, Repeat]:
    """Calls of `num` training steps each, of the MLP of five layers of a width."""
    from lopjax.models import mlp

    return steps_of(mlp((32, 32, 3), (width,) * 5, 10, norm="batch"), num)


def steps_of(model: Any, num: int, batch_size: int = BATCH) -> dict[str, Repeat]:
    """Calls of `num` training steps each of a network on 32 x 32 images."""
    import jax
    import numpy as np
    import optax

    from lopjax.optim import noisy_sgd
    from lopjax.training import init_state, train_step

    random = np.random.default_rng(0)
    key = jax.random.key(0, impl="philox4x32")
    batch = random.normal(size=(batch_size, 32, 32, 3)).astype(np.float32), random.integers(10, size=batch_size)
    variables = model.init(key)

    def repeat(optimizer: Any) -> Repeat:
        def step(state: Any, _: None) -> tuple[Any, None]:
            return train_step(model, optimizer, state, batch)[0], None

        state = init_state(variables, optimizer)
        many = jax.jit(lambda state: jax.lax.scan(step, state, length=num)[0]).lower(state).compile()
        return lambda: many(state)

    noisy = noisy_sgd(0.01, 0.01, 0.999, seed=key)
    calls = {"plain step": repeat(optax.sgd(0.01)), "noisy step": repeat(noisy)}

    def drawn_by_jax(key: Any, shapes: Any, dtypes: Any, is_needed: Any = True) -> list[Any]:
        del is_needed  # it always is
        keys = jax.random.split(key, len(shapes))
        return [jax.random.normal(*one) for one in zip(keys, shapes, dtypes, strict=True)]

    with mock.patch("lopjax.optim.noise.standard_normals", drawn_by_jax):
        calls["noisy step, jax.random.normal"] = repeat(noisy)
    return calls


def in_turns(calls: dict[str, Repeat], num: int, turns: int) -> dict[str, list[tuple[float, float]]]:
    """Wall-clock and processor milliseconds of every turn of every call."""
    import jax

    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for turn in range(1 + turns):
        for name, call in calls.items():
            clock, processors = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            if turn:  # the first one compiles
                spent = time.perf_counter() - clock, time.process_time() - processors
                measured[name].append((1e3 * spent[0] / num, 1e3 * spent[1] / num))
    return measured


def summary_rows(measured: dict[str, list[tuple[float, float]]]) -> list[list[str]]:
    """Medians, and medians of the ratios to the first call in the same turn."""
    base = next(iter(measured.values()))
    table = []
    for name, turns in measured.items():
        medians = [harness.median([turn[which] for turn in turns]) for which in (0, 1)]
        ratios = [harness.median([a[which] / b[which] for a, b in zip(turns, base)]) for which in (0, 1)]
        table.append([name, *(f"{value:.3g}" for value in medians), *(f"{value:.2f}" for value in ratios)])
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="hidden units per layer (default 256)")
    parser.add_argument("--steps", type=int, default=10, help="steps or repetitions per turn (default 10)")
    parser.add_argument("--turns", type=int, default=31, help="turns of everything; medians are taken (default 31)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    if min(args.width, args.steps, args.turns) < 1:
        parser.error(f"--width={args.width} --steps={args.steps} --turns={args.turns}: must be positive")
    report: dict[str, Any] = {"machine": harness.describe_machine()}
    print(harness.described(report["machine"]), flush=True)
    for title, calls in (("parts", noise_parts(args.steps)), ("steps", steps(args.width, args.steps))):
        report[title] = in_turns(calls, args.steps, args.turns)
        columns = (title, "ms", "processor ms", "ratio", "ratio, processor")
        print(harness.markdown(columns, summary_rows(report[title])), flush=True)
    harness.write(args.output, report)


if __name__ == "__main__":
    main()
