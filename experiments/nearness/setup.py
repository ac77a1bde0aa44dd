"""What a run is built from, checked before anything is compiled."""

from typing import Any, NamedTuple

import numpy as np

from experiments.kit.coarse_digits import NUM_CLASSES, NUM_FEATURES, coarse
from experiments.kit.experiment import NO_RESOURCES, Resources
from experiments.nearness.config import NETWORKS, Config
from lopjax import data
from lopjax.model import Model
from lopjax.models import mlp, vit

HEADS = 4


class Setup(NamedTuple):
    """Config and everything built from it before compilation.

    Attributes:
        config: what was asked for.
        models: every network by name.
        batches: inputs, float32, and labels, by network: 16 features, or images of 8 x 8 pixels.
    """

    config: Config
    models: dict[str, Model]
    batches: dict[str, tuple[np.ndarray, np.ndarray]]


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config, load the data and make the networks; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
    """
    for name, least in (("width", HEADS), ("samples", NUM_CLASSES), ("tasks", 1), ("steps", 1)):
        _check(name, getattr(config, name), getattr(config, name) >= least, f"at least {least}")
    _check("width", config.width, config.width % HEADS == 0, f"a multiple of {HEADS}, the heads")
    _check("seeds", config.seeds, len(set(config.seeds)) == len(config.seeds) > 1, "distinct, at least two")
    rates = config.learning_rates
    is_one_each = len(rates) == len(config.rules) == len(set(config.rules)) > 0
    _check("learning_rates", rates, is_one_each and min(rates) > 0, "positive, one for each of distinct rules")
    digits = data.load("digits", resources.data_dir)
    num_train = len(digits.train_labels)
    _check("samples", config.samples, config.samples <= num_train, f"at most {num_train}, the training examples")
    labels = np.asarray(digits.train_labels[: config.samples])
    images = np.asarray(digits.train_images, np.float32)
    images = (images - images.mean()) / images.std()
    features = coarse(digits.train_images)[: config.samples]
    batches = {name: (images[: config.samples] if "vit" in name else features, labels) for name in NETWORKS}
    return Setup(config, {name: _network(name, config.width) for name in NETWORKS}, batches)


def _network(name: str, width: int) -> Model:
    family, activation = name.split()
    if family == "vit":
        return vit(
            (8, 8, 1), NUM_CLASSES, patch=4, width=width, depth=1, heads=HEADS, mlp_ratio=1.0, activation=activation
        )
    return mlp((NUM_FEATURES,), (width, width), NUM_CLASSES, activation=activation, norm="none")


def _check(name: str, value: Any, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value}: must be {allowed}")
