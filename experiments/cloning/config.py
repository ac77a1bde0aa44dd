"""What E1 can be asked to do: the config and its presets, checked and built before anything is compiled."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from experiments.networks import CNN, MLP, Network, ResNet18, ViT, build_network

if TYPE_CHECKING:
    from lopjax.data import Dataset
    from lopjax.model import Model
    from lopjax.training import Preprocess

Method = Literal["sgd", "noisy_sgd", "dropout", "adam"]
ModelName = Literal["mlp", "cnn", "resnet18", "vit"]


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    dataset: str = "cifar10"
    """"digits" or any prepared TFDS image classification set."""
    label_noise: float = 0.0
    """Fraction of the training labels redrawn at random."""
    augment: bool = True
    """Random crops (4 pixels of padding) and horizontal flips."""
    model: ModelName = "mlp"
    """Architecture."""
    net: Network = field(default_factory=MLP)
    factor: int = 2
    """Clones of every unit."""
    methods: tuple[Method, ...] = ("sgd", "noisy_sgd", "dropout", "adam")
    """What to train with, side by side."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One run each."""
    unit: Literal["epochs", "steps"] = "epochs"
    """Unit of the three lengths below."""
    base_length: int = 20
    """Training of the base before cloning."""
    clone_length: int = 500
    """Training of base and clone side by side."""
    record_every: int = 1
    """How often symptoms are measured."""
    batch_size: int = 128
    """Examples a step."""
    learning_rate: float = 0.01
    """Of SGD, with and without noise or dropout; no momentum, no weight decay."""
    adam_learning_rate: float = 0.001
    """Of Adam."""
    noise_scale: float = 0.01
    """Noisy SGD: noise per entry over the norm of the gradient array, at first."""
    noise_decay: float = 0.999
    """Noisy SGD: factor on the noise per step."""
    dropout: float = 0.1
    """Rate of the dropout method, in base and clone."""
    probe_samples: int = 500
    """Training images on which symptoms are measured."""
    fused: bool = False
    """Compile SGD, noisy SGD and dropout as one program: half the compilation, but everyone pays for drawing noise."""


@dataclass(frozen=True)
class MLPConfig(Config):
    """E1 with a multilayer perceptron."""

    net: MLP = field(default_factory=MLP)
    """The base network."""


@dataclass(frozen=True)
class CNNConfig(Config):
    """E1 with a convolutional network."""

    model: ModelName = "cnn"
    """Architecture."""
    net: CNN = field(default_factory=CNN)
    """The base network."""


@dataclass(frozen=True)
class ResNet18Config(Config):
    """E1 with a residual network."""

    model: ModelName = "resnet18"
    """Architecture."""
    net: ResNet18 = field(default_factory=ResNet18)
    """The base network."""


@dataclass(frozen=True)
class ViTConfig(Config):
    """E1 with a vision transformer."""

    model: ModelName = "vit"
    """Architecture."""
    net: ViT = field(default_factory=ViT)
    """The base network."""
    adam_learning_rate: float = 0.0001
    """Of Adam."""


_QUICK: dict[str, Any] = {
    "dataset": "digits", "label_noise": 0.5, "augment": False, "seeds": (0, 1), "unit": "steps",
    "batch_size": 32, "learning_rate": 0.1, "fused": True,
}  # fmt: skip
_SHORT = {**_QUICK, "base_length": 300, "clone_length": 1800, "record_every": 150}

PRESETS: dict[str, dict[str, Config]] = {
    "mlp": {
        "quick": MLPConfig(net=MLP(widths=(32,) * 5), base_length=500, clone_length=4000, record_every=250, **_QUICK),
        "paper": MLPConfig(),
        "reference": MLPConfig(augment=False, seeds=(0, 1, 2), base_length=5, clone_length=10),
    },
    "cnn": {"quick": CNNConfig(net=CNN(channels=(8, 16), dense=32), **_SHORT), "paper": CNNConfig()},
    "resnet18": {
        "quick": ResNet18Config(net=ResNet18(width=8, blocks=(1, 1)), **_SHORT),
        "paper": ResNet18Config(),
    },
    "vit": {
        "quick": ViTConfig(
            net=ViT(patch=4, width=32, depth=2, heads=4, mlp_ratio=2.0),
            adam_learning_rate=0.001,
            **{**_SHORT, "learning_rate": 0.3},
        ),
        "paper": ViTConfig(),
    },
}
"""By model, then by name; the first of each is the default."""


class Setup(NamedTuple):
    """Config and everything built from it before compilation."""

    config: Config
    dataset: "Dataset"
    base: "Model"
    wide: "Model"
    preprocess: "Preprocess"
    steps_per_unit: int


def build(config: Config, data_dir: Path | None = None) -> Setup:
    """Check the config, load the data and build both models; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
        FileNotFoundError: the data set is not prepared; the message has the command that prepares it.
    """
    from lopjax import data
    from lopjax.cloning import widen
    from lopjax.training import Preprocess

    _check_config(config)
    dataset = data.load(config.dataset, data_dir, config.label_noise)
    num_train = len(dataset.train_labels)
    for name in ("batch_size", "probe_samples"):
        is_enough = getattr(config, name) <= num_train
        _check(name, getattr(config, name), is_enough, f"at most the {num_train} training examples")
    base = build_network(config.model, config.net, dataset.image_shape, dataset.num_classes, config.dropout)
    crop_and_flip = (4, True) if config.augment else (0, False)
    return Setup(
        config=config,
        dataset=dataset,
        base=base,
        wide=widen(base, config.factor),
        preprocess=Preprocess(dataset.mean, dataset.std, *crop_and_flip),
        steps_per_unit=1 if config.unit == "steps" else num_train // config.batch_size,
    )


def _check_config(config: Config) -> None:
    """What can be checked without the data and the models, which check their own arguments."""
    import jax

    from lopjax.optim import noisy_sgd

    lengths = ("base_length", "clone_length")
    for name in (*lengths, "record_every", "batch_size", "probe_samples"):
        _check(name, getattr(config, name), getattr(config, name) >= 1, "at least 1")
    for name in ("learning_rate", "adam_learning_rate"):
        _check(name, getattr(config, name), 0 < getattr(config, name) < float("inf"), "positive and finite")
    for name in lengths:
        is_multiple = getattr(config, name) % config.record_every == 0
        _check(name, getattr(config, name), is_multiple, f"a multiple of record_every={config.record_every}")
    for name in ("seeds", "methods"):
        values = getattr(config, name)
        _check(name, values, len(set(values)) == len(values) > 0, "distinct, at least one")
    _check("seeds", config.seeds, all(0 <= seed < 2**31 for seed in config.seeds), "in 0..2147483647")
    _check("factor", config.factor, config.factor >= 1, "a positive integer")
    # Traced only, so that a mistake is answered before anything is compiled, be it the making of a key.
    jax.eval_shape(lambda: noisy_sgd(config.learning_rate, config.noise_scale, config.noise_decay, seed=0).init({}))


def _check(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value}: must be {allowed}")
