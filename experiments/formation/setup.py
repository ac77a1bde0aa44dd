"""What a run is built from, checked before anything is compiled."""

from typing import Any, NamedTuple

import numpy as np

from experiments.formation.config import Config
from experiments.kit.coarse_digits import NUM_CLASSES, NUM_FEATURES, coarse
from experiments.kit.experiment import NO_RESOURCES, Resources
from lopjax import data
from lopjax.model import Model
from lopjax.models import mlp


class Setup(NamedTuple):
    """Config and everything built from it before compilation.

    Attributes:
        config: what was asked for.
        models: the network of every activation.
        batch: inputs `(samples, 16)`, float32, and labels: all the data.
    """

    config: Config
    models: dict[str, Model]
    batch: tuple[np.ndarray, np.ndarray]


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config, load the data and make the networks; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
    """
    _check_config(config)
    digits = data.load("digits", resources.data_dir)
    num_train = len(digits.train_labels)
    _check("samples", config.samples, config.samples <= num_train, f"at most {num_train}, the training examples")
    models = {name: network(name, config.width) for name in config.activations}
    batch = coarse(digits.train_images)[: config.samples], np.asarray(digits.train_labels[: config.samples])
    return Setup(config, models, batch)


def network(activation: str, width: int) -> Model:
    """One hidden layer, no norm."""
    return mlp((NUM_FEATURES,), (width,), NUM_CLASSES, activation=activation, norm="none")


def _check_config(config: Config) -> None:
    for name, least in (("width", 2), ("samples", NUM_CLASSES), ("steps", 1), ("period", 1), ("next_steps", 1)):
        _check(name, getattr(config, name), getattr(config, name) >= least, f"at least {least}")
    _check("steps", config.steps, config.steps % config.period == 0, f"a multiple of period={config.period}")
    for name in ("learning_rate", "kick"):
        _check(name, getattr(config, name), 0 < getattr(config, name) < float("inf"), "positive and finite")
    _check("momentum", config.momentum, 0 <= config.momentum < 1, "in [0, 1)")
    _check("tolerance", config.tolerance, 0 < config.tolerance < 0.5, "in (0, 0.5)")
    for name, values in (("activations", config.activations), ("decays", config.decays), ("seeds", config.seeds)):
        _check(name, values, len(set(values)) == len(values) > 0, "distinct, at least one")
    _check("decays", config.decays, all(0 <= decay < float("inf") for decay in config.decays), "at least 0, finite")
    _check("seeds", config.seeds, min(config.seeds) >= 0, "at least 0")
    num = len(config.seeds)
    _check("predicted_seeds", config.predicted_seeds, 0 <= config.predicted_seeds <= num, f"in 0..{num}, the seeds")


def _check(name: str, value: Any, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value}: must be {allowed}")
