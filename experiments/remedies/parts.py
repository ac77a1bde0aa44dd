"""The parts of a run: for every stream and method its settings on the tuning seeds, then the best on the others."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.group_lanes import GroupLanes
from experiments.kit.methods import Group, Lane
from experiments.remedies.config import Config
from experiments.remedies.lane import Learner, keys_of, make_program
from experiments.remedies.methods import CONTROLS, FRESH, NUM_SETTINGS, lanes_of, remedy_of
from experiments.remedies.streams import Setup
from lopjax.runs.schedule import Part
from lopjax.training import Lanes, make_chunk, over_lanes, start_lanes

Records = list[dict[str, Any]]
TUNE, EVALUATE = "tune", "evaluate"


def parts(config: Config, setup: Setup) -> list[Part]:
    """All parts of a run: stream after stream, method after method."""
    return [
        part
        for stream, bench in setup.benches.items()
        for method in lanes_of(config.methods, bench.base)
        for part in Life(setup, stream, method).parts()
    ]


class Phase(NamedTuple):
    """Tuning or evaluation of one method on one stream.

    Attributes:
        name: tuning or evaluation.
        lanes: those of all settings and seeds, or of all seeds.
    """

    name: str
    lanes: GroupLanes


class Life:
    """The parts of one method on one stream, which share their functions."""

    def __init__(self, setup: Setup, stream: str, method: str) -> None:
        """Prepare; nothing is compiled."""
        config = setup.config
        self.bench, self.mesh, self.place = setup.benches[stream], setup.mesh, {"stream": stream}
        program = make_program(self.bench, remedy_of(method))
        is_batched = True if self.bench.is_tiny and method != FRESH and not remedy_of(method).intervention else None
        self.chunk = make_chunk(program.step, self.bench.stream, setup.mesh, is_batched)
        self.starting = over_lanes(program.start, 2)
        self.of_seeds = jax.jit(jax.vmap(keys_of))
        settings = 1 if method in CONTROLS else NUM_SETTINGS

        def phase(name: str, seeds: tuple[int, ...], num: int) -> Phase:
            lanes = tuple(Lane(method, (), seed) for _ in range(num) for seed in seeds)
            return Phase(name, GroupLanes(Group(lanes, {}, {}), seeds, setup.mesh))

        evaluation = phase(EVALUATE, config.seeds, 1)
        self.phases = [phase(TUNE, config.tuning_seeds, settings), evaluation] if settings > 1 else [evaluation]

    def parts(self) -> list[Part]:
        """One part per record; the first of the evaluation takes the best setting from the tuning."""
        every = self.bench.sizes.tasks_per_record * self.bench.sizes.steps
        num_records = self.bench.sizes.num_tasks // self.bench.sizes.tasks_per_record
        chunks: list[Part] = []
        for phase in self.phases:
            first = len(chunks)
            for number in range(num_records):
                name, like = f"{self.place['stream']}: {phase.name}", partial(self.like, phase)
                chunks.append(phase.lanes.part(name, every, partial(self.train, phase, number), like))
            if phase.name == EVALUATE:
                chunks[first] = chunks[first]._replace(do=self.first(chunks[first].do, phase))
        if len(self.phases) > 1:
            tuning = self.phases[0]
            do = chunks[0].do
            numbers = np.repeat(np.arange(NUM_SETTINGS), len(tuning.lanes.seeds))
            chunks[0] = chunks[0]._replace(do=lambda nothing: do(self.started(tuning, numbers)))
        chunks[0] = chunks[0]._replace(is_start=True)
        return chunks

    def first(self, do: Callable[[Any], Any], phase: Phase) -> Callable[[Any], Any]:
        """The first part of the evaluation: networks drawn anew, with the setting that was best."""

        def start(tuned: Lanes | None) -> Any:
            best = 0 if len(self.phases) == 1 else self.best(tuned)
            return do(self.started(phase, np.full(len(phase.lanes.seeds), best)))

        return start

    def best(self, tuned: Any) -> int:
        """The setting with the largest mean online score over the tuning seeds; settings that diverged rank last."""
        totals = np.where(self.phases[0].lanes.read(tuned.frozen_at) < 0, self.totals(tuned), -np.inf)
        return int(np.argmax(totals.reshape(NUM_SETTINGS, -1).mean(axis=1)))

    def totals(self, tuned: Lanes) -> np.ndarray:
        """The sum of scores of every lane, by which settings are compared."""
        return self.phases[0].lanes.read(tuned.state.total)

    def started(self, phase: Phase, settings: np.ndarray) -> Lanes:
        """Networks at the start of training."""
        seeds = jnp.array(phase.lanes.seeds)
        keys = phase.lanes.of_seeds(self.of_seeds(seeds))
        return phase.lanes.placed(start_lanes(self.starting(keys, jnp.asarray(settings, jnp.int32))))

    def like(self, phase: Phase) -> Any:
        """Structure of the lanes."""
        num = len(phase.lanes.group.lanes)
        return jax.eval_shape(lambda: self.started(phase, np.zeros(num, np.int32)))

    def train(self, phase: Phase, number: int, lanes: Lanes) -> tuple[Lanes, Records]:
        """Chunk `number`, and a record of every lane."""
        sizes = self.bench.sizes
        every = sizes.tasks_per_record * sizes.steps
        keys = phase.lanes.placed(phase.lanes.of_seeds(self.of_seeds(jnp.array(phase.lanes.seeds)).lane))
        start = time.process_time()
        lanes, logs = self.chunk(lanes, keys, number * every, every, self.bench.stream.data)
        jax.block_until_ready(logs)
        spent = 1e3 * (time.process_time() - start) / (every * len(phase.lanes.group.lanes))
        if 2 * number >= sizes.num_tasks // sizes.tasks_per_record:
            state: Learner = lanes.state
            lanes = lanes._replace(state=state._replace(total=state.total + logs["online"].astype(state.total.dtype)))
        settings = phase.lanes.read(lanes.state.setting)
        where = {**self.place, "phase": phase.name, "record": number, "task": (number + 1) * sizes.tasks_per_record}
        records = phase.lanes.records(lanes, logs, where, lambda state: {})
        timed = {"cpu_ms_per_step": spent}
        return lanes, [
            {**record, "setting": int(setting), **timed} for record, setting in zip(records, settings, strict=True)
        ]
