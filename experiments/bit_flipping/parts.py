"""The parts of a bit-flipping run: a bin of steps and what is measured after it, again and again."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bit_flipping.config import Config
from experiments.bit_flipping.fused import make_fused_chunk
from experiments.bit_flipping.lane import make_program, start
from experiments.bit_flipping.measurements import dead_on_probe, make_measure
from experiments.bit_flipping.setup import Setup
from experiments.kit.group_lanes import GroupLanes
from experiments.kit.methods import Group
from lopjax.runs.schedule import Part
from lopjax.training import Lanes, over_lanes, start_lanes

Records = list[dict[str, Any]]


def keys_of(config: Config) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys of the initial networks, the optimizers' draws and the streams: one per seed, the same for all methods."""

    def of_seed(seed: jax.Array) -> jax.Array:
        return jax.random.split(jax.random.key(seed, impl="philox4x32"), 3)

    init_keys, noise_keys, data_keys = jax.vmap(of_seed, out_axes=1)(jnp.array(config.seeds))
    return init_keys, noise_keys, data_keys


def parts(config: Config, setup: Setup) -> list[Part]:
    """All parts of a run, group after group."""
    keys, measures = keys_of(config), {}
    all_parts = []
    for group in setup.groups:
        # Methods on one network share what measures it: compiling that is a large part of a short run.
        network = tuple(dict(group.lanes[0].point)[name] for name in ("activation", "width"))
        if network not in measures:
            measures[network] = over_lanes(make_measure(setup, setup.model_of(group)), 2)
        all_parts += Life(setup, group, keys, measures[network]).parts()
    return all_parts


class Life:
    """The parts of one group of lanes, which share one compiled program."""

    def __init__(self, setup: Setup, group: Group, keys: tuple[jax.Array, ...], measure: Any) -> None:
        """Prepare; nothing is compiled."""
        self.setup, self.measure = setup, measure
        self.lanes = GroupLanes(group, setup.config.seeds)
        self.program = make_program(setup, group)
        self.init_keys, self.noise_keys, self.data_keys = keys
        activation = str(dict(group.lanes[0].point)["activation"])
        self.chunk = make_fused_chunk(setup.problem, self.program, activation, setup.config.act_every)
        self.starting = over_lanes(partial(start, self.program), 3)
        self.dead = over_lanes(partial(dead_on_probe, setup, self.program.model), 1)

    def parts(self) -> list[Part]:
        """One part per record; the last keeps the networks."""
        config = self.setup.config
        point = dict(self.lanes.group.lanes[0].point)
        bins = []
        for number in range(config.steps // config.record_every):
            name = "no hidden units" if self.program.method.is_linear else f"{point['width']} {point['activation']}"
            bins.append(self.lanes.part(name, config.record_every, partial(self.train, number), self.like))
        first = bins[0].do
        bins[0] = bins[0]._replace(is_start=True, do=lambda nothing: first(self.start()))
        bins[-1] = bins[-1]._replace(keep=self.kept)
        return bins

    def start(self) -> Lanes:
        """Initialised networks, with a record of which units are dead from the start."""
        lanes = self._started()
        return lanes._replace(state=lanes.state._replace(dead=self.dead(lanes.state)))

    def _started(self) -> Lanes:
        keys = self.lanes.of_seeds((self.init_keys, self.noise_keys))
        return start_lanes(self.starting(*keys, self.lanes.numbers()))

    @cache  # noqa: B019 - as long-lived as the run
    def like(self) -> Any:
        """Structure of the lanes."""
        return jax.eval_shape(self._started)

    def train(self, number: int, lanes: Lanes) -> tuple[Lanes, Records]:
        """Bin `number`, and the records after it."""
        every = self.setup.config.record_every
        keys, step = self.lanes.of_seeds(self.data_keys), (number + 1) * every
        lanes, logs = self.chunk(lanes, keys, number * every, every)
        logs = {**logs, "replaced": logs["replaced"] * every}
        records = self.lanes.records(
            lanes, logs, {"step": step}, lambda row: self.measure(row, self.data_keys, jnp.int32(step))
        )
        return lanes._replace(state=lanes.state._replace(dead=self.dead(lanes.state))), records

    def kept(self, lanes: Lanes) -> dict[str, Any]:
        """What training ended with, a file per curve: `{"network"}`, seeds along the leading axes."""
        variables = jax.device_get(lanes.state.net.variables)
        return {
            "-".join([names[0].method, *(str(value) for _, value in names[0].point)]): {
                "network": jax.tree.map(lambda leaf, row=row: leaf[row], variables)
            }
            for row, names in self.lanes.rows()
        }
