"""What the experiment on generalisation can be asked to do, and the settings it sweeps. Nothing here imports JAX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Setting(NamedTuple):
    """How a network is trained on the first task.

    Attributes:
        decay: weight decay.
        steps: number of training steps.
        scale: factor on the initial weights, biases excepted (they start at 0).
        smoothing: share of the label's probability that is spread over all classes.
    """

    decay: float
    steps: int
    scale: float
    smoothing: float


KNOBS = {"decay": "weight decay", "steps": "steps", "scale": "initial scale", "smoothing": "label smoothing"}
"""Field of `Setting` by field, and what it is called."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    activations: tuple[str, ...] = ("tanh", "relu")
    """Activation of the hidden units."""
    widths: tuple[int, ...] = (16, 16)
    """Units of the hidden layers."""
    samples: int = 256
    """Training examples, all in every step: digits, averaged over 2 x 2 pixels, every feature standardised."""
    label_noise: float = 0.2
    """Fraction of the training labels redrawn at random, so that fitting them all is not the best there is."""
    learning_rate: float = 0.1
    """Of gradient descent with momentum."""
    momentum: float = 0.9
    """Of the heavy ball."""
    decay: float = 0.0
    """Weight decay unless it is swept."""
    steps: int = 500
    """Steps on the first task unless they are swept."""
    scale: float = 1.0
    """Factor on the initial weights unless it is swept."""
    smoothing: float = 0.0
    """Label smoothing unless it is swept."""
    decays: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.06)
    """Weight decays that are tried."""
    lengths: tuple[int, ...] = (60, 125, 250, 1000, 2000)
    """Steps that are tried."""
    scales: tuple[float, ...] = (0.1, 0.3, 0.6, 1.7, 3.0)
    """Factors on the initial weights that are tried."""
    smoothings: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.6)
    """Label smoothings that are tried."""
    next_steps: int = 100
    """On the next task: the same inputs, classes permuted, no decay and no smoothing."""
    seeds: tuple[int, ...] = tuple(range(10))
    """One initial network and one permutation each. The first half chooses settings, the second is reported on."""


PRESETS = {"quick": Config(), "full": Config(widths=(32, 32), seeds=tuple(range(20)))}
"""By name; the first is the default."""


def settings(config: Config) -> dict[tuple[str, int], Setting]:
    """Every setting, by the knob that is turned and its place among the knob's values; place 0 is the default."""
    default = Setting(config.decay, config.steps, config.scale, config.smoothing)
    swept: dict[str, Sequence[float]] = {
        "decay": config.decays,
        "steps": config.lengths,
        "scale": config.scales,
        "smoothing": config.smoothings,
    }
    return {
        (knob, place): default._replace(**{knob: value})
        for knob, values in swept.items()
        for place, value in enumerate((getattr(default, knob), *values))
        if place > 0 or knob == "decay"
    }
