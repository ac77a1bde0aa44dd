"""Judging many checks, several theorems at a time."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from theory_checks.check import Check, Size, Verdict, judge

LONGEST_FIRST = ("stability", "activation", "optimizers", "escape", "cloning", "confinement", "frozen", "flatness")
"""Theorems in the order in which they are started; the others follow."""


def judge_all(checks: Sequence[Check], size: Size, processes: int) -> list[Verdict]:
    """Judge checks; the checks of one theorem share what they measure, so they stay together.

    Args:
        checks: the checks, those of a theorem next to each other.
        size: "small" or "full".
        processes: how many theorems at a time, each in a process of its own; 1, or a single theorem, runs in this one.

    Returns:
        Verdicts, in the order of the checks.
    """
    theorems: dict[str, list[Check]] = {}
    for check in checks:
        theorems.setdefault(check.name.split(".")[0], []).append(check)
    if processes == 1 or len(theorems) <= 1:
        return [judge(check, size) for check in checks]
    # Spawned, not forked: a process that has started XLA's threads must not fork.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        started = {name: pool.submit(_judge_theorem, theorems[name], size) for name in sorted(theorems, key=_turn)}
        return [verdict for name in theorems for verdict in started[name].result()]


def _turn(theorem: str) -> int:
    """The longest go first, so that no process is left with a long one at the end."""
    return LONGEST_FIRST.index(theorem) if theorem in LONGEST_FIRST else len(LONGEST_FIRST)


def _judge_theorem(checks: Sequence[Check], size: Size) -> list[Verdict]:
    import jax

    jax.config.update("jax_enable_x64", True)
    return [judge(check, size) for check in checks]
