"""The stability experiment as a list of parts: one epoch each, with measurements at the epochs asked for."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.kit.experiment import NO_RESOURCES, Resources
from experiments.kit.networks import build_network
from experiments.stability.config import Config
from lopjax import data
from lopjax.cloning import clone_factors
from lopjax.losses import mean_cross_entropy
from lopjax.model import Model, Variables
from lopjax.runs.schedule import Part
from lopjax.stability import unit_blocks
from lopjax.training import (
    Drawn,
    Lanes,
    Logs,
    Preprocess,
    TrainState,
    epochs,
    init_state,
    logs_of,
    make_chunk,
    start_lanes,
    train_step,
)

Records = list[dict[str, Any]]


class Setup(NamedTuple):
    """What a run is built from."""

    dataset: data.Dataset
    model: Model
    preprocess: Preprocess


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config, load the data and build the model; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
        FileNotFoundError: the data set is not prepared.
    """
    for name in ("epochs", "epochs_after"):
        values = getattr(config, name)
        if not values or any(epoch < 0 for epoch in values) or list(values) != sorted(set(values)):
            raise ValueError(f"{name}={values}: must be epochs >= 0 in ascending order, at least one")
    if not 0 < config.learning_rate < float("inf"):
        raise ValueError(f"learning_rate={config.learning_rate}: must be positive and finite")
    dataset = data.load(config.dataset, resources.data_dir)
    num_train = len(dataset.train_labels)
    for name in ("num_images", "batch_size"):
        if not 1 <= getattr(config, name) <= num_train:
            raise ValueError(f"{name}={getattr(config, name)}: must be in 1..{num_train}, the training examples")
    model = build_network("mlp", config.net, dataset.image_shape, dataset.num_classes)
    clone_factors(model.wiring, config.factor)
    return Setup(dataset, model, Preprocess(dataset.mean, dataset.std))


def probe(config: Config, setup: Setup) -> tuple[Any, Any]:
    """Inputs and first labels of the images over which M_j is averaged."""
    images, labels = setup.dataset.train_images, setup.dataset.train_labels
    return setup.preprocess.inputs(images[: config.num_images]), labels[: config.num_images]


def parts(config: Config, setup: Setup) -> list[Part]:
    """A part per epoch, through both tasks: the first labels, and then labels redrawn at random.

    Steps are counted through both; an epoch at which stability is measured has a second record for it.
    """
    optimizer = optax.sgd(config.learning_rate)
    init_key, data_key, label_key = jax.random.split(jax.random.key(config.seed, impl="philox4x32"), 3)
    images, first_labels = jnp.asarray(setup.dataset.train_images), jnp.asarray(setup.dataset.train_labels)
    new_labels = jax.random.randint(label_key, first_labels.shape, 0, setup.dataset.num_classes)
    stream = epochs(images, first_labels, config.batch_size)
    steps_per_epoch = len(images) // config.batch_size
    inputs = setup.preprocess.inputs(images[: config.num_images])

    def step(state: TrainState, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[TrainState, Logs]:
        shown, labels = drawn.batch
        state, observed = train_step(setup.model, optimizer, state, (setup.preprocess.inputs(shown), labels), key)
        return state, logs_of(observed, "loss", "accuracy")

    chunk = make_chunk(step, stream)

    def start() -> Lanes:
        return start_lanes(jax.tree.map(lambda leaf: leaf[None], init_state(setup.model.init(init_key), optimizer)))

    def epoch(task: int, number: int, start_step: int, lanes: Lanes | None) -> tuple[Lanes, Records]:
        labels, epochs_measured = ((first_labels, config.epochs), (new_labels, config.epochs_after))[task]
        where, records = {"task": task, "epoch": number}, []
        lanes = start() if lanes is None else lanes
        if number > 0:
            lanes, logs = chunk(lanes, data_key[None], start_step, steps_per_epoch, (images, labels))
            _check_finite(config, lanes, steps_per_epoch)
            records.append({**where, "train_loss": float(logs["loss"][0])})
        if number in epochs_measured:
            batch = inputs, labels[: config.num_images]
            records.append({**where, **measure(config, setup.model, _variables(lanes), *batch)})
        return lanes, records

    planned, trained = [], 0
    for task, measured in enumerate((config.epochs, config.epochs_after)):
        for number in range(measured[-1] + 1):
            do = partial(epoch, task, number, trained * steps_per_epoch)
            trained += number > 0
            units = (number > 0) + (number in measured)
            planned.append(Part(f"task {task + 1}", units, do, lambda: jax.eval_shape(start), num_records=units))
    planned[0] = planned[0]._replace(is_start=True)
    planned[-1] = planned[-1]._replace(keep=lambda lanes: {"network": _variables(lanes)})
    return planned


def _variables(lanes: Lanes) -> Variables:
    return jax.tree.map(lambda leaf: leaf[0], lanes.state.variables)


def _check_finite(config: Config, lanes: Lanes, steps_per_epoch: int) -> None:
    """There is only one lane: if it is frozen, nothing is left to do.

    Raises:
        FloatingPointError: the loss is not finite; says from which step on.
    """
    if (frozen_at := int(lanes.frozen_at[0])) >= 0:
        raise FloatingPointError(
            f"the loss is not finite at step {frozen_at} (epoch {frozen_at // steps_per_epoch}) of training; "
            f"learning_rate={config.learning_rate} is too large for this network"
        )


def measure(config: Config, model: Model, variables: Variables, inputs: Any, labels: Any) -> dict[str, Any]:
    """The report on the whole manifold, and every unit's smallest and largest eigenvalue, in double precision."""
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        batch = np.asarray(inputs, np.float64), np.asarray(labels)
        double, batch = jax.device_put((double, batch))
        blocks = unit_blocks(model, double, batch, config.factor)
        loss = float(mean_cross_entropy(model.apply(double, batch[0]).logits, batch[1]))
    return {
        "loss": loss,
        "report": blocks.total._replace(verdict=blocks.total.verdict.name)._asdict(),
        "min_eigenvalue": {space: of_space.of_units("min_eigenvalue") for space, of_space in blocks.spaces.items()},
        "max_eigenvalue": {space: of_space.of_units("max_eigenvalue") for space, of_space in blocks.spaces.items()},
        "dead": {space: int(of_space.is_dead.sum()) for space, of_space in blocks.spaces.items()},
    }
