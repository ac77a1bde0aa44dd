"""E1 as pure functions of one lane, and the host loop that runs many lanes in compiled chunks and records them."""

from collections.abc import Callable
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.cloning.config import Config, Method, Setup

if TYPE_CHECKING:
    import jax
    import optax
    from jax.sharding import Mesh

    from experiments.terminal import Progress
    from lopjax.runs import Run
    from lopjax.training import TrainState


class Group(NamedTuple):
    """Methods that share one compiled program, and its lanes: one for every method and seed."""

    methods: tuple[Method, ...]
    lanes: tuple[tuple[Method, int], ...]


class Knobs(NamedTuple):
    """What differs between the lanes of one program: traced numbers in a fused one, Python constants otherwise."""

    noise_scale: Any
    dropout: Any


class Pair(NamedTuple):
    """Training state of one lane: a base, its clone (None before cloning), the noise key and the lane's knobs."""

    base: "TrainState"
    clone: "TrainState | None"
    noise_key: "jax.Array"
    knobs: Knobs


def groups(config: Config) -> tuple[Group, ...]:
    """The programs to compile: one for each method, or one for all of the SGD family."""
    families: dict[str, list[Method]] = {}
    for method in config.methods:
        families.setdefault("sgd" if config.fused and method != "adam" else method, []).append(method)
    return tuple(
        Group(tuple(methods), tuple((method, seed) for method in methods for seed in config.seeds))
        for methods in families.values()
    )


def knobs_of(config: Config, method: Method) -> Knobs:
    """Noise scale and dropout rate of a method, as Python numbers."""
    return Knobs(
        noise_scale=config.noise_scale if method == "noisy_sgd" else 0.0,
        dropout=config.dropout if method == "dropout" else 0.0,
    )


class Program(NamedTuple):
    """The pure functions of one group, all for one lane; `make_program` says what each is."""

    start: Any
    clone: Any
    step: Any


def make_program(setup: Setup, group: Group) -> Program:
    """How one lane of a group starts from an initialised network, is cloned, and takes a step.

    Args:
        setup: from `build`.
        group: with a single method the knobs are constants of the program; with several they are traced.
    """
    import jax
    import optax

    from lopjax.cloning import clone_variables
    from lopjax.optim import noisy_sgd
    from lopjax.training import init_state, sgd_step

    config = setup.config
    constants = knobs_of(config, group.methods[0]) if len(group.methods) == 1 else None

    def knobs(pair: Pair) -> Knobs:
        return pair.knobs if constants is None else constants

    plain = optax.adam(config.adam_learning_rate) if group.methods == ("adam",) else optax.sgd(config.learning_rate)

    def clone_optimizer(pair: Pair) -> "optax.GradientTransformation":
        scale = knobs(pair).noise_scale
        if isinstance(scale, float) and scale == 0.0:
            return plain
        return noisy_sgd(config.learning_rate, scale, config.noise_decay, seed=pair.noise_key)

    def start(variables: Any, noise_key: "jax.Array", lane_knobs: Knobs) -> Pair:
        return Pair(init_state(variables, plain), None, noise_key, lane_knobs)

    def clone(pair: Pair) -> Pair:
        variables = clone_variables(pair.base.variables, setup.base.wiring, config.factor)
        return pair._replace(clone=init_state(variables, clone_optimizer(pair)))

    def step(pair: Pair, batch: Any, key: "jax.Array", index: "jax.Array") -> tuple[Pair, dict[str, "jax.Array"]]:
        images, labels = batch
        augment_key, base_key, clone_key = jax.random.split(key, 3)
        inputs = setup.preprocess.inputs(images, augment_key if config.augment else None)
        rate = knobs(pair).dropout
        base, logs = sgd_step(setup.base, plain, pair.base, inputs, labels, base_key, rate)
        named = {f"base/train_{name}": value for name, value in logs.items()}
        if pair.clone is None:
            return pair._replace(base=base), named
        optimizer = clone_optimizer(pair)
        cloned, logs = sgd_step(setup.wide, optimizer, pair.clone, inputs, labels, clone_key, rate)
        named |= {f"clone/train_{name}": value for name, value in logs.items()}
        return pair._replace(base=base, clone=cloned), named

    return Program(start, clone, step)


class Shared(NamedTuple):
    """What all groups share, compiled and moved to the devices once.

    Attributes:
        mesh: devices that the lanes are spread over; None for one.
        networks: the initialised base network of every seed.
        noise_keys: of noisy SGD, one a seed.
        data_keys: of the order of the examples and of all else that is random in a step, one a seed.
        measure: `make_measure`, for all seeds of one method; compiling it is a large part of a short run.
        train: images and labels.
        probe: the first of them, on which symptoms are measured.
        test: images and labels.
    """

    mesh: "Mesh | None"
    networks: Any
    noise_keys: "jax.Array"
    data_keys: "jax.Array"
    measure: Any
    train: Any
    probe: Any
    test: Any


def share(setup: Setup, mesh: "Mesh | None" = None) -> Shared:
    """Networks, keys and data of all groups: only the seed decides where a method starts and which batches it sees."""
    import jax
    import jax.numpy as jnp

    from experiments.cloning.measurements import make_measure
    from lopjax.lanes import over_lanes, place

    def of_seed(seed: "jax.Array") -> tuple[Any, "jax.Array", "jax.Array"]:
        key, data_key = jax.random.split(jax.random.key(seed, impl="philox4x32"))
        init_key, noise_key = jax.random.split(key)
        return setup.base.init(init_key), noise_key, data_key

    data, num_probe = setup.dataset, setup.config.probe_samples
    train, test = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    probe = jax.tree.map(lambda array: array[:num_probe], train)
    networks, noise_keys, data_keys = over_lanes(of_seed, 1)(jnp.array(setup.config.seeds))
    on_devices = [jax.tree.map(jnp.asarray, part) for part in (train, probe, test)]
    train, probe, test = place(on_devices, mesh, is_per_lane=False)
    return Shared(mesh, networks, noise_keys, data_keys, over_lanes(make_measure(setup), 2, mesh), train, probe, test)


def run(
    setup: Setup, folder: "Run", progress: "Progress", keep_checkpoints: int = 2, mesh: "Mesh | None" = None
) -> "tuple[str, ...]":
    """Train every group, recording one line for each lane and record, from where the folder's checkpoints end.

    A run is a sequence of *parts*, numbered through all groups: a chunk of training of the base, the cloning, or a
    chunk of training side by side. After each, its records are flushed and then the state is saved under the number of
    parts done, so a run that is killed at any moment and resumed ends with the same bits. The variables that a group
    ends with are kept, a file a method. A group all of whose lanes are frozen is not trained on.

    Args:
        setup: from `build`.
        folder: a run folder that is not complete.
        progress: told of every part.
        keep_checkpoints: how many of the newest checkpoints stay in the folder.
        mesh: devices to spread the lanes over.

    Returns:
        Why newer checkpoints than the one resumed from were passed over; empty if none was.

    Raises:
        CheckpointError: the folder has checkpoints and none of them can be used.
    """
    from lopjax.lanes import gathered
    from lopjax.training import start_lanes

    programs = [make_program(setup, group) for group in groups(setup.config)]
    shared = share(setup, mesh)
    starts = [start_of(setup, group, shared) for group in groups(setup.config)]
    num_parts = parts_per_group(setup)

    def like(done: int) -> Any:
        """Structure of the state after `done` parts."""
        import jax

        index, part = divmod(done - 1, num_parts)
        pairs = jax.eval_shape(jax.vmap(programs[index].start), *starts[index])
        pairs = pairs if part < base_parts(setup) else jax.eval_shape(jax.vmap(programs[index].clone), pairs)
        return jax.eval_shape(start_lanes, pairs)

    found = folder.restore(like)
    done = 0 if found is None else found.step
    for index, group in enumerate(groups(setup.config)):
        finished = min(max(done - index * num_parts, 0), num_parts)
        lanes = found.tree if found is not None and 0 < finished < num_parts else None

        def save(part: int, lanes: Any, before: int = index * num_parts) -> None:
            folder.checkpoint(before + part, gathered(lanes, mesh), keep_checkpoints)

        run_group(setup, group, shared, folder, progress, lanes, finished, save)
    return () if found is None else found.refused


def base_parts(setup: Setup) -> int:
    """Parts of training the base."""
    return setup.config.base_length // setup.config.record_every


def parts_per_group(setup: Setup) -> int:
    """Parts of a group: of the base, the cloning, and those of base and clone side by side."""
    return base_parts(setup) + 1 + setup.config.clone_length // setup.config.record_every


def start_of(setup: Setup, group: Group, shared: Shared) -> tuple[Any, "jax.Array", Knobs]:
    """Initialised networks, noise keys and knobs of every lane of a group: the arguments of its program's `start`."""
    import jax
    import jax.numpy as jnp

    per_lane = jnp.tile(jnp.arange(len(setup.config.seeds)), len(group.methods))
    networks, noise_keys = jax.tree.map(lambda a: a[per_lane], (shared.networks, shared.noise_keys))
    knobs = jax.tree.map(
        lambda *values: jnp.array(values), *(knobs_of(setup.config, method) for method, _ in group.lanes)
    )
    return networks, noise_keys, knobs


def run_group(
    setup: Setup,
    group: Group,
    shared: Shared,
    folder: "Run",
    progress: "Progress",
    lanes: Any = None,
    finished: int = 0,
    save: Callable[[int, Any], None] = lambda part, lanes: None,
) -> None:
    """Train the lanes of one group: base, clone, then both side by side.

    Args:
        setup: from `build`.
        group: which lanes.
        shared: from `share`.
        folder: where records go.
        progress: told of every part, also of those that were finished before.
        lanes: the state after `finished` parts; None to start from the initialised networks.
        finished: how many parts have been done, and recorded, before.
        save: called with the number of parts done and the state, after every part.
    """
    import jax
    import jax.numpy as jnp

    from lopjax.lanes import gathered, over_lanes, place
    from lopjax.training import make_chunk, start_lanes

    config, mesh = setup.config, shared.mesh
    num_seeds = len(config.seeds)
    chunk_steps = config.record_every * setup.steps_per_unit
    num_base, num_parts = base_parts(setup), parts_per_group(setup)
    names = ", ".join(group.methods)
    if finished:
        progress(f"resumed: {names}", chunk_steps * len(group.lanes) * (finished - (finished > num_base)))
    if finished == num_parts:
        return
    program = make_program(setup, group)
    chunk = make_chunk(program.step, config.batch_size, mesh)
    seeds_of = jax.jit(
        lambda tree, first: jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, num_seeds), tree)
    )
    data_keys = place(shared.data_keys[jnp.tile(jnp.arange(num_seeds), len(group.methods))], mesh, is_per_lane=True)
    if lanes is None:
        lanes = start_lanes(over_lanes(program.start, 3)(*start_of(setup, group, shared)))
    lanes = place(lanes, mesh, is_per_lane=True)

    def read(tree: Any) -> Any:
        return jax.device_get(gathered(tree, mesh))

    def variables() -> dict[str, Any]:
        return {name: getattr(lanes.state, name).variables for name in ("base", "clone") if getattr(lanes.state, name)}

    def record(phase: str, steps: int, logs: Any) -> None:
        logs, frozen_at, rows = read(logs), read(lanes.frozen_at), []
        for first in range(0, len(group.lanes), num_seeds):
            networks = place(seeds_of(variables(), first), mesh, is_per_lane=True)
            measured = read(shared.measure(networks["base"], networks.get("clone"), shared.probe, shared.test))
            values = {name: array[first : first + num_seeds] for name, array in logs.items()} | measured
            for lane, (method, seed) in enumerate(group.lanes[first : first + num_seeds]):
                where = {"method": method, "seed": seed, "phase": phase, "step": steps}
                where[config.unit] = steps / setup.steps_per_unit
                if frozen_at[first + lane] >= 0:
                    where["frozen_at"] = int(frozen_at[first + lane])
                rows.append(where | {name: float(array[lane]) for name, array in values.items()})
        folder.append(*rows)

    for part in range(finished, num_parts):
        phase = "base" if part < num_base else "clone"
        if all(read(lanes.frozen_at) >= 0):
            rest = num_parts - 1 - (part - (part > num_base))
            progress(f"not finite: {names}", chunk_steps * len(group.lanes) * rest)
            break
        progress(f"{phase}: {names}", 0)
        if part == num_base:
            lanes = lanes._replace(state=over_lanes(program.clone, 1, mesh)(lanes.state))
            record(phase, 0, {})
        else:
            start = chunk_steps * (part - (part > num_base))
            lanes, logs = chunk(lanes, data_keys, start, chunk_steps, *shared.train)
            record(phase, start + chunk_steps - (phase == "clone") * num_base * chunk_steps, logs)
            progress(f"{phase}: {names}", chunk_steps * len(group.lanes))
        if part == num_parts - 1:
            keep_variables(folder, group, read(variables()))
        save(part + 1, lanes)


def keep_variables(folder: "Run", group: Group, variables: dict[str, Any]) -> None:
    """Keep what a group ended with, a file a method: `{"base", "clone"}`, the seeds along the leading axes."""
    import jax

    num_seeds = len(group.lanes) // len(group.methods)
    for index, method in enumerate(group.methods):
        seeds = slice(index * num_seeds, (index + 1) * num_seeds)
        folder.keep(method, jax.tree.map(itemgetter(seeds), variables))


def total_steps(setup: Setup) -> int:
    """Steps of all lanes together, what the progress bar counts."""
    config = setup.config
    return (config.base_length + config.clone_length) * setup.steps_per_unit * len(config.methods) * len(config.seeds)
