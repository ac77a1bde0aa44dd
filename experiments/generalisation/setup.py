"""What a run is built from, checked before anything is compiled."""

from typing import Any, NamedTuple

import numpy as np

from experiments.generalisation.config import Config
from experiments.kit.coarse_digits import NUM_CLASSES, NUM_FEATURES, coarse
from experiments.kit.experiment import NO_RESOURCES, Resources
from lopjax import data
from lopjax.model import Model
from lopjax.models import mlp

Samples = tuple[np.ndarray, np.ndarray]


class Setup(NamedTuple):
    """Config and everything built from it before compilation.

    Attributes:
        config: what was asked for.
        models: the network of every activation.
        train: inputs `(samples, 16)`, float32, and labels, some of them redrawn.
        test: the same of the test set, whose labels are right.
    """

    config: Config
    models: dict[str, Model]
    train: Samples
    test: Samples


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config, load the data and make the networks; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
    """
    _check_config(config)
    digits = data.load("digits", resources.data_dir, config.label_noise)
    num_train = len(digits.train_labels)
    _check("samples", config.samples, config.samples <= num_train, f"at most {num_train}, the training examples")
    models = {
        name: mlp((NUM_FEATURES,), config.widths, NUM_CLASSES, activation=name, norm="none")
        for name in config.activations
    }
    train = coarse(digits.train_images)[: config.samples], np.asarray(digits.train_labels[: config.samples])
    test = coarse(digits.test_images, digits.train_images), np.asarray(digits.test_labels)
    return Setup(config, models, train, test)


def _check_config(config: Config) -> None:
    for name, least in (("samples", NUM_CLASSES), ("steps", 1), ("next_steps", 1)):
        _check(name, getattr(config, name), getattr(config, name) >= least, f"at least {least}")
    _check("lengths", config.lengths, min(config.lengths, default=1) >= 1, "at least 1")
    _check("momentum", config.momentum, 0 <= config.momentum < 1, "in [0, 1)")
    _check("learning_rate", config.learning_rate, 0 < config.learning_rate < float("inf"), "positive and finite")
    swept = {
        "decay": (config.decays, "decays"),
        "scale": (config.scales, "scales"),
        "smoothing": (config.smoothings, "smoothings"),
    }
    for one, (many, name) in swept.items():
        top, allowed = (1.0, "in [0, 1)") if one == "smoothing" else (float("inf"), "at least 0, finite")
        _check(one, getattr(config, one), 0 <= getattr(config, one) < top, allowed)
        _check(name, many, all(0 <= value < top for value in many), allowed)
    _check("seeds", config.seeds, len(set(config.seeds)) == len(config.seeds) >= 4, "distinct, at least four")
    _check("seeds", config.seeds, min(config.seeds) >= 0, "at least 0")
    _check("activations", config.activations, len(set(config.activations)) == len(config.activations) > 0, "distinct")


def _check(name: str, value: Any, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value}: must be {allowed}")
