"""What the continual-learning experiment can be asked to do: the config and its presets. Nothing here imports JAX."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from experiments.continual.methods import METHODS
from experiments.kit.configs import ImageConfig, ModelName, OnCNN, OnMLP, OnResNet18, OnViT, TrainingConfig
from experiments.kit.networks import CNN, MLP, Network, ResNet18, ViT

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]
Kind = Literal["gaussian_mixtures", "class_incremental", "permuted_pixels", "permuted_labels", "random_labels"]


@dataclass(frozen=True)
class TasksConfig(TrainingConfig):
    """What every sequence of tasks has, whatever the tasks are."""

    model: str = "mlp"
    """Architecture."""
    net: Network = field(default_factory=MLP)
    """The network."""
    num_tasks: int = 40
    """How many tasks."""
    steps: int = 500
    """Steps of each task."""
    change: int = 0
    """Steps over which a task turns into the next; 0 for an abrupt change."""
    zero_head: bool = False
    """Set the output layer to zero at the start of every task."""
    methods: tuple[MethodName, ...] = ("adam", "l2_init", "weight_decay", "equal_betas")
    """What to train with, side by side."""
    fresh: bool = True
    """Beside them a network drawn anew for every task, one per plain optimizer, against which loss is measured."""
    seeds: tuple[int, ...] = (0,)
    """One run each, with its own initial network, batches and, unless their order is given, tasks."""
    l2_init: float = 0.01
    """L2-init: strength as in the authors' code, a factor on half the squared distance to the initial weights."""
    weight_decay: float = 0.01
    """Weight decay (AdamW): times the learning rate per step."""
    beta2: float = 0.9
    """Equal betas: decay of Adam's mean square, the same as that of its mean; 0.999 in the other methods."""
    shrink: float = 1e-4
    """Shrink and perturb: share by which parameters shrink per step."""
    perturb: float = 1e-3
    """Shrink and perturb: standard deviation of the noise per step."""
    replacement_rate: float = 1e-4
    """Continual backprop: share of the eligible units that are replaced per step."""
    maturity: int = 100
    """Continual backprop: steps until a unit is eligible."""
    redo_threshold: float = 0.1
    """ReDo and ReGraMa: largest score of a unit that is reset."""
    reset_every: int = 100
    """ReDo, ReGraMa and CPR: steps between two resets."""
    look_every: int = 0
    """Recovery controller: steps between two looks; 0 for reset_every."""
    threshold: float = 1.0
    """Recovery controller: factor on the scores from which a symptom is treated, and below which it has gone."""
    cpr_strength: float = 0.015
    """CPR: how far weights move towards a fresh draw at most."""
    percentile: float = 0.99
    """Self-normalized resets: percentile of a unit's own silences beyond which it is reset."""
    record_every: int = 0
    """Steps between two measurements, a divisor of the steps of a task; 0 for the end of each task."""
    probe_samples: int = 500
    """Examples on which symptoms are measured, of the fixed probe and of the task at hand."""
    level: float = 0.8
    """Accuracy, as a running mean over ten batches; the step at which a task first reaches it is recorded."""
    earlier: tuple[int, ...] = (1, 2, 4)
    """Accuracy is also measured on the tasks this many tasks ago."""


@dataclass(frozen=True)
class Config(TasksConfig, ImageConfig):
    """Everything that decides the result."""

    model: ModelName = "mlp"
    """Architecture."""
    tasks: Kind = "class_incremental"
    """What a task is."""
    dataset: str = "digits"
    """"digits" or any prepared TFDS image classification set; not used by gaussian_mixtures."""
    classes_per_task: int = 5
    """Class_incremental: classes of a task, no class in two tasks."""
    class_order: int = -1
    """Class_incremental: -1 for an order of its own for every seed, else that of NumPy's generator with this seed."""
    num_images: int = 0
    """Other tasks on images: how many of the training images are used, the first ones; 0 for all."""
    pixel_mean: tuple[float, ...] = ()
    """Mean used for normalisation, a number per channel, in units of pixel/255; () for that of the training images."""
    pixel_std: tuple[float, ...] = ()
    """Likewise."""
    fresh_every: int = 1
    """Fresh networks at every so many tasks only, a divisor of num_tasks, to save time: 8 for tasks 8, 16, ..."""
    probe: Literal["all", "first"] = "all"
    """The fixed batch: from all tasks, or from the first (which needs a class_order)."""


@dataclass(frozen=True)
class MLPConfig(OnMLP, Config):
    """Continual learning of a multilayer perceptron."""


@dataclass(frozen=True)
class CNNConfig(OnCNN, Config):
    """Continual learning of a convolutional network."""


@dataclass(frozen=True)
class ResNet18Config(OnResNet18, Config):
    """Continual learning of a residual network."""


@dataclass(frozen=True)
class ViTConfig(OnViT, Config):
    """Continual learning of a vision transformer."""


_GAUSSIAN: dict[str, Any] = {
    "tasks": "gaussian_mixtures", "batch_size": 100, "adam_learning_rate": 0.003, "level": 0.8, "l2_init": 1e-3,
    "net": MLP(widths=(100,) * 10, activation="tanh", norm="none", init="lecun"),
}  # fmt: skip
# arXiv 2510.00304, section 3. Every seed has its own order of classes; with five classes chance is a fifth.
_TINY: dict[str, Any] = {
    "dataset": "tiny_imagenet", "zero_head": True, "augment": True, "seeds": (0, 1, 2), "methods": ("adam",),
    "level": 0.8, "earlier": (1, 4, 16),
}  # fmt: skip
# arXiv 2308.11958: Adam 1e-3, L2-init by the official code 1e-2.
_RANDOM: dict[str, Any] = {
    "tasks": "random_labels", "dataset": "cifar10", "num_tasks": 50, "num_images": 1200, "batch_size": 16,
    "steps": 400 * 75, "seeds": (0, 1, 2, 3, 4), "l2_init": 0.01, "methods": ("adam", "l2_init"), "level": 0.95,
    "earlier": (),
}  # fmt: skip
_PERMUTED: dict[str, Any] = {
    "tasks": "permuted_pixels", "dataset": "cifar10", "num_tasks": 20, "num_images": 10_000, "batch_size": 16,
    "steps": 625, "seeds": (0, 1, 2, 3, 4), "l2_init": 1e-3, "methods": ("adam", "l2_init"), "level": 0.3,
}  # fmt: skip
_DIGITS: dict[str, Any] = {
    "steps": 60, "classes_per_task": 2, "batch_size": 32, "zero_head": True, "probe_samples": 200,
    "methods": ("adam", "l2_init"), "adam_learning_rate": 0.003, "level": 0.95, "num_tasks": 5,
}  # fmt: skip
_NO_NORM = MLP(widths=(100, 100), norm="none")

PRESETS: dict[str, dict[str, Config]] = {
    "mlp": {
        "quick": MLPConfig(num_tasks=10, steps=400, **_GAUSSIAN),
        "gaussian": MLPConfig(num_tasks=100, seeds=(0, 1, 2, 3, 4), **_GAUSSIAN),
        "tiny_imagenet": MLPConfig(net=MLP(norm="none"), **_TINY),
        "reference": MLPConfig(
            net=MLP(norm="none"), class_order=0, probe="first", pixel_mean=(0.4802, 0.4481, 0.3975),
            pixel_std=(0.2302, 0.2265, 0.2262), **{**_TINY, "augment": False, "steps": 300},
        ),
        "random_labels_cifar": MLPConfig(net=_NO_NORM, **_RANDOM),
        "permuted_cifar": MLPConfig(net=_NO_NORM, **_PERMUTED),
    },
    "cnn": {
        "quick": CNNConfig(net=CNN(channels=(8, 16), dense=32, norm="none"), **_DIGITS),
        "tiny_imagenet": CNNConfig(**_TINY),
        "random_labels_cifar": CNNConfig(net=CNN(channels=(16, 16), dense=100, norm="none"), **_RANDOM),
    },
    "resnet18": {
        "quick": ResNet18Config(net=ResNet18(width=8, blocks=(1, 1)), **_DIGITS),
        "tiny_imagenet": ResNet18Config(**_TINY),
    },
    "vit": {
        "quick": ViTConfig(net=ViT(patch=4, width=32, depth=2, heads=4, mlp_ratio=2.0), **_DIGITS),
        "tiny_imagenet": ViTConfig(**_TINY),
    },
}  # fmt: skip
"""By model, then by name; the first of each is the default."""
