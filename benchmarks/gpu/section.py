"""One process of `benchmarks/gpu.sh`: runs sections and prints their rows, `ROW {...}`, as they are measured."""

import argparse
import importlib
import json
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

MODULES = {name: f"benchmarks.gpu.{name}" for name in ("rates", "checks", "noise", "hvp", "bits", "clones", "steps")}
MODULES["torch"] = "benchmarks.gpu.torch_steps"


class Task(NamedTuple):
    """The task of a section.

    Attributes:
        section: its name.
        subject: the architecture, if it is about one.
        is_small: whether to use tiny networks and few steps, for a trial.
        stop: the time, by `time.monotonic`, at which the process is stopped.
        rates: rates of the machine: operations or bytes per second, by name.
    """

    section: str
    subject: str
    is_small: bool
    stop: float
    rates: dict[str, float]

    def emit(self, case: str, **columns: Any) -> None:
        """Print one row."""
        print("ROW " + json.dumps({"section": self.section, "case": case, **columns}), flush=True)

    def left(self) -> float:
        """Seconds until the process is stopped."""
        return self.stop - time.monotonic()

    def attempt(self, case: str, measure: Callable[[], dict[str, Any]], **columns: Any) -> None:
        """Emit `columns` and what `measure` returns; an exception becomes a row too, and the section continues."""
        if self.left() < 3:
            self.emit(case, **columns, note="left out: out of time")
            return
        try:
            found = measure()
        except Exception as error:
            traceback.print_exc()
            found = {"note": reason(error)}
        self.emit(case, **columns, **found)


def reason(error: Exception) -> str:
    """What went wrong, in a few words."""
    words = f"{type(error).__name__}: {error}"
    is_memory = "RESOURCE_EXHAUSTED" in words or "out of memory" in words.lower()
    return "out of memory" if is_memory else " ".join(words.split())[:200]


def seconds_a_step(run: Callable[[int], Any], ready: Callable[[], None] | None = None, budget: float = 1.5) -> float:
    """Median seconds per step of `run(number)`, in three repeats that together take at most `budget`.

    Args:
        run: runs a given number of steps; returns JAX arrays, or anything if `ready` waits for the device.
        ready: waits for the device.
        budget: seconds for all repeats.
    """
    from statistics import median

    def once(number: int) -> float:
        start = time.perf_counter()
        result = run(number)
        if ready is None:
            import jax

            jax.block_until_ready(result)
        else:
            ready()
        return time.perf_counter() - start

    once(2)
    # A short run is dominated by the call, so the number of steps is found by doubling.
    number, spent = 4, once(4)
    while spent < budget / 12 and number < 4096:
        number *= 4
        spent = once(number)
    if spent > budget:
        return spent / number
    return median([once(number) / number for _ in range(3)])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--rates", type=json.loads, default={})
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args(argv)
    stop = time.monotonic() + args.seconds
    for name in args.names:
        kind, _, subject = name.partition(":")
        task = Task(name, subject, args.small, stop, args.rates)
        try:
            importlib.import_module(MODULES[kind]).run(task)
        except Exception as error:
            traceback.print_exc()
            task.emit(subject or name, note=reason(error))


if __name__ == "__main__":
    main()
