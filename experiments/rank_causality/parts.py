"""The parts of a run: of every case the checkpoints, then every arm of them on the next tasks."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.group_lanes import GroupLanes
from experiments.kit.methods import Group, Lane
from experiments.rank_causality.acts import check_function
from experiments.rank_causality.arms import ARMS, FREE, NONE, Arm
from experiments.rank_causality.config import Config
from experiments.rank_causality.lane import Keys, Learner, keys_of, make_measure, make_step
from experiments.rank_causality.setup import Bench, Setup
from lopjax.model import Model, Variables
from lopjax.runs.schedule import Part
from lopjax.training import Lanes, Logs, make_chunk, over_lanes, start_lanes

Records = list[dict[str, Any]]
CHECKPOINT = "checkpoint"
NOTHING: Mapping[str, Any] = MappingProxyType({})


def parts(config: Config, setup: Setup) -> list[Part]:
    """All parts of a run, case after case."""
    del config
    return [part for bench in setup.benches.values() for part in Trial(setup, bench).parts()]


class Trial:
    """The parts of one case. Lanes are seeds; arms follow one another and share a program with all of their size."""

    def __init__(self, setup: Setup, bench: Bench) -> None:
        """Prepare; nothing is compiled."""
        self.config, self.bench, self.mesh = setup.config, bench, setup.mesh
        self.place = bench.case._asdict()
        self.data = jax.tree.map(jnp.asarray, bench.stream.data)
        self.probe = bench.problem.inputs(bench.problem.probe[0], None)

    def parts(self) -> list[Part]:
        """The checkpoints, and one part an arm, which leaves them as they are."""
        config, case = self.config, self.bench.case
        first = self.lanes(CHECKPOINT).part(case.name, config.steps, self.train_checkpoints, self.like)
        kept = {"-".join(map(str, case)): lambda lanes: self.lanes(CHECKPOINT).read(lanes.state.variables)}
        arms = [
            self.lanes(name)
            .part(case.name, config.steps * config.num_tasks, partial(self.try_arm, name), self.like)
            ._replace(num_records=len(config.seeds) * config.num_tasks * (config.records + 1))
            for name in config.arms
        ]
        return [
            first._replace(is_start=True, keep=lambda lanes: {name: get(lanes) for name, get in kept.items()}),
            *arms,
        ]

    def lanes(self, name: str) -> GroupLanes:
        """The seeds of an arm."""
        lanes = tuple(Lane(name, (), seed) for seed in self.config.seeds)
        return GroupLanes(Group(lanes, {}, {}), self.config.seeds, self.mesh)

    @property
    def keys(self) -> Keys:
        """Of every seed."""
        return _keys_of(jnp.array(self.config.seeds))

    # --- Checkpoints --------------------

    def like(self) -> Any:
        """Structure of the checkpoints."""
        return jax.eval_shape(lambda: start_lanes(self.learners(jax.vmap(self.bench.model.init)(self.keys.init), None)))

    def train_checkpoints(self, nothing: Any) -> tuple[Lanes, Records]:
        """Networks at the end of the first task."""
        del nothing
        variables = self.initial(False)(self.keys.init)
        group = self.lanes(CHECKPOINT)
        lanes = group.placed(start_lanes(self.learners(variables, None)))
        lanes, logs = self.chunk(False)(lanes, group.placed(self.keys.lane), 0, self.config.steps, self.data)
        return lanes, self.records(CHECKPOINT, lanes, logs, 0, self.config.steps)

    def learners(self, variables: Variables, arm: Arm | None, loudness: Any = 1.0) -> Learner:
        """Networks with the numbers of their arm, a leading axis of seeds on all."""
        kinds = (FREE, NONE) if arm is None else (arm.confinement, arm.regulariser)
        numbers = {name: jnp.int32(kind) for name, kind in zip(("confinement", "regulariser"), kinds)}
        reals = {"coefficient": self.config.regulariser, "loudness": loudness}
        numbers |= {name: jnp.asarray(number, jnp.result_type(float)) for name, number in reals.items()}
        seeds = (len(self.config.seeds),)
        return Learner(variables, {name: jnp.broadcast_to(number, seeds) for name, number in numbers.items()})

    # --- Arms --------------------

    def try_arm(self, name: str, checkpoints: Lanes) -> tuple[Lanes, Records]:
        """Act on the checkpoints, check the outputs, and train on the next tasks."""
        arm, config, group, keys = ARMS[name], self.config, self.lanes(name), self.keys
        every, records = config.steps // config.records, []
        started = self.started(name, checkpoints, 1)
        loudness = 1.0 if arm.as_loud_as is None else self.loudness(name, checkpoints)
        lanes = group.placed(start_lanes(self.learners(started, arm, loudness)))
        more = {"change": self.checked(name, started, checkpoints)}
        for task in range(1, config.num_tasks + 1):
            if arm.act is None and task > 1:
                lanes = group.placed(start_lanes(self.learners(self.started(name, checkpoints, task), arm)))
            records += self.records(name, lanes, {}, task, 0, more)
            for number in range(config.records):
                first = task * config.steps + number * every
                lanes, logs = self.chunk(arm.is_wide)(lanes, group.placed(keys.lane), first, every, self.data)
                records += self.records(name, lanes, logs, task, (number + 1) * every)
        return checkpoints, records

    def started(self, name: str, checkpoints: Lanes, task: int) -> Variables:
        """The variables of an arm where a task begins, a leading axis of seeds on all."""
        arm, variables = ARMS[name], checkpoints.state.variables
        if arm.act is None:
            return self.initial(arm.is_wide)(jax.vmap(partial(jax.random.fold_in, data=task))(self.keys.init))
        if not arm.on_host:
            return self.acting(arm.act)(variables, self.keys.act)
        leaves, tree = jax.tree.flatten(variables)
        of_seeds = [tree.unflatten([leaf[n] for leaf in leaves]) for n in range(len(self.config.seeds))]
        each = [arm.act(self.bench.model, one, key)[1] for one, key in zip(of_seeds, self.keys.act, strict=True)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    def checked(self, name: str, started: Variables, checkpoints: Lanes) -> np.ndarray:
        """The largest change of the logits on the probe, one a seed; refused where the arm promises none."""
        logits = jax.device_get(self.outputs(ARMS[name].is_wide)(started, self.probe))
        expected = jax.device_get(self.outputs(False)(checkpoints.state.variables, self.probe))
        if ARMS[name].keeps_function:
            check_function(name, logits, expected)
        return np.abs(logits - expected).max(axis=(1, 2))

    def loudness(self, name: str, checkpoints: Lanes) -> jax.Array:
        """What brings the norm of the gradient on the first task to that of another arm, one a seed."""
        own, other = (
            self.measured(one, self.started(one, checkpoints, 1), 1)["task_gradient_norm"]
            for one in (name, ARMS[name].as_loud_as or name)
        )
        return other / jnp.where(own > 0, own, 1)

    # --- What is compiled once a size --------------------

    def model(self, is_wide: bool) -> Model:
        """The network of a size."""
        return self.bench.wide if is_wide else self.bench.model

    @cache  # noqa: B019 - as long-lived as the run
    def initial(self, is_wide: bool) -> Callable[..., Variables]:
        """Networks drawn by keys."""
        return over_lanes(self.model(is_wide).init, 1)

    @cache  # noqa: B019 - as long-lived as the run
    def acting(self, act: Callable[..., Any]) -> Callable[..., Variables]:
        """What an arm makes of all checkpoints."""
        return over_lanes(lambda variables, key: act(self.bench.model, variables, key)[1], 2)

    @cache  # noqa: B019 - as long-lived as the run
    def chunk(self, is_wide: bool) -> Callable[..., tuple[Lanes, Logs]]:
        """Steps of training."""
        step = make_step(self.bench, self.model(is_wide), self.config.learning_rate)
        return make_chunk(step, self.bench.stream, self.mesh)

    @cache  # noqa: B019 - as long-lived as the run
    def measure(self, is_wide: bool) -> Callable[..., Logs]:
        """What is measured of every seed."""
        return over_lanes(make_measure(self.bench, self.model(is_wide), self.config.batch_size), 2, self.mesh)

    @cache  # noqa: B019 - as long-lived as the run
    def outputs(self, is_wide: bool) -> Callable[..., jax.Array]:
        """Logits on the probe."""
        return over_lanes(lambda variables, probe: self.model(is_wide).apply(variables, probe).logits, 1)

    def measured(self, name: str, variables: Variables, task: int) -> Logs:
        """Measurements of the networks of all seeds of an arm."""
        is_wide = name != CHECKPOINT and ARMS[name].is_wide
        keys = self.lanes(CHECKPOINT).placed(self.keys.lane)
        return self.measure(is_wide)(variables, keys, jnp.int32(task), self.data, self.probe)

    def records(
        self, name: str, lanes: Lanes, logs: Logs, task: int, step: int, more: Mapping[str, Any] = NOTHING
    ) -> Records:
        """A record a seed."""
        where = {**self.place, "task": task, "step": step}
        measured = lambda state: {**self.measured(name, state.variables, task), **more}  # noqa: E731
        return self.lanes(name).records(lanes, logs, where, measured)


_keys_of = jax.jit(jax.vmap(keys_of))
