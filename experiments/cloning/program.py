"""E1 as pure functions of one lane, and the host loop that runs many lanes in compiled chunks and records them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.cloning.config import Config, Method, Setup

if TYPE_CHECKING:
    import jax
    import optax

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
    """What all groups share, compiled and moved to the device once.

    Attributes:
        networks: the initialised base network of every seed.
        noise_keys: of noisy SGD, one a seed.
        data_keys: of the order of the examples and of all else that is random in a step, one a seed.
        measure: `make_measure`, for all seeds of one method at once; compiling it is a large part of a short run.
        train: images and labels.
        probe: the first of them, on which symptoms are measured.
        test: images and labels.
    """

    networks: Any
    noise_keys: "jax.Array"
    data_keys: "jax.Array"
    measure: Any
    train: Any
    probe: Any
    test: Any


def share(setup: Setup) -> Shared:
    """Networks, keys and data of all groups: only the seed decides where a method starts and which batches it sees."""
    import jax
    import jax.numpy as jnp

    from experiments.cloning.measurements import make_measure

    def of_seed(seed: "jax.Array") -> tuple[Any, "jax.Array", "jax.Array"]:
        key, data_key = jax.random.split(jax.random.key(seed, impl="philox4x32"))
        init_key, noise_key = jax.random.split(key)
        return setup.base.init(init_key), noise_key, data_key

    data, num_probe = setup.dataset, setup.config.probe_samples
    train = (jnp.asarray(data.train_images), jnp.asarray(data.train_labels))
    return Shared(
        *jax.jit(jax.vmap(of_seed))(jnp.array(setup.config.seeds)),
        measure=jax.jit(jax.vmap(make_measure(setup), in_axes=(0, 0, None, None))),
        train=train,
        probe=(train[0][:num_probe], train[1][:num_probe]),
        test=(jnp.asarray(data.test_images), jnp.asarray(data.test_labels)),
    )


def run(setup: Setup, folder: "Run", progress: "Progress", keep_checkpoints: int = 2) -> "tuple[str, ...]":
    """Train every group, recording one line for each lane and record, from where the folder's checkpoints end.

    A run is a sequence of *parts*, numbered through all groups: a chunk of training of the base, the cloning, or a
    chunk of training side by side. After each, its records are flushed and then the state is saved under the number of
    parts done, so a run that is killed at any moment and resumed ends with the same bits.

    Args:
        setup: from `build`.
        folder: a run folder that is not complete.
        progress: told of every part.
        keep_checkpoints: how many of the newest checkpoints stay in the folder.

    Returns:
        Why newer checkpoints than the one resumed from were passed over; empty if none was.

    Raises:
        CheckpointError: the folder has checkpoints and none of them can be used.
    """
    programs = [make_program(setup, group) for group in groups(setup.config)]
    shared = share(setup)
    starts = [start_of(setup, group, shared) for group in groups(setup.config)]
    num_parts = parts_per_group(setup)

    def like(done: int) -> Any:
        """Structure of the state after `done` parts."""
        import jax

        index, part = divmod(done - 1, num_parts)
        pairs = jax.eval_shape(jax.vmap(programs[index].start), *starts[index])
        return pairs if part < base_parts(setup) else jax.eval_shape(jax.vmap(programs[index].clone), pairs)

    found = folder.restore(like)
    done = 0 if found is None else found.step
    for index, group in enumerate(groups(setup.config)):
        finished = min(max(done - index * num_parts, 0), num_parts)
        pairs = found.tree if found is not None and 0 < finished < num_parts else None

        def save(part: int, pairs: Pair, before: int = index * num_parts) -> None:
            folder.checkpoint(before + part, pairs, keep_checkpoints)

        run_group(setup, group, shared, folder, progress, pairs, finished, save)
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
    pairs: Any = None,
    finished: int = 0,
    save: Callable[[int, Any], None] = lambda part, pairs: None,
) -> None:
    """Train the lanes of one group: base, clone, then both side by side.

    Args:
        setup: from `build`.
        group: which lanes.
        shared: from `share`.
        folder: where records go.
        progress: told of every part, also of those that were finished before.
        pairs: the state after `finished` parts; None to start from the initialised networks.
        finished: how many parts have been done, and recorded, before.
        save: called with the number of parts done and the state, after every part.
    """
    import jax
    import jax.numpy as jnp

    from lopjax.training import make_chunk

    config = setup.config
    num_seeds = len(config.seeds)
    chunk_steps = config.record_every * setup.steps_per_unit
    num_base, num_parts = base_parts(setup), parts_per_group(setup)
    names = ", ".join(group.methods)
    if finished:
        progress(f"resumed: {names}", chunk_steps * len(group.lanes) * (finished - (finished > num_base)))
    if finished == num_parts:
        return
    program = make_program(setup, group)
    chunk = make_chunk(program.step, chunk_steps, config.batch_size)
    lanes_of_method = jax.jit(
        lambda tree, first: jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, num_seeds), tree)
    )
    data_keys = shared.data_keys[jnp.tile(jnp.arange(num_seeds), len(group.methods))]
    if pairs is None:
        pairs = jax.jit(jax.vmap(program.start))(*start_of(setup, group, shared))

    def record(phase: str, steps: int, logs: Any) -> None:
        variables = (pairs.base.variables, None if pairs.clone is None else pairs.clone.variables)
        logs, rows = jax.device_get(logs), []
        for first in range(0, len(group.lanes), num_seeds):
            measured = jax.device_get(shared.measure(*lanes_of_method(variables, first), shared.probe, shared.test))
            values = {name: array[first : first + num_seeds] for name, array in logs.items()} | measured
            for lane, (method, seed) in enumerate(group.lanes[first : first + num_seeds]):
                where = {"method": method, "seed": seed, "phase": phase, "step": steps}
                where[config.unit] = steps / setup.steps_per_unit
                rows.append(where | {name: float(array[lane]) for name, array in values.items()})
        folder.append(*rows)

    for part in range(finished, num_parts):
        phase = "base" if part < num_base else "clone"
        progress(f"{phase}: {names}", 0)
        if part == num_base:
            pairs = jax.jit(jax.vmap(program.clone))(pairs)
            record(phase, 0, {})
        else:
            start = chunk_steps * (part - (part > num_base))
            pairs, logs = chunk(pairs, data_keys, start, *shared.train)
            record(phase, start + chunk_steps - (phase == "clone") * num_base * chunk_steps, logs)
            progress(f"{phase}: {names}", chunk_steps * len(group.lanes))
        save(part + 1, pairs)


def total_steps(setup: Setup) -> int:
    """Steps of all lanes together, what the progress bar counts."""
    config = setup.config
    return (config.base_length + config.clone_length) * setup.steps_per_unit * len(config.methods) * len(config.seeds)
