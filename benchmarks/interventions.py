"""Cost of interventions, as ratios to the plain training step, measured alternately in one process.

    python -m benchmarks.interventions --output interventions.json   # under two minutes on 2 free cores

The paper's MLP (3,072-5x256-10, ReLU), batch 128, Adam, in one compiled chunk of steps; a method that acts now and then
is given a schedule on which it never does, which is what it costs at nearly every step. Aims: at most 1.03 for a method
that does nothing, 1.3 for continual backprop at its published rate. Ratios are of processor time, within a turn: what
else the machine does is in both terms. Of lanes the time of one step of one lane counts: 16 settings in one program
take a sixteenth of the steps.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness

BATCH, NEVER, LANES = 128, 1_000_000, 16
AIMS = {
    "redo, not its step": 1.03,
    "regrama, not its step": 1.03,
    "reset_layer, not its step": 1.03,
    "continual_backprop": 1.3,
    "continual_backprop, adaptable": 1.3,
    "self_normalized_resets": None,
    "redo, every 100 steps": None,
    "continual_backprop, 16 rates in one program": 1.3,
}


class Timed(NamedTuple):
    """A timed method.

    Attributes:
        make: `number -> intervention`; the number may be traced. None is the plain step.
        numbers: one number per lane.
    """

    make: Callable[[Any], Any]
    numbers: Sequence[float] = (0.0,)


def methods() -> dict[str, Timed]:
    """By name."""
    from lopjax import interventions

    def once(make: Callable[[], Any]) -> Timed:
        return Timed(lambda number: make())

    return {
        "plain": once(lambda: None),
        "redo, not its step": once(lambda: interventions.redo(every=NEVER)),
        "regrama, not its step": once(lambda: interventions.regrama(0.01, every=NEVER)),
        "reset_layer, not its step": once(lambda: interventions.reset_layer(["classes"], every=NEVER)),
        "continual_backprop": once(interventions.continual_backprop),
        "continual_backprop, adaptable": once(
            lambda: interventions.continual_backprop(utility="adaptable_contribution")
        ),
        "self_normalized_resets": once(interventions.self_normalized_resets),
        "redo, every 100 steps": once(lambda: interventions.redo(every=100)),
        "continual_backprop, 16 rates in one program": Timed(
            interventions.continual_backprop, [1e-4 * (1 + lane / LANES) for lane in range(LANES)]
        ),
    }


def trainer(timed: Timed, width: int, steps: int) -> Callable[[], Any]:
    """A function that trains every lane for a number of steps and continues where it stopped."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from lopjax.interventions import Setting, intervene, start_intervention
    from lopjax.losses import mean_cross_entropy
    from lopjax.models import mlp
    from lopjax.training import epochs, init_state, logs_of, make_chunk, start_lanes, train_step

    random = np.random.default_rng(0)
    images, labels = random.normal(size=(4096, 3072)).astype(np.float32), random.integers(10, size=4096)
    stream, model, optimizer = epochs(images, labels, BATCH), mlp((3072,), (width,) * 5, 10), optax.adam(1e-3)
    setting = Setting(model, optimizer, mean_cross_entropy)

    def step(lane: Any, drawn: Any, key: Any, index: Any) -> Any:
        state, number = lane
        intervention = timed.make(number)
        state, seen = train_step(model, optimizer, state, drawn.batch, task=drawn.task)
        if intervention is not None:
            state, _ = intervene(intervention, setting, state, seen, key, index)
        return (state, number), logs_of(seen, "loss")

    key = jax.random.key(0, impl="philox4x32")
    intervention = timed.make(0.0)
    state = init_state(model.init(key), optimizer)
    state = state if intervention is None else start_intervention(intervention, setting, state)
    num, chunk, done = len(timed.numbers), make_chunk(step, stream), 0
    state = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], num, axis=0), state)
    lanes, keys = start_lanes((state, jnp.array(timed.numbers))), jnp.repeat(key[None], num)

    def train() -> Any:
        nonlocal lanes, done
        lanes, logs = chunk(lanes, keys, done, steps, stream.data)
        done += steps
        return logs

    return train


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=64, help="steps per turn (default 64)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every method; medians are taken (default 7)")
    parser.add_argument("--width", type=int, default=256, help="units of a layer (default 256)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    if min(args.steps, args.rounds, args.width) < 1:
        parser.error(f"--steps={args.steps} --rounds={args.rounds} --width={args.width}: must be at least 1")
    machine = harness.describe_machine()
    print(harness.described(machine), flush=True)
    found = methods()
    steps = {name: max(args.steps // len(timed.numbers), 1) for name, timed in found.items()}
    trainers = {name: trainer(timed, args.width, steps[name]) for name, timed in found.items()}
    for train in trainers.values():
        harness.timed(train, 0)
    # Whatever else the machine does, it does to all: they take turns, and ratios are taken within a turn.
    clock = time.process_time
    turns = [{name: harness.timed(t, 1, 0, clock)[0] for name, t in trainers.items()} for _ in range(args.rounds)]
    per_step = {name: 1 / (steps[name] * len(timed.numbers)) for name, timed in found.items()}
    costs = [{name: seconds * per_step[name] for name, seconds in turn.items()} for turn in turns]
    ratios = {name: harness.median([turn[name] / turn["plain"] for turn in costs]) for name in trainers}
    spread = {name: [f(turn[name] / turn["plain"] for turn in costs) for f in (min, max)] for name in trainers}
    step = 1e3 * harness.median([turn["plain"] for turn in costs])
    rows = [
        (name, f"{ratios[name]:.3f}", "{:.3f} to {:.3f}".format(*spread[name]), "" if aim is None else f"{aim:g}")
        for name, aim in AIMS.items()
    ]
    print(harness.markdown(("method", "over the plain step, median", "of all turns", "aim, at most"), rows))
    missed = [name for name, aim in AIMS.items() if aim is not None and ratios[name] > aim]
    print(f"plain step: {step:.3g} ms of processor time; missed: {', '.join(missed) or 'nothing'}")
    harness.write(
        args.output, {"machine": machine, "ratios": ratios, "plain_step_ms": step, "turns": turns, "spread": spread}
    )


if __name__ == "__main__":
    main()
