"""What the tasks of a run are: sequences for training and testing, how images become inputs, the loss, the probe."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.continual.config import Config
from lopjax import data, training
from lopjax.data.tasks import class_order, class_table
from lopjax.losses import Masked, accuracy, masked_accuracy, masked_cross_entropy, mean_cross_entropy
from lopjax.training import Preprocess, TaskSequence, task_examples

# Tasks that no run meets; the probe of the mixtures is drawn from many of them.
FAR = 10**6


class Problem(NamedTuple):
    """The tasks of a run.

    Attributes:
        train: the sequence of tasks.
        test: the same tasks with other examples; None where there is nothing to generalise.
        inputs: `(stored, key) -> what the model takes`; augmented if there is a key, not if it is None.
        loss: `(logits, labels) -> scalar`, a mean over examples.
        accuracy: likewise.
        input_shape: shape of one example.
        num_outputs: number of logits.
        classes: `(data, key, task) -> mask` of a task's classes; None where all tasks have the same outputs.
        probe: stored examples and labels of the fixed probe batch.
        is_augmented: whether `inputs` is given a key in training.
    """

    train: TaskSequence
    test: TaskSequence | None
    inputs: Callable[[Any, jax.Array | None], jax.Array]
    loss: Callable[[jax.Array, Any], jax.Array]
    accuracy: Callable[[jax.Array, Any], jax.Array]
    input_shape: tuple[int, ...]
    num_outputs: int
    classes: Callable[[Any, jax.Array, Any], jax.Array] | None
    probe: tuple[Any, Any]
    is_augmented: bool = False


def make_problem(config: Config, data_dir: Any) -> Problem:
    """The problem of a config; loads its data.

    Raises:
        ValueError: a field that does not go with the data; names it.
        FileNotFoundError: the data set is not prepared; the message has the command that prepares it.
    """
    if config.tasks == "gaussian_mixtures":
        return _mixtures(config)
    return _on_device(image_problem(config, data.load(config.dataset, data_dir)))


def _on_device(problem: Problem) -> Problem:
    """The problem with its images on the device, so that those in the host's memory, 0.35 GB, are given back."""
    train, test = (
        part and part._replace(data=jax.tree.map(jnp.asarray, part.data)) for part in (problem.train, problem.test)
    )
    return problem._replace(train=train, test=test)


def image_problem(config: Config, dataset: data.Dataset) -> Problem:
    """The problem of a config on images that are already loaded; `config.dataset` is not read.

    Raises:
        ValueError: a field that does not go with the data; names it.
    """
    unmasked = {"loss": mean_cross_entropy, "accuracy": accuracy, "classes": None}
    shared = {
        "inputs": _preprocess(config, dataset).inputs,
        "input_shape": dataset.image_shape,
        "num_outputs": dataset.num_classes,
        "is_augmented": config.augment,
    }
    if config.tasks == "class_incremental":
        return _class_incremental(config, dataset, shared)
    num = config.num_images or len(dataset.train_labels)
    if not config.probe_samples <= num <= len(dataset.train_labels):
        raise ValueError(
            f"num_images={config.num_images}: must be 0, or from probe_samples={config.probe_samples} to the "
            f"{len(dataset.train_labels)} training images"
        )
    images, labels = dataset.train_images[:num], dataset.train_labels[:num]
    spread = np.arange(config.probe_samples) * num // config.probe_samples
    probe = images[spread], labels[spread]
    if config.tasks == "random_labels":
        train = training.random_labels(images, dataset.num_classes)
        return Problem(train=train, test=None, probe=probe, **unmasked, **shared)
    extra = (dataset.num_classes,) if config.tasks == "permuted_labels" else ()
    make = getattr(training, config.tasks)
    test = make(dataset.test_images, dataset.test_labels, *extra)
    return Problem(train=make(images, labels, *extra), test=test, probe=probe, **unmasked, **shared)


def _preprocess(config: Config, dataset: data.Dataset) -> Preprocess:
    channels = dataset.image_shape[-1]
    for name in ("pixel_mean", "pixel_std"):
        numbers = getattr(config, name)
        if len(numbers) not in (0, channels) or (name == "pixel_std" and not all(value > 0 for value in numbers)):
            raise ValueError(f"{name}={numbers}: must be (), or {channels} numbers, deviations positive")
    padding = max(dataset.image_shape[0] // 8, 1)
    crop_and_flip = (padding, True) if config.augment else (0, False)
    return Preprocess(config.pixel_mean or dataset.mean, config.pixel_std or dataset.std, *crop_and_flip)


def _class_incremental(config: Config, dataset: data.Dataset, shared: dict[str, Any]) -> Problem:
    num = dataset.num_classes
    order = None if config.class_order < 0 else class_order(num, config.class_order)
    train, test = (
        training.class_incremental(images, labels, num, config.num_tasks, config.classes_per_task, order=order)
        for images, labels in (
            (dataset.train_images, dataset.train_labels),
            (dataset.test_images, dataset.test_labels),
        )
    )
    prepare = train.prepare  # without the images, which `classes` below would keep in memory
    if config.probe == "first" and order is None:
        raise ValueError("probe='first': needs a class_order, so that all seeds have the same first task")
    classes = np.arange(num) if order is None or config.probe == "all" else order[: config.classes_per_task]
    candidates = class_table(dataset.train_labels, num)[classes].reshape(-1)
    if config.probe_samples > len(candidates):
        raise ValueError(
            f"probe_samples={config.probe_samples}: must be at most the {len(candidates)} images of the probe"
        )
    probed = candidates[np.arange(config.probe_samples) * len(candidates) // config.probe_samples]
    mask = np.broadcast_to(np.isin(np.arange(num), classes), (len(probed), num))
    labels: Any = Masked(jnp.asarray(dataset.train_labels[probed]), jnp.asarray(mask))
    return Problem(
        train=train,
        test=test,
        loss=masked_cross_entropy,
        accuracy=masked_accuracy,
        classes=lambda data, key, task: prepare(data, jax.random.split(key)[0], task)[1],
        probe=(dataset.train_images[probed], labels),
        **shared,
    )


def _mixtures(config: Config) -> Problem:
    if config.probe != "all":
        raise ValueError(f"probe={config.probe!r}: must be 'all' for gaussian_mixtures")
    train = training.gaussian_mixtures()

    def point(number: jax.Array) -> Any:
        examples = task_examples(train, (), jax.random.key(0, impl="philox4x32"), FAR + number)
        return jax.tree.map(lambda leaf: leaf[number * 7 % train.num_examples], examples)

    return Problem(
        train=train,
        test=training.gaussian_mixtures(num_examples=100, is_test=True),
        inputs=lambda points, key: points,
        loss=mean_cross_entropy,
        accuracy=accuracy,
        input_shape=(2,),
        num_outputs=2,
        classes=None,
        probe=jax.tree.map(np.asarray, jax.lax.map(point, jnp.arange(config.probe_samples))),
    )
