"""Bit flipping: cost of a step of the official figure's programs, and of the whole figure, extrapolated.

The figure has 12 programs, two optimizers with six activations each, of 300 lanes: three step sizes, 100 seeds. In
addition, one program with as many lanes as the whole figure has.
"""

import dataclasses
from typing import Any

from benchmarks.gpu.section import Task

STEPS_OF_FIGURE, PROGRAMS = 1_000_000, 6


def run(task: Task) -> None:
    """Both optimizers with 300 and with 3,600 lanes, then the sum for the figure."""
    found: dict[str, float] = {}
    for method in ("sgd", "adam"):
        for seeds in (1,) if task.is_small else (100, 1200):
            case = f"{method}, relu, {3 * seeds:,} lanes"
            task.attempt(case, lambda method=method, seeds=seeds: measured(task, method, seeds, found))
    if {"sgd", "adam"} <= found.keys():
        hours = PROGRAMS * sum(found.values()) * STEPS_OF_FIGURE / 3600
        task.emit("whole figure, 12 programs", hours=hours, note="extrapolated from the programs of 300 lanes")


def measured(task: Task, method: str, seeds: int, found: dict[str, float]) -> dict[str, Any]:
    """Microseconds of a step of all lanes, and of one."""
    import jax

    from benchmarks.harness import median, timed
    from experiments.bit_flipping.config import PRESETS
    from experiments.bit_flipping.parts import Life, keys_of
    from experiments.bit_flipping.setup import build

    config = dataclasses.replace(
        PRESETS["official_figure"], methods=(method,), activations=("relu",), seeds=tuple(range(seeds))
    )
    setup = build(config)
    (group,) = setup.groups
    life = Life(setup, group, keys_of(config), None)
    lanes, keys, start = life.start(), life.lanes.of_seeds(life.data_keys), 0
    steps, repeats = (1000, 1) if task.is_small else (5000, 2)

    def advance() -> Any:
        nonlocal lanes, start
        lanes, logs = life.chunk(lanes, keys, start, steps)
        start += steps
        return logs

    # Whole blocks of 1,000 steps, including the preparation of a block.
    number = jax.block_until_ready(advance())["error"].size
    seconds = median(timed(advance, repeats, warm_up=0)) / steps
    if number == 3 * 100 or task.is_small:
        found[method] = seconds
    return {"us a step": 1e6 * seconds, "us per step and lane": 1e6 * seconds / number, "steps/s": 1 / seconds}
