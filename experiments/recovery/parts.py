"""The parts of a run: the stream, then every arm on the task, then all on the next."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.aftermath.lane import make_measure
from experiments.aftermath.parts import NEXT, SAME
from experiments.kit.group_lanes import GroupLanes
from experiments.kit.methods import Group, Lane
from experiments.recovery.config import ARMS, SCRATCH, SCRATCH_SHORT, UNTREATED, Config
from experiments.recovery.setup import Setup
from experiments.remedies.methods import Remedy, remedy_of
from lopjax.losses import accuracy
from lopjax.runs.schedule import Part
from lopjax.training import (
    Drawn,
    Lanes,
    Logs,
    Setting,
    TrainState,
    init_state,
    intervene,
    logs_of,
    make_chunk,
    over_lanes,
    place,
    start_intervention,
    start_lanes,
    train_step,
)

Records = list[dict[str, Any]]
State = dict[str, Lanes]
"""Lanes by the name of their program: "plain", or the method that treats them."""
PLAIN = "plain"


class Keys(NamedTuple):
    """What a seed decides.

    Attributes:
        nets: random keys of initial parameters: from the stream, drawn anew with the total budget, drawn anew.
        own: random key of the methods' own draws.
        stream: random key of the stream's tasks and their batches.
        data: random key of the batches of the task and the next.
    """

    nets: jax.Array
    own: jax.Array
    stream: jax.Array
    data: jax.Array


def keys_of(seed: jax.Array) -> Keys:
    """All keys of a seed."""
    first, second, third, own, stream, data = jax.random.split(jax.random.key(seed, impl="philox4x32"), 6)
    return Keys(jnp.stack([first, second, third]), own, stream, data)


def parts(config: Config, setup: Setup) -> list[Part]:
    """All parts of a run."""
    return Life(config, setup).parts()


class Program(NamedTuple):
    """Functions of one lane.

    Attributes:
        start: `(variables, own key) -> TrainState`, with an optimizer that remembers nothing.
        step: `((TrainState, own key), drawn, key, index) -> (state, logs)`.
    """

    start: Callable[..., tuple[TrainState, jax.Array]]
    step: Callable[..., tuple[tuple[TrainState, jax.Array], Logs]]


def make_program(setup: Setup, method: str | None, inputs: Callable[[Any], jax.Array]) -> Program:
    """Plain Adam, or a remedy at its setting, on batches whose stored part `inputs` turns into inputs."""
    bench, remedy, numbers = setup.stream, Remedy(PLAIN, {}), {}
    if method is not None:
        remedy = remedy_of(method)
        numbers = remedy.settings["adam"][getattr(setup.config, f"{method}_setting")]
    intervention = None
    if remedy.intervention is not None:
        intervention = remedy.intervention({**numbers, "probe": setup.probe})

    def setting(own: jax.Array) -> Setting:
        return Setting(bench.model, bench.optimizer(remedy, numbers, own), bench.loss)

    def start(variables: Any, own: jax.Array) -> tuple[TrainState, jax.Array]:
        net = init_state(variables, setting(own).optimizer)
        return (net if intervention is None else start_intervention(intervention, setting(own), net)), own

    def step(
        state: tuple[TrainState, jax.Array], drawn: Drawn, key: jax.Array, index: jax.Array
    ) -> tuple[tuple[TrainState, jax.Array], Logs]:
        net, own = state
        stored, labels = drawn.batch
        batch, step_key = (inputs(stored), labels), jax.random.fold_in(key, 0)
        net, seen = train_step(bench.model, setting(own).optimizer, net, batch, step_key, loss=bench.loss)
        logs = logs_of(seen, "loss") | {"accuracy": accuracy(seen.logits, labels)}
        if intervention is not None:
            net, report = intervene(intervention, setting(own), net, seen, jax.random.fold_in(key, 1), index)
            logs |= {f"own/{name}": value * jnp.ones(()) for name, value in report.logs.items()}
        return (net, own), logs

    return Program(start, step)


class Life:
    """The parts of a run, which share their functions, keys and data."""

    def __init__(self, config: Config, setup: Setup) -> None:
        """Prepare; nothing is compiled."""
        self.config, self.setup = config, setup
        self.keys: Keys = jax.jit(jax.vmap(keys_of))(jnp.array(config.seeds))
        self.tasks = place(jax.tree.map(jnp.asarray, setup.tasks), setup.mesh, is_per_lane=False)
        methods = {name: arm.method or PLAIN for name, arm in ARMS.items()}
        names = dict.fromkeys(methods.values())
        self.lanes = {each: self._lanes([arm for arm in ARMS if methods[arm] == each]) for each in names}
        self.all, self.one = self._lanes(list(ARMS)), self._lanes([UNTREATED])
        images = setup.preprocess.inputs
        self.programs = {each: make_program(setup, None if each == PLAIN else each, images) for each in names}
        self.chunks = {each: make_chunk(one.step, setup.task, setup.mesh) for each, one in self.programs.items()}
        stream = make_program(setup, None, setup.stream.inputs)
        self.stream = make_chunk(stream.step, setup.stream.stream, setup.mesh)
        self.measure = over_lanes(make_measure(setup.stream.model, setup.preprocess), 1, setup.mesh)

    def _lanes(self, arms: list[str]) -> GroupLanes:
        lanes = tuple(Lane(arm, (), seed) for arm in arms for seed in self.config.seeds)
        return GroupLanes(Group(lanes, {}, {}), self.config.seeds, self.setup.mesh)

    def parts(self) -> list[Part]:
        """The stream, and beside it the network of the total budget; then both tasks in chunks."""
        config, num = self.config, len(ARMS) * len(self.config.seeds)
        sizes = config.stream
        before = sizes.num_tasks * sizes.steps * 2 * len(config.seeds)
        first = Part("stream", before, self.before, self.arms_like, num_records=0)._replace(is_start=True)
        phases = (
            (SAME, config.task_steps, self.train, self.arms_like),
            (NEXT, config.next_steps, self.train_next, self.next_like),
        )
        later = [
            Part(name, steps // config.chunks * num, partial(do, number), like, num_records=num)
            for name, steps, do, like in phases
            for number in range(config.chunks)
        ]
        return [first, *later]

    def drawn(self, which: int) -> Any:
        """Initial variables, one per seed."""
        return over_lanes(self.setup.stream.model.init, 1)(self.keys.nets[:, which])

    def started(self, name: str, variables: Any) -> Lanes:
        """Lanes of a program at their start."""
        lanes = self.lanes[name] if name != NEXT else self.all
        start = self.programs[PLAIN if name == NEXT else name].start
        return lanes.placed(start_lanes(over_lanes(start, 2)(variables, lanes.of_seeds(self.keys.own))))

    def before(self, nothing: Any) -> tuple[State, Records]:
        """Train on the stream, and on the task the network that has the total budget; then start every arm."""
        del nothing
        steps, own = self.config.stream.num_tasks * self.config.stream.steps, self.keys.own

        def trained(which: int, chunk: Any, keys: jax.Array, data: Any) -> Any:
            lanes = start_lanes(over_lanes(self.programs[PLAIN].start, 2)(self.drawn(which), own))
            return chunk(self.one.placed(lanes), self.one.placed(keys), 0, steps, data)[0].state[0].variables

        stream = self.setup.stream.stream
        old = trained(0, self.stream, self.keys.stream, jax.tree.map(jnp.asarray, stream.data))
        long = trained(1, self.chunks[PLAIN], self.keys.data, self.tasks[0][0])
        return self.arms(old, long), []

    def arms(self, old: Any, long: Any) -> State:
        """Every arm at the start of the task."""
        starts = {SCRATCH: long, SCRATCH_SHORT: self.drawn(2)}
        joined = {
            name: jax.tree.map(
                lambda *rows: jnp.concatenate(rows), *[starts.get(arm, old) for arm in self._arms(lanes)]
            )
            for name, lanes in self.lanes.items()
        }
        return {name: self.started(name, variables) for name, variables in joined.items()}

    @staticmethod
    def _arms(lanes: GroupLanes) -> list[str]:
        return list(dict.fromkeys(lane.method for lane in lanes.group.lanes))

    @cache  # noqa: B019 - as long-lived as the run
    def arms_like(self) -> State:
        """Structure of the state on the task."""
        return jax.eval_shape(lambda: self.arms(self.drawn(0), self.drawn(0)))

    def next_like(self) -> State:
        """Structure of the state on the next task."""
        return jax.eval_shape(self._together, self.arms_like())

    def _together(self, state: State) -> State:
        """All arms as networks under plain Adam, in the order of `ARMS`."""
        variables = {
            arm: jax.tree.map(lambda leaf, row=row: leaf[row], state[name].state[0].variables)
            for name, lanes in self.lanes.items()
            for arm, (row, _) in zip(self._arms(lanes), lanes.rows(), strict=True)
        }
        joined = jax.tree.map(lambda *rows: jnp.concatenate(rows), *(variables[arm] for arm in ARMS))
        return {NEXT: self.started(NEXT, joined)}

    def train(self, number: int, state: State) -> tuple[State, Records]:
        """A chunk of every arm on the task."""
        after, records = {}, []
        steps = self.config.task_steps // self.config.chunks
        for name, lanes in self.lanes.items():
            after[name], found = self._chunk(self.chunks[name], state[name], lanes, steps, number, 0)
            records += found
        return after, records

    def train_next(self, number: int, state: State) -> tuple[State, Records]:
        """A chunk of all on the next task; before the first, they become networks under plain Adam."""
        state = self._together(state) if number == 0 else state
        steps = self.config.next_steps // self.config.chunks
        after, records = self._chunk(self.chunks[PLAIN], state[NEXT], self.all, steps, number, 1)
        return {NEXT: after}, records

    def _chunk(
        self, chunk: Any, lanes: Lanes, group: GroupLanes, steps: int, number: int, task: int
    ) -> tuple[Lanes, Records]:
        data, keys = self.tasks[task][0], group.placed(group.of_seeds(self.keys.data))
        # Steps of the task are counted from where the network of the total budget stands.
        first = self.config.stream.num_tasks * self.config.stream.steps + task * self.config.task_steps
        lanes, logs = chunk(lanes, keys, first + number * steps, steps, data)
        is_end = number == self.config.chunks - 1
        where = {"phase": (SAME, NEXT)[task], "step": (number + 1) * steps}
        labels, test = self.tasks[task][0][1][: self.config.probe_samples], self.tasks[task][1]

        def measured(state: Any) -> Logs:
            return self.measure(state[0].variables, self.setup.probe[0], labels, test) if is_end else {}

        return lanes, group.records(lanes, logs, where, measured)
