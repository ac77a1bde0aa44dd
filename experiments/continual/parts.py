"""The parts of a continual-learning run: a chunk of steps and what is measured after it, again and again."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.continual.config import TasksConfig
from experiments.continual.lane import Trainee, make_program
from experiments.continual.measurements import make_measure
from experiments.continual.methods import is_fresh
from experiments.continual.setup import Setup
from experiments.kit.ahead import compiled_ahead
from experiments.kit.group_lanes import GroupLanes
from experiments.kit.methods import Lane
from lopjax.detection import lives_as_text
from lopjax.detection.lives import RECORDED
from lopjax.runs.schedule import Part
from lopjax.training import Lanes, Logs, make_chunk, over_lanes, place, start_lanes

Records = list[dict[str, Any]]


@jax.jit
def _joined(rows: list[Any]) -> Any:
    """The trees of all rows joined into one tree of all lanes."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)


@jax.jit
def _chosen(is_new: jax.Array, new: Any, old: Any) -> Any:
    """For every lane, the new tree or the old one."""

    def choose(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(is_new.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)


class Shared(NamedTuple):
    """What all groups of a run use.

    Attributes:
        networks: `task -> variables` of the networks that are drawn at a task, one per seed.
        noise_keys: keys for what a method draws, one per seed.
        data_keys: keys for the tasks, the order of their examples and all else that is random in a step, one per seed.
        measure: `make_measure`, for all seeds of one method; compiling it takes a large part of a short run.
        data: that of the training sequence, that of the test sequence, and the fixed probe.
    """

    networks: Callable[[int], Any]
    noise_keys: jax.Array
    data_keys: jax.Array
    measure: Any
    data: tuple[Any, Any, Any]


def share(setup: Setup) -> Shared:
    """Keys and data of all groups: only the seed decides where a method starts and which tasks it meets."""

    def of_seed(seed: jax.Array) -> jax.Array:
        return jax.random.split(jax.random.key(seed, impl="philox4x32"), 3)

    init_keys, noise_keys, data_keys = jax.jit(jax.vmap(of_seed, out_axes=1))(jnp.array(setup.config.seeds))

    def drawn(init_key: jax.Array, task: jax.Array) -> Any:
        return setup.model.init(jax.random.fold_in(init_key, task))

    # Drawn one after the other, so that a network is the same whatever is drawn beside it.
    draw = over_lanes(drawn, 1)
    problem = setup.problem
    test = () if problem.test is None else problem.test.data
    data = place(jax.tree.map(jnp.asarray, (setup.stream.data, test, problem.probe)), setup.mesh, is_per_lane=False)
    networks = lambda task: draw(init_keys, jnp.int32(task))  # noqa: E731
    return Shared(networks, noise_keys, data_keys, over_lanes(make_measure(setup), 4, setup.mesh), data)


def parts(config: TasksConfig, setup: Setup) -> list[Part]:
    """All parts of a run, group after group."""
    shared = share(setup)
    lives = [Life(setup, shared, GroupLanes(group, config.seeds, setup.mesh)) for group in setup.groups]
    if setup.mesh is None:
        measure = compiled_ahead(shared.measure, *lives[0].measured_shapes())
        for life in lives:
            life.shared = shared._replace(measure=measure)
    return [part for life in lives for part in life.parts()]


class Life:
    """The parts of one group of lanes, which share one compiled program."""

    def __init__(self, setup: Setup, shared: Shared, lanes: GroupLanes) -> None:
        """Prepare; nothing is compiled."""
        self.setup, self.shared, self.lanes = setup, shared, lanes
        self.program = make_program(setup, lanes.group)
        self.chunk = make_chunk(self.program.step, setup.stream, setup.mesh)
        self.starting = over_lanes(self.program.start, 3)
        self.beginning = over_lanes(self.program.begin, 1, setup.mesh)
        self.numbers = lanes.numbers()

    def parts(self) -> list[Part]:
        """One part per record; the last keeps the variables."""
        config, every = self.setup.config, self.setup.record_every
        numbers = range(config.num_tasks * config.steps // every)
        chunks = []
        for number in numbers:
            name = f"task {number * every // config.steps + 1}/{config.num_tasks}"
            part = self.lanes.part(name, every, partial(self.train, number), self.like)
            chunks.append(part._replace(num_records=self.num_records(number)))
        start = chunks[0].do
        chunks[0] = chunks[0]._replace(is_start=True, do=lambda nothing: start(self.start()))
        chunks[-1] = chunks[-1]._replace(keep=self.kept)
        return chunks

    def start(self) -> Lanes:
        """Initialised networks."""
        return self.lanes.placed(start_lanes(self.started(0)))

    def started(self, task: int) -> Any:
        """Networks drawn at a task, at the start of their training."""
        return self.starting(*self.lanes.of_seeds((self.shared.networks(task), self.shared.noise_keys)), self.numbers)

    def begun(self, task: int, lanes: Lanes) -> Lanes:
        """What happens before the first step of a task: fresh networks are drawn, output layers set to zero."""
        is_new = jnp.array([is_fresh(lane.method) for lane in self.lanes.group.lanes]) & (lanes.frozen_at < 0)
        state = lanes.state
        if task > 0 and any(is_fresh(lane.method) for lane in self.lanes.group.lanes):
            state = _chosen(is_new, self.lanes.placed(self.started(task)), state)
        return lanes._replace(state=self.beginning(state))

    @cache  # noqa: B019 - as long-lived as the run
    def like(self) -> Any:
        """Structure of the lanes."""
        return jax.eval_shape(lambda: start_lanes(self.started(0)))

    def first_row(self, task: int) -> int:
        """The first row that is trained at a task: fresh networks, which come first, may have none at this one."""
        is_resting = is_fresh(self.lanes.group.lanes[0].method) and (task + 1) % self.setup.fresh_every != 0
        return int(is_resting)

    def num_records(self, number: int) -> int:
        """How many lanes are trained, and recorded, in chunk `number`."""
        first = self.first_row(number * self.setup.record_every // self.setup.config.steps)
        return len(self.lanes.group.lanes) - first * len(self.lanes.seeds)

    def train(self, number: int, lanes: Lanes) -> tuple[Lanes, Records]:
        """Chunk `number`, and the records after it."""
        every, steps = self.setup.record_every, self.setup.config.steps
        task, start = number * every // steps, number * every
        rows = self.lanes.rows()[self.first_row(task) :]
        if not rows:
            return lanes, []
        if start % steps == 0:
            lanes = self.begun(task, lanes)
        keys, size = self.lanes.placed(self.lanes.of_seeds(self.shared.data_keys)), len(self.lanes.group.lanes)
        resting, training = slice(0, rows[0][0].start), slice(rows[0][0].start, size)
        if resting.stop == 0:
            lanes, logs = self.chunk(lanes, keys, start, every, self.shared.data[0])
            return self.measured((number + 1) * every, rows, logs, lanes)
        trained, keys = self.lanes.row(lanes, training), self.lanes.row(keys, training)
        trained, logs = self.chunk(trained, keys, start, every, self.shared.data[0])
        lanes = self.lanes.placed(_joined([self.lanes.row(lanes, resting), trained]))
        logs = jax.tree.map(lambda log: jnp.pad(log, (resting.stop, 0), constant_values=jnp.nan), logs)
        return self.measured((number + 1) * every, rows, logs, lanes)

    def measured(
        self, step: int, rows: list[tuple[slice, tuple[Lane, ...]]], logs: Logs, lanes: Lanes
    ) -> tuple[Lanes, Records]:
        """A record of every lane of these rows, the last ones, and the lanes with what they remember.

        A row at a time (the seeds of one method), so that all groups share the compiled program.
        """
        config, state = self.setup.config, lanes.state
        task, offset = divmod(step - 1, config.steps)
        is_end = offset == config.steps - 1
        where = {"task": task, "step": step, "step_in_task": offset + 1, "is_end": is_end}
        keys = self.lanes.placed(self.shared.data_keys)
        where_now = jnp.int32(task), jnp.bool_(is_end)
        # All rows are dispatched before anything is read: reading waits for the steps, which go on while this compiles.
        measurements = [
            self.shared.measure(*self.measured_of(self.lanes.row(state, row)), keys, *where_now, *self.shared.data)
            for row, _ in rows
        ]
        logs, frozen_at, records = self.lanes.read(logs), self.lanes.read(lanes.frozen_at), []
        for (row, names), (memory, values) in zip(rows, measurements, strict=True):
            values, lives = self.lanes.read(values), self.lanes.read((memory.status, memory.touched))
            for index, lane in enumerate(names):
                position = row.start + index
                frozen = {"frozen_at": int(frozen_at[position])} if frozen_at[position] >= 0 else {}
                numbers = {name: float(array[position]) for name, array in logs.items()}
                numbers |= {name: float(array[index]) for name, array in values.items()}
                units = {
                    f"{RECORDED}{space}": lives_as_text(status[index], lives[1][space][index])
                    for space, status in lives[0].items()
                }
                records.append({**lane.fields(), **where, **frozen, **numbers, **units})
        before = [self.lanes.row(state.memory, row) for row, _ in self.lanes.rows()[: -len(rows)]]
        memory = _joined([*before, *(memory for memory, _ in measurements)])
        memory = memory._replace(touched=jax.tree.map(jnp.zeros_like, memory.touched))
        return lanes._replace(state=state._replace(memory=self.lanes.placed(memory))), records

    @staticmethod
    def measured_of(trainee: Trainee) -> tuple[Any, ...]:
        """The part of a row of lanes that is measured."""
        return trainee.net.variables, trainee.meter, trainee.memory

    def measured_shapes(self) -> tuple[Any, ...]:
        """Shapes of all that `measure` is called with."""
        row, _ = self.lanes.rows()[0]
        of_lanes = jax.eval_shape(lambda: self.measured_of(self.lanes.row(self.started(0), row)))
        return *of_lanes, self.shared.data_keys, jnp.int32(0), jnp.bool_(True), *self.shared.data

    def kept(self, lanes: Lanes) -> dict[str, Any]:
        """What training ended with, a file per method: `{"network"}`, seeds along the leading axes."""
        trainee: Trainee = lanes.state
        variables = self.lanes.read(trainee.net.variables)
        return {
            names[0].method: {"network": jax.tree.map(lambda leaf, row=row: leaf[row], variables)}
            for row, names in self.lanes.rows()
        }
