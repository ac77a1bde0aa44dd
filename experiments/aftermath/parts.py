"""The parts of a run: base networks, their clones and all other arms on the same task, then all on the next."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.aftermath.config import ARMS, BASE, NEVER, Config
from experiments.aftermath.lane import (
    Learner,
    Numbers,
    freeing_step,
    make_measure,
    quiet_step,
    start_freeing,
    start_quietly,
)
from experiments.aftermath.setup import Setup, probe
from experiments.kit.group_lanes import GroupLanes
from experiments.kit.methods import Group, Lane
from lopjax.cloning import clone_variables, uniform_partition
from lopjax.manifolds import cloned_manifold
from lopjax.model import Params, Variables
from lopjax.recovery import critical_noise
from lopjax.runs.schedule import Part
from lopjax.stability import unit_blocks
from lopjax.training import Lanes, Logs, make_chunk, over_lanes, place, start_lanes

Records = list[dict[str, Any]]
SCRATCH = "scratch"
SAME, NEXT = "same task", "next task"


class State(NamedTuple):
    """Everything in training.

    Attributes:
        narrow: the small networks, a lane a seed.
        wide: those of twice the size: before the cloning the ones that train as long as the base, then all arms.
    """

    narrow: Lanes
    wide: Lanes


class Keys(NamedTuple):
    """What a seed decides.

    Attributes:
        narrow: random key of the small network's initial parameters.
        wide: random key of the networks drawn anew (those at the total budget, and at the clone's budget).
        own: random key of noise, kicks and splits.
        data: random key of the order of the examples.
    """

    narrow: jax.Array
    wide: jax.Array
    own: jax.Array
    data: jax.Array


def keys_of(seed: jax.Array) -> Keys:
    """All keys of a seed."""
    narrow, long, short, own, data = jax.random.split(jax.random.key(seed, impl="philox4x32"), 5)
    return Keys(narrow, jnp.stack([long, short]), own, data)


def parts(config: Config, setup: Setup) -> list[Part]:
    """All parts of a run."""
    return Life(config, setup).parts()


class Life:
    """The parts of a run, which share their functions, keys and data."""

    def __init__(self, config: Config, setup: Setup) -> None:
        """Prepare; nothing is compiled."""
        self.config, self.setup = config, setup
        self.keys: Keys = jax.jit(jax.vmap(keys_of))(jnp.array(config.seeds))
        self.narrow, self.scratch, self.wide = (self._lanes(arms) for arms in ([BASE], [SCRATCH], list(ARMS)))
        arrays = jax.tree.map(jnp.asarray, (probe(config, setup)[0], setup.tasks))
        self.inputs, self.tasks = place(arrays, setup.mesh, is_per_lane=False)
        self.chunks = {
            name: make_chunk(step, setup.stream, setup.mesh)
            for name, step in (
                ("narrow", quiet_step(setup, setup.narrow)),
                ("wide", quiet_step(setup, setup.wide)),
                ("freeing", freeing_step(setup)),
            )
        }
        measures = {
            "narrow": make_measure(setup.narrow, setup.preprocess),
            "wide": make_measure(setup.wide, setup.preprocess, uniform_partition(setup.wide.wiring, config.factor)),
        }
        self.measures = {name: over_lanes(measure, 1, setup.mesh) for name, measure in measures.items()}

    def _lanes(self, arms: list[str]) -> GroupLanes:
        lanes = tuple(Lane(arm, (), seed) for arm in arms for seed in self.config.seeds)
        return GroupLanes(Group(lanes, {}, {}), self.config.seeds, self.setup.mesh)

    def parts(self) -> list[Part]:
        """The bases and what trains beside them; the cloning; both tasks in chunks."""
        config = self.config
        before = self._part("base", config.base_steps, self.train_bases, self.started, 2)._replace(is_start=True)
        cloning = self._part("cloning", 0, self.make_arms, self.arms_like, 0)
        phases = (
            (SAME, config.clone_steps, self.train, self.arms_like),
            (NEXT, config.next_steps, self.train_next, self.next_like),
        )
        later = [
            self._part(name, steps // config.chunks, partial(do, number), like, len(ARMS) + 1)
            for name, steps, do, like in phases
            for number in range(config.chunks)
        ]
        return [before, cloning, *later]

    def _part(self, name: str, steps: int, do: Any, like: Callable[[], Any], arms: int) -> Part:
        num = arms * len(self.config.seeds)
        return Part(name, steps * num, do, like, num_records=num)

    # --- Before the cloning --------------------

    def started(self) -> State:
        """Initialised: the small networks, and those of twice the size that train as long."""
        setup = self.setup
        narrow, wide = (
            start_lanes(over_lanes(lambda key, model=model: start_quietly(setup, model.init(key)), 1)(keys))
            for model, keys in ((setup.narrow, self.keys.narrow), (setup.wide, self.keys.wide[:, 0]))
        )
        return State(self.narrow.placed(narrow), self.scratch.placed(wide))

    def train_bases(self, nothing: Any) -> tuple[State, Records]:
        """All of the first phase."""
        del nothing
        state, where = self.started(), {"phase": "base", "step": self.config.base_steps}
        data, steps = self.tasks[0][0], self.config.base_steps
        narrow, logs = self.chunks["narrow"](state.narrow, self._data_keys(self.narrow), 0, steps, data)
        wide, wide_logs = self.chunks["wide"](state.wide, self._data_keys(self.scratch), 0, steps, data)
        records = self.narrow.records(narrow, logs, where, self._measure("narrow", 0))
        records += self.scratch.records(wide, wide_logs, where, self._measure("wide", 0))
        return State(narrow, wide), records

    # --- The arms --------------------

    def make_arms(self, state: State) -> tuple[State, Records]:
        """What every arm of the doubled size starts from."""
        setup, keys = self.setup, self.keys
        base = state.narrow.state.variables
        cloned = jax.vmap(lambda one: clone_variables(one, setup.narrow.wiring, self.config.factor))(base)
        starts = {
            "critical_kick": lambda: self._kicked(base, cloned),
            SCRATCH: lambda: state.wide.state.variables,
            "scratch_short": lambda: jax.vmap(setup.wide.init)(keys.wide[:, 1]),
        }
        variables = [starts.get(arm, lambda: cloned)() for arm in ARMS]
        joined = jax.tree.map(lambda *arms: jnp.concatenate(arms), *variables)
        wide = over_lanes(partial(start_freeing, setup), 2)(joined, self._numbers())
        # Plain SGD has no memory: the small networks go on as they are.
        return State(state.narrow, self.wide.placed(start_lanes(wide))), []

    def arms_like(self) -> State:
        """Structure of the state on the same task."""

        def start() -> State:
            keys = self.wide.of_seeds(self.keys.narrow)
            wide = jax.vmap(partial(start_freeing, self.setup))(jax.vmap(self.setup.wide.init)(keys), self._numbers())
            return State(self.started().narrow, start_lanes(wide))

        return jax.eval_shape(start)

    def _numbers(self) -> Numbers:
        config, num = self.config, len(self.config.seeds)
        rows = [
            (
                config.noise_scale if arm.is_noisy else 0.0,
                config.brief_decay if arm.is_brief else 1.0,
                config.split_every if arm.is_split else NEVER,
            )
            for arm in ARMS.values()
        ]
        scales, decays, every = (np.repeat(np.array(column), num) for column in zip(*rows, strict=True))
        keys = self.wide.of_seeds(self.keys.own)
        return Numbers(jnp.asarray(scales, jnp.float32), jnp.asarray(decays, jnp.float32), jnp.asarray(every), keys)

    def _kicked(self, base: Variables, cloned: Variables) -> Variables:
        """Clones after one Gaussian kick across their manifold, of the size that linear theory says it takes."""
        inputs, labels = self.inputs, self.tasks[0][0][1][: self.config.probe_samples]
        scales = []
        for number in range(len(self.config.seeds)):
            one = jax.tree.map(lambda leaf, number=number: leaf[number], base)
            blocks = unit_blocks(self.setup.narrow, one, (inputs, labels), self.config.factor)
            config = self.config
            scales.append(critical_noise(blocks, config.kick_radius, config.kick_steps, config.learning_rate))
        stacked = {space: jnp.array([each[space] for each in scales]) for space in scales[0]}
        return jax.jit(jax.vmap(partial(kick, self.setup)))(cloned, stacked, self.keys.own)

    # --- Both tasks --------------------

    def train(self, number: int, state: State) -> tuple[State, Records]:
        """A chunk on the task of the bases."""
        steps, data = self.config.clone_steps // self.config.chunks, self.tasks[0][0]
        start = self.config.base_steps + number * steps
        narrow, logs = self.chunks["narrow"](state.narrow, self._data_keys(self.narrow), start, steps, data)
        wide, wide_logs = self.chunks["freeing"](state.wide, self._data_keys(self.wide), start, steps, data)
        return self._recorded(State(narrow, wide), (logs, wide_logs), SAME, number)

    def train_next(self, number: int, state: State) -> tuple[State, Records]:
        """A chunk on the next task; before the first, all arms become networks under plain SGD."""
        if number == 0:
            wide = state.wide._replace(state=_quietened(self.setup, state.wide.state.network.variables))
            state = State(state.narrow, self.wide.placed(wide))
        steps, data = self.config.next_steps // self.config.chunks, self.tasks[1][0]
        start = self.config.base_steps + self.config.clone_steps + number * steps
        narrow, logs = self.chunks["narrow"](state.narrow, self._data_keys(self.narrow), start, steps, data)
        wide, wide_logs = self.chunks["wide"](state.wide, self._data_keys(self.wide), start, steps, data)
        return self._recorded(State(narrow, wide), (logs, wide_logs), NEXT, number)

    def next_like(self) -> State:
        """Structure of the state on the next task."""
        shapes = self.arms_like()
        quiet = jax.eval_shape(partial(_quietened, self.setup), shapes.wide.state.network.variables)
        return State(shapes.narrow, shapes.wide._replace(state=quiet))

    def _recorded(self, state: State, logs: tuple[Logs, Logs], phase: str, number: int) -> tuple[State, Records]:
        """A record of every lane: what it logged and, at the end of a phase, what is measured."""
        steps = {SAME: self.config.clone_steps, NEXT: self.config.next_steps}[phase] // self.config.chunks
        where, is_end = {"phase": phase, "step": (number + 1) * steps}, number == self.config.chunks - 1
        narrow, wide = (
            self._measure(size, int(phase == NEXT)) if is_end else lambda state: {} for size in ("narrow", "wide")
        )
        records = self.narrow.records(state.narrow, logs[0], where, narrow)
        return state, records + self.wide.records(state.wide, logs[1], where, wide)

    def _measure(self, size: str, task: int) -> Callable[[Any], Logs]:
        """`state of a row -> what is measured of it` on a task."""
        (_, labels), test = self.tasks[task]
        labels = labels[: self.config.probe_samples]

        def measure(state: Any) -> Logs:
            network = state.network if isinstance(state, Learner) else state
            return self.measures[size](network.variables, self.inputs, labels, test)

        return measure

    def _data_keys(self, lanes: GroupLanes) -> jax.Array:
        return lanes.placed(lanes.of_seeds(self.keys.data))


def _quietened(setup: Setup, variables: Variables) -> Any:
    return jax.vmap(partial(start_quietly, setup))(variables)


def kick(setup: Setup, variables: Variables, scales: dict[str, jax.Array], key: jax.Array) -> Variables:
    """Gaussian noise on every coordinate in which the clones of a space differ, of that space's deviation."""
    params, wiring = variables["params"], setup.wide.wiring
    zeros, partition = jax.tree.map(jnp.zeros_like, params), uniform_partition(wiring, setup.config.factor)
    for number, (space, clusters) in enumerate(partition.items()):
        noise = _normal_like(params, jax.random.fold_in(key, 2 + number))
        together = cloned_manifold(zeros, wiring, {space: clusters}).project(noise)
        apart = jax.tree.map(jnp.subtract, noise, together)
        params = jax.tree.map(lambda leaf, change, space=space: leaf + scales[space] * change, params, apart)
    return {**variables, "params": params}


def _normal_like(params: Params, key: jax.Array) -> Params:
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(one, leaf.shape, leaf.dtype) for one, leaf in zip(keys, leaves, strict=True)]
    return structure.unflatten(drawn)
