"""What a run of the escape experiment is built from, checked before anything is compiled."""

from typing import Any, NamedTuple

from experiments.escape.config import AXES, Config, points_of, values_of
from experiments.kit.experiment import NO_RESOURCES, Resources
from experiments.kit.methods import Group, Lane
from experiments.kit.networks import build_network
from lopjax import data
from lopjax.cloning import widen
from lopjax.model import Model
from lopjax.training import Preprocess, Stream, check_lanes, epochs

# What each number of the grid may be, as a test and in words.
ALLOWED = {
    "noise_scale": (lambda value: 0 <= value < float("inf"), "finite and at least 0"),
    "noise_decay": (lambda value: 0 <= value <= 1, "in [0, 1]"),
    "dropout": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "learning_rate": (lambda value: 0 < value < float("inf"), "positive and finite"),
    "momentum": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "weight_decay": (lambda value: 0 <= value < float("inf"), "finite and at least 0"),
}


CLONE, LINEAR = "clone", "linear"
"""Kinds of clones: networks, and the linear theory of each."""


class Setup(NamedTuple):
    """Config and everything built from it before compilation."""

    config: Config
    dataset: data.Dataset
    base: Model
    wide: Model
    preprocess: Preprocess
    stream: Stream
    mesh: Any = None

    def bases(self, kind: str) -> Group:
        """The base networks of one kind of clones, a lane per seed."""
        return Group(tuple(Lane(kind, (), seed) for seed in self.config.seeds), {}, {})

    def clones(self, kind: str) -> Group:
        """All clones of a kind: one program for every point of the grid and every seed, whose numbers are traced."""
        points = points_of(self.config)
        lanes = tuple(Lane(kind, point, seed) for point in points for seed in self.config.seeds)
        return Group(lanes, {}, {name: tuple(dict(lane.point)[name] for lane in lanes) for name in AXES})


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config, load the data and build both models; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
        FileNotFoundError: the data set is not prepared; the message has the command that prepares it.
    """
    _check_config(config)
    check_lanes(len(config.seeds), resources.mesh)
    dataset = data.load(config.dataset, resources.data_dir, config.label_noise)
    num_train = len(dataset.train_labels)
    for name in ("batch_size", "probe_samples"):
        is_enough = 1 <= getattr(config, name) <= num_train
        _check(name, getattr(config, name), is_enough, f"in 1..{num_train}, the training examples")
    base = build_network(config.model, config.net, dataset.image_shape, dataset.num_classes)
    stream = epochs(dataset.train_images, dataset.train_labels, config.batch_size)
    preprocess = Preprocess(dataset.mean, dataset.std)
    return Setup(config, dataset, base, widen(base, config.factor), preprocess, stream, resources.mesh)


def probe(config: Config, setup: Setup) -> tuple[Any, Any]:
    """Inputs and labels on which R² is measured: the first training images."""
    images, labels = (
        array[: config.probe_samples] for array in (setup.dataset.train_images, setup.dataset.train_labels)
    )
    return setup.preprocess.inputs(images), labels


def _check_config(config: Config) -> None:
    """What can be checked without the data and the models, which check their own arguments."""
    for name in ("base_steps", "clone_steps", "record_every"):
        _check(name, getattr(config, name), getattr(config, name) >= 1, "at least 1")
    is_multiple = config.clone_steps % config.record_every == 0
    _check("clone_steps", config.clone_steps, is_multiple, f"a multiple of record_every={config.record_every}")
    _check("factor", config.factor, config.factor >= 2, "at least 2: without clones nothing escapes")
    is_rate = 0 < config.base_learning_rate < float("inf")
    _check("base_learning_rate", config.base_learning_rate, is_rate, "positive and finite")
    for name in ("seeds", *AXES.values()):
        values = getattr(config, name)
        _check(name, values, len(set(values)) == len(values) > 0, "distinct, at least one")
    _check("seeds", config.seeds, all(0 <= seed < 2**31 for seed in config.seeds), "in 0..2147483647")
    has_batch_norm = config.net.norm == "batch"
    _check("linear", config.linear, not (config.linear and has_batch_norm), "off with batch norm")
    for name, (is_allowed, allowed) in ALLOWED.items():
        for value in values_of(config, name):
            _check(AXES[name], value, is_allowed(value), allowed)


def _check(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value}: must be {allowed}")
