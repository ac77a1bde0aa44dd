"""PPO on CartPole: environment steps per second, compared with a PyTorch file with gymnasium's vector environments.

    python -m benchmarks.control --output control.json   # a minute on 2 idle cores; needs the extras `rl` and `bench`

The same networks, batches and numbers of updates; measurements alternate in one process, and medians are taken. Our
lanes are agents with different seeds in one program; PyTorch has one agent per process and a single thread, which is
faster than two for networks this small. Aim: ten times its steps per second.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import harness

ITERATIONS, AIM = 20, 10.0
LANES = (1, 4, 10)


def lopjax_agents(problem: Any, lanes: int, is_batched: bool = True) -> Callable[[], Any]:
    """A function that runs a further `ITERATIONS` iterations of a number of agents."""
    import jax
    import jax.numpy as jnp

    from experiments.control.config import Config
    from experiments.control.lane import keys_of, make_newborn, make_program
    from experiments.control.setup import build
    from lopjax.training import make_chunk, no_stream, over_lanes, start_lanes

    config = Config(methods=(), fresh=False, seeds=tuple(range(lanes)), cartpole=problem)
    bench = build(config).benches["cartpole"]
    program = make_program(bench, bench.groups[0])
    seeds = jnp.arange(lanes)
    newborn = over_lanes(make_newborn(bench), 1, is_batched=True)(seeds, jnp.int32(0))
    state = start_lanes(over_lanes(program.start, 2, is_batched=True)(newborn, {}))
    keys, start = jax.vmap(lambda seed: keys_of(seed)[1])(seeds), 0
    chunk = make_chunk(program.step, no_stream(), is_batched=is_batched)

    def advance() -> Any:
        nonlocal state, start
        state, logs = chunk(state, keys, start, ITERATIONS, ())
        start += ITERATIONS
        return logs

    return advance


def torch_agent(problem: Any) -> Callable[[], Any]:
    """The same in PyTorch, for one agent."""
    import torch

    from benchmarks.torch_ppo import make_iteration

    torch.set_num_threads(1)
    iteration = make_iteration("CartPole-v1", problem)
    return lambda: [iteration() for _ in range(ITERATIONS)]


def steps_per_second(function: Callable[[], Any], steps: int, repeats: int) -> dict[str, list[float]]:
    """Steps per second of wall-clock time and of processor time, for every call after the first."""
    import jax

    found: dict[str, list[float]] = {"clock": [], "processor": []}
    for _ in range(repeats):
        clock, processor = time.perf_counter(), time.process_time()
        jax.block_until_ready(function())
        found["clock"].append(steps / (time.perf_counter() - clock))
        found["processor"].append(steps / (time.process_time() - processor))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run all measurements alternately; one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control", description=str(__doc__))
    parser.add_argument("--rounds", type=int, default=3, help="turns of every measurement (default 3)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds={args.rounds}: at least 1")
    from experiments.control.config import PRESETS

    problem = replace(PRESETS["quick"].cartpole, drift="none", num_tasks=1)
    size = problem.num_envs * problem.num_steps * ITERATIONS
    programs = {f"lopjax, {lanes} lane{'s' * (lanes > 1)}": (lopjax_agents(problem, lanes), lanes) for lanes in LANES}
    programs["lopjax, 10 lanes, one after the other"] = lopjax_agents(problem, 10, is_batched=False), 10
    if harness.has_torch():
        programs["PyTorch"] = torch_agent(problem), 1
    machine = harness.describe_machine()
    print(harness.described(machine), flush=True)
    measured: dict[str, dict[str, list[float]]] = {name: {"clock": [], "processor": []} for name in programs}
    for function, lanes in programs.values():
        steps_per_second(function, size * lanes, 1)  # compiles
    # The measurements alternate, so that other work on the machine affects all of them alike.
    for _ in range(args.rounds):
        for name, (function, lanes) in programs.items():
            for kind, found in steps_per_second(function, size * lanes, 1).items():
                measured[name][kind] += found
    medians = {name: {kind: harness.median(each) for kind, each in kinds.items()} for name, kinds in measured.items()}
    rows = []
    for name, found in medians.items():
        over = [f"{found[kind] / medians['PyTorch'][kind]:.1f}" if "PyTorch" in medians else "" for kind in found]
        rows.append((name, f"{found['clock']:,.0f}", f"{found['processor']:,.0f}", *over))
    columns = ("PPO on CartPole", "steps/s", "steps / processor second", "over PyTorch", "over PyTorch, processor")
    print(harness.markdown(columns, rows))
    harness.write(args.output, {"machine": machine, "aim": AIM, "medians": medians, "measured": measured})


if __name__ == "__main__":
    main()
