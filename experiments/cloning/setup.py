"""What a run of the cloning experiment is built from, checked before anything is compiled."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax

from experiments.cloning.config import Config, GPTConfig, methods_of
from experiments.kit.experiment import NO_RESOURCES, Resources
from experiments.kit.grid import axes_of, check_grid
from experiments.kit.methods import METHODS, NUMBERS, Group, groups_of, numbers_of
from experiments.kit.networks import build_network
from experiments.kit.own_metrics import own_metrics
from lopjax import data
from lopjax.cloning import widen
from lopjax.data.text import encode_bytes, encode_words, python_text, text_windows
from lopjax.model import Model
from lopjax.optim import noisy_sgd
from lopjax.training import AsStored, Preprocess, Stream, check_lanes, epochs


class Setup(NamedTuple):
    """Config and everything built from it before compilation."""

    config: Config
    test: tuple[Any, Any]
    base: Model
    wide: Model
    preprocess: Preprocess | AsStored
    stream: Stream
    steps_per_unit: int
    mesh: Any = None

    @property
    def groups(self) -> tuple[Group, ...]:
        """The programs of the run. Released clones go on in one program for all methods."""
        config = self.config
        methods = methods_of(config.methods, config.release_at)
        is_fused = config.fused or config.release_at > 0
        return groups_of(methods, config.seeds, numbers_of(config, NUMBERS), axes_of(config), is_fused)


class Examples(NamedTuple):
    """What is learnt: stored inputs and labels, how inputs become the model's, and the sizes of both ends."""

    train: tuple[Any, Any]
    test: tuple[Any, Any]
    preprocess: Preprocess | AsStored
    input_shape: tuple[int, ...]
    num_outputs: int


def _images(config: Config, resources: Resources) -> Examples:
    dataset = data.load(config.dataset, resources.data_dir, config.label_noise)
    crop_and_flip = (4, True) if config.augment else (0, False)
    return Examples(
        (dataset.train_images, dataset.train_labels),
        (dataset.test_images, dataset.test_labels),
        Preprocess(dataset.mean, dataset.std, *crop_and_flip),
        dataset.image_shape,
        dataset.num_classes,
    )


def _text(config: GPTConfig) -> Examples:
    _check("augment", config.augment, not config.augment, "False: text is not cropped or flipped")
    _check("label_noise", config.label_noise, config.label_noise == 0, "0 for text")
    text = [python_text(config.dataset).text]
    encoded = encode_words(text, config.num_words) if config.num_words else encode_bytes(text)
    num = config.num_windows
    windows = text_windows(encoded.tokens[0], config.length, num + config.test_windows)
    inputs, labels = windows[:, :-1], windows[:, 1:]
    parts = (inputs[:num], labels[:num]), (inputs[num:], labels[num:])
    return Examples(*parts, AsStored(), (config.length,), len(encoded.vocabulary))


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config, load the data and build both models; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
        FileNotFoundError: the data set is not prepared; the message has the command that prepares it.
    """
    _check_config(config)
    check_lanes(len(config.seeds), resources.mesh)
    examples = _text(config) if isinstance(config, GPTConfig) else _images(config, resources)
    num_train = len(examples.train[0])
    for name in ("batch_size", "probe_samples"):
        is_enough = getattr(config, name) <= num_train
        _check(name, getattr(config, name), is_enough, f"at most the {num_train} training examples")
    base = build_network(config.model, config.net, examples.input_shape, examples.num_outputs, config.dropout)
    return Setup(
        config=config,
        test=examples.test,
        base=base,
        wide=widen(base, config.factor),
        preprocess=examples.preprocess,
        stream=epochs(*examples.train, config.batch_size),
        steps_per_unit=1 if config.unit == "steps" else num_train // config.batch_size,
        mesh=resources.mesh,
    )


def probe(config: Config, setup: Setup) -> tuple[Any, Any]:
    """Inputs and labels on which symptoms are measured: the first training images."""
    images, labels = (array[: config.probe_samples] for array in setup.stream.data)
    return setup.preprocess.inputs(images), labels


def _check_config(config: Config) -> None:
    """What can be checked without the data and the models, which check their own arguments."""
    lengths = ("base_length", "clone_length")
    for name in (*lengths, "record_every", "batch_size", "probe_samples"):
        _check(name, getattr(config, name), getattr(config, name) >= 1, "at least 1")
    is_inside = 0 <= config.release_at < config.clone_length
    _check("release_at", config.release_at, is_inside, f"in 0..{config.clone_length - 1}, inside clone_length")
    for name in (*lengths, "release_at"):
        is_multiple = getattr(config, name) % config.record_every == 0
        _check(name, getattr(config, name), is_multiple, f"a multiple of record_every={config.record_every}")
    for name in ("seeds", "methods"):
        values = getattr(config, name)
        _check(name, values, len(set(values)) == len(values) > 0, "distinct, at least one")
    _check("seeds", config.seeds, all(0 <= seed < 2**31 for seed in config.seeds), "in 0..2147483647")
    _check("factor", config.factor, config.factor >= 1, "a positive integer")
    if config.release_at:
        _check(
            "methods", config.methods, "sgd" in config.methods, "methods among which is sgd, whose clones are released"
        )
        for axis in config.grid:
            is_of_method = axis.name not in METHODS["sgd"].reads
            _check(f"grid {axis}: release_at", config.release_at, is_of_method, "0 for a grid over a number of sgd")
    own_metrics(config.metrics)
    check_grid(config.grid, NUMBERS)
    _check_numbers(config)
    for axis in config.grid:
        for value in axis.values:
            _check_numbers(replace(config, **{axis.name: value}))
    groups_of(methods_of(config.methods, config.release_at), config.seeds, numbers_of(config, NUMBERS), axes_of(config))


def _check_numbers(config: Config) -> None:
    """The numbers that methods read, the config's own or those of a point of the grid."""
    for name in ("learning_rate", "adam_learning_rate"):
        _check(name, getattr(config, name), 0 < getattr(config, name) < float("inf"), "positive and finite")
    _check("dropout", config.dropout, 0 <= config.dropout < 1, "a rate in [0, 1)")
    # Traced only, so that a mistake is reported before anything is compiled, even the creation of a key.
    jax.eval_shape(lambda: noisy_sgd(config.learning_rate, config.noise_scale, config.noise_decay, seed=0).init({}))


def _check(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value}: must be {allowed}")
