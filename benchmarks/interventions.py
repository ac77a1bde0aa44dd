"""What interventions cost, as ratios to the plain training step, measured in turns in one process.

    python -m benchmarks.interventions --output interventions.json   # about two minutes on 2 cores

The paper's MLP (3,072-5x256-10, ReLU), batch 128, Adam, in one compiled chunk of steps; a method that acts now and then
is given a schedule on which it never does, which is what it costs at nearly every step. Aims: at most 1.03 for a method
that does nothing, 1.3 for continual backprop at its published rate.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness

BATCH, NEVER = 128, 1_000_000
AIMS = {
    "redo, not its step": 1.03,
    "regrama, not its step": 1.03,
    "reset_layer, not its step": 1.03,
    "continual_backprop": 1.3,
    "continual_backprop, adaptable": 1.3,
    "self_normalized_resets": None,
    "redo, every 100 steps": None,
}


def methods() -> dict[str, Any]:
    """By name; None is the plain step."""
    from lopjax import interventions

    return {
        "plain": None,
        "redo, not its step": interventions.redo(every=NEVER),
        "regrama, not its step": interventions.regrama(0.01, every=NEVER),
        "reset_layer, not its step": interventions.reset_layer(["classes"], every=NEVER),
        "continual_backprop": interventions.continual_backprop(),
        "continual_backprop, adaptable": interventions.continual_backprop(utility="adaptable_contribution"),
        "self_normalized_resets": interventions.self_normalized_resets(),
        "redo, every 100 steps": interventions.redo(every=100),
    }


def trainer(intervention: Any, width: int, steps: int) -> Callable[[], Any]:
    """A function that trains for so many steps and goes on where it stopped."""
    import jax
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

    def step(state: Any, drawn: Any, key: Any, index: Any) -> Any:
        state, seen = train_step(model, optimizer, state, drawn.batch, task=drawn.task)
        if intervention is not None:
            state, _ = intervene(intervention, setting, state, seen, key, index)
        return state, logs_of(seen, "loss")

    key = jax.random.key(0, impl="philox4x32")
    state = init_state(model.init(key), optimizer)
    state = state if intervention is None else start_intervention(intervention, setting, state)
    chunk, done = make_chunk(step, stream), 0
    lanes = start_lanes(jax.tree.map(lambda leaf: leaf[None], state))

    def train() -> Any:
        nonlocal lanes, done
        lanes, logs = chunk(lanes, key[None], done, steps, stream.data)
        done += steps
        return logs

    return train


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="steps a turn (default 100)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every method; medians count (default 7)")
    parser.add_argument("--width", type=int, default=256, help="units of a layer (default 256)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    if min(args.steps, args.rounds, args.width) < 1:
        parser.error(f"--steps={args.steps} --rounds={args.rounds} --width={args.width}: must be at least 1")
    machine = harness.describe_machine()
    print(harness.described(machine), flush=True)
    trainers = {name: trainer(method, args.width, args.steps) for name, method in methods().items()}
    for train in trainers.values():
        harness.timed(train, 0)
    # Whatever else the machine does, it does to all: they take turns, and ratios are taken within a turn.
    turns = [{name: harness.timed(t, 1, warm_up=0)[0] for name, t in trainers.items()} for _ in range(args.rounds)]
    ratios = {name: harness.median([turn[name] / turn["plain"] for turn in turns]) for name in trainers}
    step = 1e3 * harness.median([turn["plain"] for turn in turns]) / args.steps
    rows = [(name, f"{ratios[name]:.3f}", "" if aim is None else f"{aim:g}") for name, aim in AIMS.items()]
    print(harness.markdown(("method", "over the plain step", "aim, at most"), rows))
    missed = [name for name, aim in AIMS.items() if aim is not None and ratios[name] > aim]
    print(f"plain step: {step:.3g} ms; missed: {', '.join(missed) or 'nothing'}")
    harness.write(args.output, {"machine": machine, "ratios": ratios, "plain_step_ms": step, "turns": turns})


if __name__ == "__main__":
    main()
