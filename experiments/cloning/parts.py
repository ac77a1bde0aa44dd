"""The cloning experiment as a list of parts: chunks of training of the base, the cloning, chunks side by side."""

from collections.abc import Callable
from functools import cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.cloning.conclusions import certificate_of, stability_of
from experiments.cloning.config import Config
from experiments.cloning.lane import Pair, make_program
from experiments.cloning.measurements import make_measure
from experiments.cloning.setup import Setup
from experiments.kit.ahead import compiled_ahead
from experiments.kit.group_lanes import GroupLanes
from experiments.kit.methods import NUMBERS, Lane, groups_of, numbers_of
from lopjax.cloning import clone_variables
from lopjax.runs.schedule import Part
from lopjax.training import Lanes, Logs, gathered, make_chunk, over_lanes, place, start_lanes

Records = list[dict[str, Any]]


class Shared(NamedTuple):
    """What all groups share, compiled and moved to the devices once.

    Attributes:
        networks: the initialised base network of every seed.
        noise_keys: keys for what a method draws, one per seed.
        data_keys: keys for the order of the examples and all else that is random in a step, one per seed.
        measure: `make_measure` for all seeds of one method, before they are cloned.
        measure_clones: the same once they are. Compiling it takes a large part of a short run, so that this begins at
            once, on another thread, while the base is compiled and trained.
        train: images and labels.
        probe: the first of them, on which symptoms are measured.
        test: images and labels.
    """

    networks: Any
    noise_keys: jax.Array
    data_keys: jax.Array
    measure: Any
    measure_clones: Any
    train: Any
    probe: Any
    test: Any


def share(setup: Setup) -> Shared:
    """Networks, keys and data of all groups: only the seed decides where a method starts and which batches it sees."""

    def of_seed(seed: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        key, data_key = jax.random.split(jax.random.key(seed, impl="philox4x32"))
        init_key, noise_key = jax.random.split(key)
        return setup.base.init(init_key), noise_key, data_key

    train, test, num_probe = setup.stream.data, setup.test, setup.config.probe_samples
    probe = jax.tree.map(lambda array: array[:num_probe], train)
    on_devices = [jax.tree.map(jnp.asarray, part) for part in (train, probe, test)]
    train, probe, test = place(on_devices, setup.mesh, is_per_lane=False)
    networks, noise_keys, data_keys = over_lanes(of_seed, 1)(jnp.array(setup.config.seeds))
    measure = over_lanes(make_measure(setup), 2, setup.mesh)
    measure_clones = measure
    if setup.mesh is None:
        clones = jax.eval_shape(
            jax.vmap(lambda base: clone_variables(base, setup.base.wiring, setup.config.factor)), networks
        )
        measure_clones = compiled_ahead(measure, networks, clones, probe, test)
    return Shared(networks, noise_keys, data_keys, measure, measure_clones, train, probe, test)


def parts(config: Config, setup: Setup) -> list[Part]:
    """All parts of a run, group after group.

    Clones that are to be released are those of plain SGD, one per seed. At their release each goes on as one lane of
    every method and point of the grid.
    """
    shared = share(setup)
    stretches = [Stretch(setup, shared, GroupLanes(group, config.seeds, setup.mesh)) for group in setup.groups]
    if not config.release_at:
        return [part for stretch in stretches for part in stretch.from_base(config.clone_length)]
    (trapped_group,) = groups_of(("sgd",), config.seeds, numbers_of(config, NUMBERS))
    trapped = Stretch(setup, shared, GroupLanes(trapped_group, config.seeds, setup.mesh))
    return [*trapped.from_base(config.release_at), *stretches[0].from_release(trapped)]


class Stretch:
    """The parts of one group of lanes, which share one compiled program."""

    def __init__(self, setup: Setup, shared: Shared, lanes: GroupLanes) -> None:
        """Prepare; nothing is compiled."""
        self.setup, self.shared, self.lanes = setup, shared, lanes
        self.program = make_program(setup, lanes.group)
        self.chunk = make_chunk(self.program.step, setup.stream, setup.mesh)
        self.chunk_of_clones: Callable[..., tuple[Lanes, Logs]] = self.chunk
        self.chunk_steps = setup.config.record_every * setup.steps_per_unit
        self.num_base = setup.config.base_length // setup.config.record_every

    def from_base(self, clone_length: int) -> list[Part]:
        """Train the base from its start, clone it, and train both side by side for `clone_length`."""
        start = partial(self.train, "base", 0, 0)
        first = self.lanes.part(
            "base", self.chunk_steps, lambda nothing: start(self.start()), partial(self.like, False)
        )
        return [
            first._replace(is_start=True),
            *(self.training("base", 0, number, is_cloned=False) for number in range(1, self.num_base)),
            self.lanes.part("clone", 0, self.clone, partial(self.like, True)),
            *self.until(clone_length, "clone", 0),
        ]

    def from_release(self, trapped: "Stretch") -> list[Part]:
        """Take over the trapped clones of every seed, and train to the end."""
        config = self.setup.config
        take_over = partial(self.release, trapped)
        return [
            self.lanes.part("release", 0, take_over, partial(self.like, True)),
            *self.until(config.clone_length, "release", config.release_at),
        ]

    def until(self, clone_length: int, phase: str, since: int) -> list[Part]:
        """Training side by side, from `since` after cloning; the last part concludes, and keeps the variables."""
        every = self.setup.config.record_every
        numbers = range(self.num_base + since // every, self.num_base + clone_length // every)
        *before, last = [self.training(phase, numbers[0], number, is_cloned=True) for number in numbers]

        def end(lanes: Lanes) -> tuple[Lanes, Records]:
            lanes, records = last.do(lanes)
            return lanes, self.concluded(list(map(dict, records)), lanes, is_end=True)

        return [*before, last._replace(do=end, keep=self.kept)]

    def training(self, phase: str, first: int, number: int, is_cloned: bool) -> Part:
        """Chunk `number`, counted over the whole life of a lane; `first` is the first chunk of its phase."""
        do = partial(self.train, phase, first, number)
        return self.lanes.part(phase, self.chunk_steps, do, partial(self.like, is_cloned))

    def train(self, phase: str, first: int, number: int, lanes: Lanes) -> tuple[Lanes, Records]:
        """Run such a chunk."""
        chunk = self.chunk if lanes.state.clone is None else self.chunk_of_clones
        lanes, logs = chunk(lanes, self.keys(), number * self.chunk_steps, self.chunk_steps, self.shared.train)
        return lanes, self.records(phase, (number + 1 - first) * self.chunk_steps, logs, lanes)

    def keys(self) -> jax.Array:
        """A key per lane, for the order of the examples and all else that is random in a step."""
        return self.lanes.placed(self.lanes.of_seeds(self.shared.data_keys))

    def start(self) -> Lanes:
        """Initialised networks. The steps of the clones, the largest program, are compiled while the bases train."""
        if self.setup.mesh is None:
            self.chunk_of_clones = compiled_ahead(self.chunk, self.like(True), self.keys(), self.shared.train)
        return self.lanes.placed(start_lanes(over_lanes(self.program.start, 3)(*self.start_arguments())))

    def start_arguments(self) -> tuple[Any, jax.Array, dict[str, jax.Array]]:
        """Networks, noise keys and numbers of every lane: the arguments of its program's `start`."""
        return (*self.lanes.of_seeds((self.shared.networks, self.shared.noise_keys)), self.lanes.numbers())

    def clone(self, lanes: Lanes) -> tuple[Lanes, Records]:
        """Clone every base, and certify the clones."""
        lanes = lanes._replace(state=over_lanes(self.program.clone, 1, self.setup.mesh)(lanes.state))
        return lanes, self.concluded(self.records("clone", 0, {}, lanes), lanes, is_end=False)

    def release(self, trapped: "Stretch", lanes: Lanes) -> tuple[Lanes, Records]:
        """Go on with the trapped clones of every seed as lanes of this group."""
        state, frozen_at = self.lanes.of_seeds(gathered((lanes.state, lanes.frozen_at), self.setup.mesh))
        _, noise_keys, numbers = self.start_arguments()
        released = start_lanes(over_lanes(self.program.release, 3)(state, noise_keys, numbers))
        lanes = self.lanes.placed(released._replace(frozen_at=frozen_at))
        return lanes, self.concluded(self.records("release", 0, {}, lanes), lanes, is_end=False)

    @cache  # noqa: B019 - as long-lived as the run
    def like(self, is_cloned: bool) -> Any:
        """Structure of the lanes before or after cloning."""
        pairs = jax.eval_shape(jax.vmap(self.program.start), *self.start_arguments())
        return jax.eval_shape(start_lanes, jax.eval_shape(jax.vmap(self.program.clone), pairs) if is_cloned else pairs)

    def records(self, phase: str, step: int, logs: Logs, lanes: Lanes) -> Records:
        """What a chunk has logged, and what is measured after it."""

        def measure(pair: Pair) -> Logs:
            probe, test = self.shared.probe, self.shared.test
            if pair.clone is None:
                return self.shared.measure(pair.base.variables, None, probe, test)
            return self.shared.measure_clones(pair.base.variables, pair.clone.variables, probe, test)

        where = {"phase": phase, "step": step, self.setup.config.unit: step / self.setup.steps_per_unit}
        return self.lanes.records(lanes, logs, where, measure)

    def concluded(self, records: Records, lanes: Lanes, is_end: bool) -> Records:
        """The records of all lanes with their clones' certificates and, at the end, the stability of the manifold."""
        clones = self.lanes.read(lanes.state.clone.variables)
        for lane, record in enumerate(records):
            if "frozen_at" in record:
                continue
            variables = jax.tree.map(itemgetter(lane), clones)
            record["certificate"] = certificate_of(self.setup, variables, self.shared.probe)
            record |= {"stability": stability_of(self.setup, variables, self.shared.probe)} if is_end else {}
        return records

    def kept(self, lanes: Lanes) -> dict[str, Any]:
        """What training ended with, a file per method and point: `{"base", "clone"}`, seeds along the leading axes."""
        pair = lanes.state
        networks = {"base": pair.base, **({} if pair.clone is None else {"clone": pair.clone})}
        variables = self.lanes.read({name: state.variables for name, state in networks.items()})
        return {file_of(names[0]): jax.tree.map(itemgetter(row), variables) for row, names in self.lanes.rows()}


def file_of(lane: Lane) -> str:
    """The name under which a lane's variables are kept."""
    return "_".join([lane.method, *(f"{name}={value!r}" for name, value in lane.point)])
