"""The recovery experiment as a list of parts: a task each, of all methods, strengths and seeds together."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.experiment import NO_RESOURCES, Resources
from experiments.kit.networks import build_network
from experiments.recovery.config import Config
from experiments.recovery.lane import METHODS, Program, make_program
from lopjax import data, training
from lopjax.model import Model
from lopjax.recovery import explain
from lopjax.recovery.controller import ControllerState
from lopjax.runs.schedule import Part
from lopjax.training import Lanes, Stream, TaskSequence, make_chunk, over_lanes, start_lanes, task_examples, task_stream

# Tasks that no run meets, of which the fixed probe is made.
_FAR = 10**6
Records = list[dict[str, Any]]


class Setup(NamedTuple):
    """What a run is built from.

    Attributes:
        model: the network.
        stream: batches of one task after the other.
        probe: the fixed batch.
        lanes: method and strength of every lane of one seed.
    """

    model: Model
    stream: Stream
    probe: tuple[np.ndarray, np.ndarray]
    lanes: tuple[tuple[str, float], ...]


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config, load the data and build the model; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
    """
    for name in ("num_tasks", "steps", "batch_size", "num_images", "probe_samples", "look_every", "cool_down"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)}: must be at least 1")
    if not 0 < config.adam_learning_rate < float("inf"):
        raise ValueError(f"adam_learning_rate={config.adam_learning_rate}: must be positive and finite")
    if len(set(config.seeds)) < len(config.seeds) or not config.seeds or min(config.seeds) < 0:
        raise ValueError(f"seeds={config.seeds}: must be distinct, at least one, and not negative")
    for name, most in (("noise", float("inf")), ("shrink", 1.0)):
        if not all(0 <= value <= most for value in getattr(config, name)):
            raise ValueError(f"{name}={getattr(config, name)}: must be in [0, {most:g}]")
    if not 0 <= config.rank_off < config.rank_on <= 1:
        raise ValueError(f"rank_on={config.rank_on}, rank_off={config.rank_off}: must be 0 <= off < on <= 1")
    sequence, shape, classes = _tasks(config)
    if config.probe_samples > sequence.num_examples:
        raise ValueError(f"probe_samples={config.probe_samples}: must be at most {sequence.num_examples}")
    model = drawn_at_once(build_network("mlp", config.net, shape, classes))
    far = jax.random.key(0, impl="philox4x32")
    probe = task_examples(sequence, sequence.data, far, _FAR, config.probe_samples)
    strengths = {"noise": config.noise, "shrink_and_perturb": config.shrink}
    lanes = tuple((method, strength) for method in METHODS for strength in strengths.get(method, (0.0,)))
    stream = task_stream(sequence, config.batch_size, config.steps)
    return Setup(model, stream, jax.tree.map(np.asarray, probe), lanes)


def drawn_at_once(model: Model) -> Model:
    """The same network with kernels N(0, 1 / fan in) and biases 0, all from one draw.

    Seven branches of the program draw networks; with a draw for every array they take a minute to compile.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes)
    sizes = [int(np.prod(leaf.shape)) for leaf in leaves]
    scales = [float(np.prod(leaf.shape[:-1])) ** -0.5 if len(leaf.shape) > 1 else 0.0 for leaf in leaves]

    def init(key: jax.Array) -> Any:
        pieces = jnp.split(jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
        arrays = [s * piece.reshape(leaf.shape) for s, piece, leaf in zip(scales, pieces, leaves, strict=True)]
        return structure.unflatten(arrays)

    return model._replace(init=init)


def _tasks(config: Config) -> tuple[TaskSequence, tuple[int, ...], int]:
    """The tasks, the shape of an input, and how many classes."""
    if config.tasks == "gaussian_mixtures":
        return training.gaussian_mixtures(), (2,), 2
    dataset = data.load("digits", None)
    images = (dataset.train_images[: config.num_images] / 255.0 - dataset.mean[0]) / dataset.std[0]
    images = images.astype(np.float32)
    if config.tasks == "random_labels":
        return training.random_labels(images, dataset.num_classes), dataset.image_shape, dataset.num_classes
    labels = dataset.train_labels[: config.num_images]
    sequence = training.permuted_labels(images, labels, dataset.num_classes)
    return sequence, dataset.image_shape, dataset.num_classes


def parts(config: Config, setup: Setup) -> list[Part]:
    """A part a task."""
    program = make_program(config, setup.model, setup.probe)
    chunk, measured = make_chunk(program.step, setup.stream), over_lanes(program.measure, 1)
    names = [(method, strength, seed) for method, strength in setup.lanes for seed in config.seeds]
    keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed, impl="philox4x32"), 2), out_axes=1)(
        jnp.array([seed for *_, seed in names])
    )

    def start() -> Lanes:
        return start_lanes(_started(setup, program, names, keys[0]))

    @cache
    def like() -> Any:
        return jax.eval_shape(start)

    def do(task: int) -> Any:
        def run(lanes: Any) -> tuple[Lanes, Records]:
            lanes = start() if task == 0 else lanes
            lanes, logs = chunk(lanes, keys[1], task * config.steps, config.steps, setup.stream.data)
            values = jax.device_get({**logs, **measured(lanes.state)})
            frozen = jax.device_get(lanes.frozen_at)
            return lanes, [_record(name, task, config, values, frozen, n) for n, name in enumerate(names)]

        return run

    def keep(lanes: Lanes) -> dict[str, Any]:
        """The last networks, by method, and what the controllers did, as arrays."""
        variables = jax.device_get(lanes.state.net.variables)
        places = {method: [n for n, (m, *_) in enumerate(names) if m == method] for method in METHODS}
        return {
            method: {"network": jax.tree.map(lambda leaf, at=at: leaf[np.array(at)], variables)}
            for method, at in places.items()
        }

    steps = config.steps * len(names)
    made = [Part(f"task {n + 1}/{config.num_tasks}", steps, do(n), like, len(names)) for n in range(config.num_tasks)]
    made[0] = made[0]._replace(is_start=True)
    made[-1] = made[-1]._replace(keep=keep, do=_told(made[-1].do, names))
    made[-1] = made[-1]._replace(num_records=len(names) + len(config.seeds))
    return made


def _started(setup: Setup, program: Program, names: list[tuple[str, float, int]], keys: jax.Array) -> Any:
    methods = jnp.array([METHODS.index(method) for method, *_ in names], jnp.int32)
    strengths = jnp.array([strength for _, strength, _ in names], jnp.float32)
    return over_lanes(lambda key, m, s: program.start(setup.model.init(key), m, s), 3)(keys, methods, strengths)


def _record(name: Any, task: int, config: Config, values: Any, frozen: Any, lane: int) -> dict[str, Any]:
    method, strength, seed = name
    where = {"method": method, "strength": strength, "seed": seed, "task": task, "step": (task + 1) * config.steps}
    mark = {"frozen_at": int(frozen[lane])} if frozen[lane] >= 0 else {}
    return {**where, **mark, **{key: float(array[lane]) for key, array in values.items()}}


def _told(do: Any, names: list[tuple[str, float, int]]) -> Any:
    """The last part, with a record of what the controller of each seed did, in words."""

    def run(lanes: Any) -> tuple[Lanes, Records]:
        from experiments.recovery.lane import LADDER

        lanes, records = do(lanes)
        for lane, (method, _, seed) in enumerate(names):
            if method == "controller":
                own: ControllerState = jax.tree.map(lambda leaf, n=lane: leaf[n], lanes.state.net.own[-1])
                records.append({"method": "controller log", "seed": seed, "said": explain(own.log, LADDER)})
        return lanes, records

    return run
