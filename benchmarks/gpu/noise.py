"""Cost of noise: the generators alone, and a noisy step against a plain one. Random numbers must not dominate."""

from collections.abc import Callable
from typing import Any

from benchmarks import harness
from benchmarks import noise as noise_on_cpu
from benchmarks.gpu.section import Task


def run(task: Task) -> None:
    """The parts of `benchmarks.noise` in wall-clock time, then its steps for three networks."""
    from lopjax import models

    num, turns = (2, 1) if task.is_small else (200, 9)
    parts = noise_on_cpu.noise_parts(num)
    _timed(task, "786,432 normals: ", parts, num, turns)
    networks: dict[str, Callable[[], Any]] = {
        "5x256": lambda: models.mlp((32, 32, 3), (4, 4) if task.is_small else (256,) * 5, 10, norm="batch"),
        "5x2048": lambda: models.mlp((32, 32, 3), (2048,) * 5, 10, norm="batch"),
        "vit": lambda: models.vit((32, 32, 3), 10),
    }
    for name in ("5x256",) if task.is_small else networks:
        if task.left() < 10:
            task.emit(name, note="left out: out of time")
            continue
        _timed(task, f"{name}: ", noise_on_cpu.steps_of(networks[name](), num, 8 if task.is_small else 128), num, turns)


def _timed(task: Task, title: str, calls: dict[str, Any], num: int, turns: int) -> None:
    measured = noise_on_cpu.in_turns(calls, num, turns)
    base = next(iter(measured.values()))
    for name, found in measured.items():
        clock = [turn[0] for turn in found]
        ratio = harness.median([a / b[0] for a, b in zip(clock, base)])
        task.emit(title + name, ms=harness.median(clock), ratio=ratio)
