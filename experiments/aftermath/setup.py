"""What a run of the aftermath experiment is built from, checked before anything is compiled."""

from typing import Any, NamedTuple

import numpy as np

from experiments.aftermath.config import Config
from experiments.kit.experiment import NO_RESOURCES, Resources
from experiments.kit.networks import build_network
from lopjax import data
from lopjax.cloning import widen
from lopjax.model import Model
from lopjax.training import Preprocess, Stream, check_lanes, epochs


class Setup(NamedTuple):
    """Config and everything built from it before compilation.

    Attributes:
        config: what was asked for.
        narrow: the small network.
        wide: the network of its clones.
        preprocess: how images become inputs.
        stream: stream of the training examples of the first task.
        tasks: `(training set, test set)` of the first task and of the next, 8-bit images and labels.
        mesh: devices that lanes are spread over; None for one.
    """

    config: Config
    narrow: Model
    wide: Model
    preprocess: Preprocess
    stream: Stream
    tasks: tuple[Any, Any]
    mesh: Any = None


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config, load the data and build both models; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
        FileNotFoundError: the data set is not prepared; the message has the command that prepares it.
    """
    _check_config(config)
    check_lanes(len(config.seeds), resources.mesh)
    dataset = coarse(data.load(config.dataset, resources.data_dir, config.label_noise), config.coarseness)
    num_train = len(dataset.train_labels)
    for name in ("batch_size", "probe_samples"):
        value = getattr(config, name)
        _check(name, value, 1 <= value <= num_train, f"in 1..{num_train}, the training examples")
    narrow = build_network("mlp", config.net, dataset.image_shape, dataset.num_classes)
    permutation = next_classes(dataset.num_classes)
    first = ((dataset.train_images, dataset.train_labels), (dataset.test_images, dataset.test_labels))
    following = tuple((images, permutation[labels].astype(labels.dtype)) for images, labels in first)
    stream = epochs(dataset.train_images, dataset.train_labels, config.batch_size)
    preprocess = Preprocess(dataset.mean, dataset.std)
    return Setup(config, narrow, widen(narrow, config.factor), preprocess, stream, (first, following), resources.mesh)


def coarse(dataset: data.Dataset, side: int) -> data.Dataset:
    """The same set with images averaged over squares of a side, rounded to whole numbers.

    Raises:
        ValueError: the side does not divide height and width.
    """
    if side == 1:
        return dataset
    height, width, channels = dataset.image_shape
    allowed = f"a divisor of {height} and {width}, the images' height and width"
    _check("coarseness", side, height % side == 0 and width % side == 0, allowed)

    def averaged(images: np.ndarray) -> np.ndarray:
        squares = images.reshape(len(images), height // side, side, width // side, side, channels)
        return np.round(squares.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)

    train = averaged(dataset.train_images)
    mean, std = data.channel_statistics(train)
    return dataset._replace(train_images=train, test_images=averaged(dataset.test_images), mean=mean, std=std)


def next_classes(num_classes: int) -> np.ndarray:
    """What every class is called in the next task: none keeps its name (a cyclic shift of a fixed shuffle)."""
    shuffled = np.random.default_rng(0).permutation(num_classes)
    names = np.empty(num_classes, np.int64)
    names[shuffled] = np.roll(shuffled, 1)
    return names


def probe(config: Config, setup: Setup) -> tuple[Any, Any]:
    """Inputs and labels on which symptoms are measured: the first training images."""
    images, labels = setup.tasks[0][0]
    return setup.preprocess.inputs(images[: config.probe_samples]), labels[: config.probe_samples]


def _check_config(config: Config) -> None:
    """What can be checked without the data and the models, which check their own arguments."""
    for name in ("coarseness", "base_steps", "clone_steps", "next_steps", "chunks", "kick_steps", "split_every"):
        _check(name, getattr(config, name), getattr(config, name) >= 1, "at least 1")
    for name in ("clone_steps", "next_steps"):
        is_multiple = getattr(config, name) % config.chunks == 0
        _check(name, getattr(config, name), is_multiple, f"a multiple of chunks={config.chunks}")
    _check("factor", config.factor, config.factor >= 2, "at least 2: without clones nothing escapes")
    for name in ("learning_rate", "noise_scale", "kick_radius"):
        _check(name, getattr(config, name), 0 < getattr(config, name) < float("inf"), "positive and finite")
    _check("brief_decay", config.brief_decay, 0 <= config.brief_decay < 1, "in [0, 1)")
    _check("net.norm", config.net.norm, config.net.norm != "batch", '"none" or "layer": clones of critical scale')
    distinct = len(set(config.seeds)) == len(config.seeds) > 0
    _check("seeds", config.seeds, distinct and min(config.seeds) >= 0, "distinct, at least one, none negative")


def _check(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value}: must be {allowed}")
