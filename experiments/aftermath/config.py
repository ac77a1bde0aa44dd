"""What the aftermath experiment can be asked to do: arms, config and presets. Nothing here imports JAX."""

from dataclasses import dataclass, field
from typing import NamedTuple

from experiments.kit.networks import MLP

NEVER = 2**30
"""Steps between two acts of an intervention that does not act."""


class Arm(NamedTuple):
    """What is made of the base network, and how it goes on while the task is the same.

    Attributes:
        label: in tables and figures.
        is_cloned: whether it starts as the clone of the base.
        is_noisy: whether the gradient has noise, of the config's scale.
        is_brief: whether the noise dies away.
        is_kicked: whether all clones are kicked once, at the critical scale of linear theory.
        is_split: whether pairs of clones are split along the way.
        has_base_budget: whether a network drawn anew has trained as long as the base before the others join it.
    """

    label: str
    is_cloned: bool = True
    is_noisy: bool = False
    is_brief: bool = False
    is_kicked: bool = False
    is_split: bool = False
    has_base_budget: bool = False


BASE = "base"
"""The arm of the small network that goes on as it is."""
ARMS: dict[str, Arm] = {
    "trapped": Arm("clone, trapped"),
    "noise": Arm("clone, noise", is_noisy=True),
    "brief_noise": Arm("clone, noise that dies away", is_noisy=True, is_brief=True),
    "critical_kick": Arm("clone, one kick at the critical scale", is_kicked=True),
    "split": Arm("clone, split", is_split=True),
    "scratch": Arm("drawn anew, total budget", is_cloned=False, has_base_budget=True),
    "scratch_short": Arm("drawn anew, budget of the clone", is_cloned=False),
}
"""The networks of twice the size."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    dataset: str = "digits"
    """"digits" or any prepared TFDS image classification set."""
    coarseness: int = 1
    """Side of the squares over which images are averaged; 1 leaves them as they are."""
    label_noise: float = 0.2
    """Fraction of the training labels redrawn at random: a task that is fitted leaves nothing to escape with."""
    net: MLP = field(default_factory=lambda: MLP(widths=(10, 10), activation="tanh", norm="none"))
    """The small network."""
    factor: int = 2
    """Clones of every unit."""
    learning_rate: float = 0.1
    """Of SGD, without momentum, everywhere."""
    batch_size: int = 16
    """Examples a step."""
    base_steps: int = 500
    """Training of the small network before it is cloned."""
    clone_steps: int = 1000
    """Steps from there on the same task."""
    next_steps: int = 500
    """Steps on the next task, by plain SGD: the same images, classes permuted."""
    chunks: int = 5
    """Records of each of the last two phases."""
    noise_scale: float = 0.05
    """Of noise on the gradient: per entry, over the norm of the gradient array."""
    brief_decay: float = 0.99
    """Factor a step on the noise that dies away."""
    kick_radius: float = 0.1
    """Distance between clones, in units of parameters, that the critical kick reaches by half of `kick_steps`."""
    kick_steps: int = 200
    """Steps of linear theory after the critical kick."""
    split_every: int = 20
    """Steps between two splits: of every unit space its nearest pair."""
    seeds: tuple[int, ...] = tuple(range(10))
    """One base network each, and every arm of it."""
    probe_samples: int = 500
    """Examples on which rank, duplicates, R² and sharpness are measured."""


# 192 inputs: a unit's block of the critical kick has one row per input, and its eigenvalues cost the cube of that.
_CIFAR10 = Config(
    dataset="cifar10", coarseness=4, net=MLP(widths=(16, 16), activation="tanh", norm="none"), batch_size=32,
    base_steps=5000, clone_steps=15_000, next_steps=5000,
)  # fmt: skip
PRESETS: dict[str, Config] = {"quick": Config(), "cifar10": _CIFAR10}
"""By name; the first is the default."""
