"""E1 as pure functions of one lane, and the host loop that runs many lanes in compiled chunks and records them."""

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

    init: Any
    clone: Any
    step: Any
    measure: Any


def make_program(setup: Setup, group: Group) -> Program:
    """How one lane of a group is initialised, cloned, stepped and measured.

    Args:
        setup: from `build`.
        group: with a single method the knobs are constants of the program; with several they are traced.
    """
    import jax
    import optax

    from lopjax.cloning import clone_variables, uniform_partition
    from lopjax.optim import noisy_sgd
    from lopjax.probes import symptoms
    from lopjax.training import evaluate, init_state, sgd_step

    config = setup.config
    partition = uniform_partition(setup.wide.wiring, config.factor)
    constants = knobs_of(config, group.methods[0]) if len(group.methods) == 1 else None

    def knobs(pair: Pair) -> Knobs:
        return pair.knobs if constants is None else constants

    plain = optax.adam(config.adam_learning_rate) if group.methods == ("adam",) else optax.sgd(config.learning_rate)

    def clone_optimizer(pair: Pair) -> "optax.GradientTransformation":
        scale = knobs(pair).noise_scale
        if isinstance(scale, float) and scale == 0.0:
            return plain
        return noisy_sgd(config.learning_rate, scale, config.noise_decay, seed=pair.noise_key)

    def init(key: "jax.Array", lane_knobs: Knobs) -> Pair:
        init_key, noise_key = jax.random.split(key)
        base = init_state(setup.base.init(init_key), plain)
        return Pair(base, None, noise_key, lane_knobs)

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

    def measure(pair: Pair, images: Any, labels: Any, test_images: Any, test_labels: Any) -> dict[str, "jax.Array"]:
        inputs, measured = setup.preprocess.inputs(images), {}
        for name, model, state, clusters in (
            ("base", setup.base, pair.base, None),
            ("clone", setup.wide, pair.clone, partition),
        ):
            if state is None:
                continue
            test = evaluate(model, state.variables, setup.preprocess, test_images, test_labels)
            measured |= {f"{name}/test_{key}": value for key, value in test.items()}
            if pair.clone is None:
                continue
            for metric, values in symptoms(model, state.variables, inputs, labels, partition=clusters).items():
                measured |= {f"{name}/{metric}/{site}": value for site, value in values.items()}
        if pair.clone is not None:
            base_logits = setup.base.apply(pair.base.variables, inputs)[0]
            clone_logits = setup.wide.apply(pair.clone.variables, inputs)[0]
            measured["logit_difference"] = abs(base_logits - clone_logits).max()
            measured |= confinement(setup, pair.clone.variables, (inputs, labels))
        return measured

    return Program(init, clone, step, measure)


def confinement(setup: Setup, variables: Any, batch: Any) -> dict[str, "jax.Array"]:
    """How far parameters and gradient of the clone are from the manifold: norms of the violating parts, relative.

    RE: incoming totals differ inside a cluster; CE: outgoing totals do; BC: anything does (theory 3.1).
    """
    import jax

    from lopjax.cloning import uniform_partition
    from lopjax.losses import cross_entropy
    from lopjax.manifolds import cloned_manifold, tangency_residual, tree_norm

    params = variables["params"]
    manifold = cloned_manifold(params, setup.wide.wiring, uniform_partition(setup.wide.wiring, setup.config.factor))
    assert manifold.normals is not None  # every cloned manifold has them
    gradient = jax.grad(cross_entropy(setup.wide, variables, batch))(params)
    size = tree_norm(params)
    return {
        "clone/re_residual": tree_norm(manifold.normals.incoming.project(params)) / size,
        "clone/ce_residual": tree_norm(manifold.normals.outgoing.project(params)) / size,
        "clone/bc_residual": tangency_residual(manifold, params),
        "clone/tangency_residual": tangency_residual(manifold, gradient),
    }


def run(setup: Setup, folder: "Run", progress: "Progress") -> None:
    """Train every group, recording one line for each lane and record; the run folder holds the result."""
    for group in groups(setup.config):
        run_group(setup, group, folder, progress)


def run_group(setup: Setup, group: Group, folder: "Run", progress: "Progress") -> None:
    """Train the lanes of one group: base, clone, then both side by side."""
    import jax
    import jax.numpy as jnp

    from lopjax.training import make_chunk

    config, data = setup.config, setup.dataset
    program = make_program(setup, group)
    chunk_steps = config.record_every * setup.steps_per_unit
    chunk = make_chunk(program.step, chunk_steps, config.batch_size)
    measure = jax.jit(jax.vmap(program.measure, in_axes=(0, None, None, None, None)))
    train = (jnp.asarray(data.train_images), jnp.asarray(data.train_labels))
    probe = (train[0][: config.probe_samples], train[1][: config.probe_samples])
    test = (jnp.asarray(data.test_images), jnp.asarray(data.test_labels))

    # Methods see the same initial network and the same batches: only the seed decides the key.
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl="philox4x32"))(jnp.array([seed for _, seed in group.lanes]))
    init_keys, data_keys = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
    knobs = jax.tree.map(lambda *values: jnp.array(values), *(knobs_of(config, method) for method, _ in group.lanes))
    pairs = jax.jit(jax.vmap(program.init))(init_keys, knobs)

    def record(phase: str, steps: int, logs: Any) -> None:
        values = {**logs, **measure(pairs, *probe, *test)}
        host = jax.device_get(values)
        rows = (
            {"method": method, "seed": seed, "phase": phase, "step": steps, config.unit: steps / setup.steps_per_unit}
            | {name: float(array[lane]) for name, array in host.items()}
            for lane, (method, seed) in enumerate(group.lanes)
        )
        folder.append(*rows)

    names = ", ".join(group.methods)
    for phase, length in (("base", config.base_length), ("clone", config.clone_length)):
        offset = 0
        if phase == "clone":
            offset = config.base_length * setup.steps_per_unit
            pairs = jax.jit(jax.vmap(program.clone))(pairs)
            record("clone", 0, {})
        for start in range(0, length * setup.steps_per_unit, chunk_steps):
            pairs, logs = chunk(pairs, data_keys, offset + start, *train)
            record(phase, start + chunk_steps, logs)
            progress(names, chunk_steps * len(group.lanes))


def total_steps(setup: Setup) -> int:
    """Steps of all lanes together, what the progress bar counts."""
    config = setup.config
    return (config.base_length + config.clone_length) * setup.steps_per_unit * len(config.methods) * len(config.seeds)
