"""The parts of a run: of every environment and group of methods, an iteration after the other and what is measured."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.control.config import Config
from experiments.control.lane import Agent, keys_of, make_newborn, make_program
from experiments.control.measurements import certified, make_evaluate, make_measure
from experiments.control.ppo import start_moments
from experiments.control.setup import Bench, Setup
from experiments.kit.ahead import compiled_ahead
from experiments.kit.group_lanes import GroupLanes
from experiments.kit.methods import Group
from lopjax.detection import Lives, start_lives
from lopjax.runs.schedule import Part
from lopjax.training import Lanes, Logs, make_chunk, no_stream, over_lanes, start_lanes

Records = list[dict[str, Any]]
# Evaluations are drawn where no iteration comes to.
NO_ITERATION = 2**31 - 1


class Pupil(NamedTuple):
    """What is carried from part to part, of every lane.

    Attributes:
        agent: in training.
        lives: lives of its units, as last measured.
    """

    agent: Agent
    lives: Lives


class Shared(NamedTuple):
    """Functions that all groups of an environment use, for the seeds of one method at a time: compiled once.

    Lanes run side by side, on a CPU too: with networks this small ten take 0.8 of the processor time, and half of the
    time on the clock, that they take one after the other (`benchmarks.control`). The bits of a seed then depend on how
    many there are. Measurements, whose LAPACK calls are made one after the other anyway, are not batched.

    Attributes:
        seeds: seeds of every method.
        newborn: `(seeds, task) -> Newborn`.
        measure: result of `make_measure`.
        evaluate: result of `make_evaluate`.
        keys: keys of the iterations of every seed.
    """

    seeds: jax.Array
    newborn: Any
    measure: Any
    evaluate: Any
    keys: jax.Array


def share(setup: Setup, bench: Bench) -> Shared:
    """What all groups of an environment use; on one device measurements are compiled beside the first iterations."""
    seeds = jnp.array(setup.config.seeds)
    newborn = over_lanes(make_newborn(bench), 1, is_batched=True)
    measure = over_lanes(make_measure(bench), 3, is_batched=False)
    evaluate = over_lanes(make_evaluate(bench, setup.config.episodes), 4, is_batched=True)
    if setup.mesh is None:
        born, (lives, touched) = jax.eval_shape(lambda: (newborn(seeds, jnp.int32(0)), _unborn(bench, len(seeds))))
        moments = jax.eval_shape(lambda: jax.vmap(lambda _: start_moments((bench.world.observations,)))(seeds))
        number, keys = jnp.int32(0), born.keys.tasks
        measure = compiled_ahead(measure, born.variables, lives, touched, number, jnp.bool_(True))
        evaluate = compiled_ahead(evaluate, born.variables, moments, keys, keys, number)
    return Shared(seeds, newborn, measure, evaluate, jax.jit(jax.vmap(lambda seed: keys_of(seed)[1]))(seeds))


def _unborn(bench: Bench, num: int) -> tuple[Any, Any]:
    """Lives of so many networks before the first measurement, and that no unit was touched."""
    wiring = bench.model.wiring
    sizes = {space: wiring.size(space) for space in wiring.cloneable}
    lives = start_lives({space: jnp.zeros(size, jnp.int8) for space, size in sizes.items()})
    none = {space: jnp.zeros(size, bool) for space, size in sizes.items()}
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * num), (lives, none))


def parts(config: Config, setup: Setup) -> list[Part]:
    """All parts of a run: environment after environment, group after group."""
    made: list[Part] = []
    for bench in setup.benches.values():
        shared = share(setup, bench)
        made += [part for group in bench.groups for part in Life(setup, bench, shared, group).parts()]
    return made


class Life:
    """The parts of one group of lanes, which share one compiled program."""

    def __init__(self, setup: Setup, bench: Bench, shared: Shared, group: Group) -> None:
        """Prepare; nothing is compiled."""
        self.bench, self.shared, self.mesh = bench, shared, setup.mesh
        self.lanes = GroupLanes(group, setup.config.seeds, setup.mesh)
        program = make_program(bench, group)
        self.starting = over_lanes(program.start, 2, is_batched=True)
        self.beginning = over_lanes(program.begin, 2, is_batched=True)
        self.chunk = make_chunk(_of_pupil(program.step), no_stream(), setup.mesh, is_batched=True)

    def parts(self) -> list[Part]:
        """A measurement at the start, then one part a record; the last keeps the networks."""
        problem, name = self.bench.problem, self.bench.name
        every = problem.iterations // problem.records_per_task
        first = self.lanes.part(f"{name}: start", 0, lambda nothing: self.measured(0, {}, self.start()), self.like)
        made = [first._replace(is_start=True)]
        for number in range(problem.num_tasks * problem.records_per_task):
            made.append(self.lanes.part(name, every, partial(self.train, number), self.like))
        last = made[-1]
        made[-1] = last._replace(do=lambda lanes: self.with_certificates(last.do(lanes)), keep=self.kept)
        return made

    def start(self) -> Lanes:
        """Agents before their first task."""
        lives, _ = _unborn(self.bench, len(self.lanes.group.lanes))
        return self.lanes.placed(start_lanes(Pupil(self.started(0), lives)))

    def started(self, task: int) -> Agent:
        """Agents that are drawn at a task."""
        newborn = self.lanes.of_seeds(self.shared.newborn(self.shared.seeds, jnp.int32(task)))
        return self.starting(newborn, self.lanes.numbers())

    @cache  # noqa: B019 - as long-lived as the run
    def like(self) -> Any:
        """Structure of the lanes."""
        return jax.eval_shape(self.start)

    def train(self, number: int, lanes: Lanes) -> tuple[Lanes, Records]:
        """Chunk `number`, and a record of every lane."""
        problem = self.bench.problem
        every = problem.iterations // problem.records_per_task
        task, within = divmod(number, problem.records_per_task)
        if within == 0 and task > 0:
            agents = self.beginning(lanes.state.agent, self.lanes.placed(self.started(task)))
            lanes = lanes._replace(state=lanes.state._replace(agent=agents))
        keys = self.lanes.placed(self.lanes.of_seeds(self.shared.keys))
        lanes, logs = self.chunk(lanes, keys, number * every, every, ())
        return self.measured((number + 1) * every, logs, lanes)

    def measured(self, iteration: int, logs: Logs, lanes: Lanes) -> tuple[Lanes, Records]:
        """A record of every lane, and the lanes with what they remember."""
        problem, (agent, lives) = self.bench.problem, lanes.state
        task = max(iteration - 1, 0) // problem.iterations
        logs, frozen_at = self.lanes.read((logs, lanes.frozen_at))
        steps = iteration * problem.num_envs * problem.num_steps
        is_end = iteration > 0 and iteration % problem.iterations == 0
        where = {"problem": self.bench.name, "task": task, "iteration": iteration, "step": steps, "is_end": is_end}
        new_lives, records = [], []
        for row, names in self.lanes.rows():
            found, values = self.seen(self.lanes.row((agent, lives), row), iteration, task)
            new_lives.append(found)
            values |= {name: array[row] for name, array in logs.items()}
            for index, lane in enumerate(names):
                frozen = int(frozen_at[row.start + index])
                numbers = {name: float(array[index]) for name, array in values.items()}
                frozen_fields = {"frozen_at": frozen} if frozen >= 0 else {}
                records.append({**where, "method": lane.method, "seed": lane.seed, **frozen_fields, **numbers})
        untouched = agent._replace(touched=jax.tree.map(jnp.zeros_like, agent.touched))
        lives = self.lanes.placed(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *new_lives))
        return lanes._replace(state=Pupil(untouched, lives)), records

    def seen(self, row: tuple[Agent, Lives], iteration: int, task: int) -> tuple[Lives, dict[str, Any]]:
        """Lives and values of the seeds of one method."""
        (agent, lives), is_first = row, jnp.bool_(iteration == 0)
        variables, keys = agent.net.variables, agent.keys.tasks
        lives, values = self.shared.measure(variables, lives, agent.touched, jnp.int32(iteration), is_first)
        own = _evaluation_keys(keys, iteration)
        score = self.shared.evaluate(variables, agent.moments, keys, own, jnp.int32(task))
        return lives, self.lanes.read({**values, "score": score})

    def with_certificates(self, trained: tuple[Lanes, Any]) -> tuple[Lanes, Records]:
        """The last records, with what is certified of each network that has not diverged."""
        lanes, records = trained
        variables = self.lanes.read(lanes.state.agent.net.variables)
        for place, record in enumerate(records):
            if "frozen_at" not in record:
                record |= certified(self.bench, jax.tree.map(lambda leaf, place=place: leaf[place], variables))
        return lanes, records

    def kept(self, lanes: Lanes) -> dict[str, Any]:
        """The networks that training ended with, a file an environment and method, seeds along the leading axes."""
        variables = self.lanes.read(lanes.state.agent.net.variables)
        return {
            f"{self.bench.name}_{names[0].method}": {
                self.bench.name: jax.tree.map(lambda leaf, row=row: leaf[row], variables)
            }
            for row, names in self.lanes.rows()
        }


@jax.jit
def _evaluation_keys(keys: jax.Array, iteration: int) -> jax.Array:
    """Of the episodes that are played after an iteration."""
    return jax.vmap(lambda key: jax.random.fold_in(key, NO_ITERATION - iteration))(keys)


def _of_pupil(step: Any) -> Any:
    """A step of agents as one of pupils, whose lives it leaves alone."""

    def of_pupil(pupil: Pupil, *drawn: Any) -> tuple[Pupil, Logs]:
        agent, logs = step(pupil.agent, *drawn)
        return pupil._replace(agent=agent), logs

    return of_pupil
