"""The escape experiment as a list of parts: the bases, their cloning, and chunks of training of all clones at once."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.escape.config import Config
from experiments.escape.lane import (
    Numbers,
    clone_of,
    make_base_step,
    make_clone_step,
    make_linear_step,
    make_measure,
    start_base,
)
from experiments.escape.setup import CLONE, LINEAR, Setup
from experiments.kit.group_lanes import GroupLanes
from lopjax.model import Variables
from lopjax.runs.schedule import Part
from lopjax.training import Lanes, Logs, gathered, make_chunk, over_lanes, place, start_lanes

Records = list[dict[str, Any]]
STEPS = {CLONE: make_clone_step, LINEAR: make_linear_step}


class Shared(NamedTuple):
    """Keys and data of a run, on the devices.

    Attributes:
        init_keys: keys for the base networks, one per seed, like the next three.
        noise_keys: keys for the noise on the gradients of a clone.
        other_noise_keys: the same for the linear theory of a clone.
        data_keys: keys for the order of the examples and for dropout.
        train: images and labels.
        probe: inputs on which R² is measured.
        test: images and labels.
    """

    init_keys: jax.Array
    noise_keys: jax.Array
    other_noise_keys: jax.Array
    data_keys: jax.Array
    train: Any
    probe: Any
    test: Any


def share(setup: Setup) -> Shared:
    """What all parts use. Only the seed decides which base a clone has and which batches it sees."""

    def of_seed(seed: jax.Array) -> jax.Array:
        return jax.random.split(jax.random.key(seed, impl="philox4x32"), 4)

    keys = jax.jit(jax.vmap(of_seed, out_axes=1))(jnp.array(setup.config.seeds))
    data = setup.dataset
    inputs = setup.preprocess.inputs(data.train_images[: setup.config.probe_samples])
    arrays = jax.tree.map(jnp.asarray, (setup.stream.data, inputs, (data.test_images, data.test_labels)))
    return Shared(*keys, *place(arrays, setup.mesh, is_per_lane=False))


def parts(config: Config, setup: Setup) -> list[Part]:
    """All parts of a run: those of the clones and, if asked for, those of their linear theory."""
    shared = share(setup)
    kinds = (CLONE, LINEAR) if config.linear else (CLONE,)
    return [part for kind in kinds for part in parts_of(setup, shared, kind)]


def parts_of(setup: Setup, shared: Shared, kind: str) -> list[Part]:
    """One part for the bases, one for the cloning, and one per record of the clones."""
    config = setup.config
    bases = GroupLanes(setup.bases(kind), config.seeds, setup.mesh)
    clones = Clones(setup, shared, kind)
    start, train = base_training(setup, shared, bases)
    numbers = range(config.clone_steps // config.record_every)
    *before, last = [
        clones.lanes.part("training", config.record_every, partial(clones.train, number), clones.like)
        for number in numbers
    ]
    return [
        bases.part("base", config.base_steps, train, lambda: jax.eval_shape(start))._replace(is_start=True),
        clones.lanes.part("cloning", 0, clones.start, clones.like),
        *before,
        last._replace(keep=clones.kept if kind == CLONE else None),
    ]


def base_training(
    setup: Setup, shared: Shared, bases: GroupLanes
) -> tuple[Callable[[], Lanes], Callable[[Any], tuple[Lanes, Records]]]:
    """`() -> lanes`, the initialised base networks, and `nothing -> (lanes, records)`, their whole training."""
    chunk = make_chunk(make_base_step(setup), setup.stream, setup.mesh)

    def start() -> Lanes:
        return bases.placed(start_lanes(over_lanes(partial(start_base, setup), 1)(shared.init_keys)))

    def train(nothing: Any) -> tuple[Lanes, Records]:
        del nothing
        keys, steps = bases.placed(shared.data_keys), setup.config.base_steps
        lanes, logs = chunk(start(), keys, 0, steps, shared.train)
        return lanes, bases.records(lanes, logs, {"phase": "base", "step": steps}, lambda state: {})

    return start, train


class Clones:
    """The parts of all clones of a kind, which share one compiled program."""

    def __init__(self, setup: Setup, shared: Shared, kind: str) -> None:
        """Prepare; nothing is compiled."""
        self.setup, self.shared, self.kind = setup, shared, kind
        self.lanes = GroupLanes(setup.clones(kind), setup.config.seeds, setup.mesh)
        self.chunk = make_chunk(STEPS[kind](setup), setup.stream, setup.mesh)
        self.cloning = over_lanes(partial(clone_of, setup), 3)

    def start(self, bases: Lanes) -> tuple[Lanes, Records]:
        """Clone the base of every seed, once per point of the grid."""
        variables, frozen_at = gathered((bases.state.variables, bases.frozen_at), self.setup.mesh)
        lanes = start_lanes(self.cloning(*self.arguments(variables)))
        lanes = self.lanes.placed(lanes._replace(frozen_at=self.lanes.of_seeds(frozen_at)))
        return lanes, self.records(0, {}, lanes)

    def arguments(self, variables: Variables) -> tuple[Variables, jax.Array, Numbers]:
        """Base, noise key and numbers of every lane."""
        noise_keys = self.shared.noise_keys if self.kind == CLONE else self.shared.other_noise_keys
        return (*self.lanes.of_seeds((variables, noise_keys)), self.lanes.numbers())

    def train(self, number: int, lanes: Lanes) -> tuple[Lanes, Records]:
        """Chunk `number` of the clones' training, and a measurement."""
        # Batches go on where those of the base ended.
        first, steps = self.setup.config.base_steps + number * self.setup.config.record_every, self.record_every
        keys = self.lanes.placed(self.lanes.of_seeds(self.shared.data_keys))
        lanes, logs = self.chunk(lanes, keys, first, steps, self.shared.train)
        return lanes, self.records((number + 1) * steps, logs, lanes)

    @property
    def record_every(self) -> int:
        """Steps of a chunk."""
        return self.setup.config.record_every

    @cache  # noqa: B019 - as long-lived as the run
    def like(self) -> Any:
        """Structure of the lanes."""

        def started() -> Lanes:
            variables = jax.vmap(self.setup.base.init)(self.shared.init_keys)
            return start_lanes(jax.vmap(partial(clone_of, self.setup))(*self.arguments(variables)))

        return jax.eval_shape(started)

    @cache  # noqa: B019 - as long-lived as the run
    def measure(self, is_last: bool) -> Callable[..., Logs]:
        """What is measured of every lane of a row, compiled once."""
        return over_lanes(make_measure(self.setup, self.kind, is_last), 1, self.setup.mesh)

    def records(self, step: int, logs: Logs, lanes: Lanes) -> Records:
        """What a chunk has logged, and what is measured after it."""
        measure = self.measure(step == self.setup.config.clone_steps)
        return self.lanes.records(
            lanes,
            logs,
            {"phase": "clone", "step": step},
            lambda clone: measure(clone.network.variables, self.shared.probe, self.shared.test),
        )

    def kept(self, lanes: Lanes) -> dict[str, Any]:
        """The variables that training ended with, lanes (points of the grid, then seeds) along the leading axis."""
        return {"clones": self.lanes.read(lanes.state.network.variables)}
