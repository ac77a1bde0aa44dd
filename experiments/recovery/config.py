"""What the recovery experiment can be asked to do: arms, config and presets. Nothing here imports JAX."""

from dataclasses import dataclass, field
from typing import NamedTuple

from experiments.remedies.config import StreamConfig


class Arm(NamedTuple):
    """How a network goes on when the stream of tasks is over.

    Attributes:
        label: in tables and figures.
        is_old: whether it comes from the stream; else it is drawn anew.
        method: row of `experiments.remedies.methods.METHODS` that treats it, with its tuned setting; None for none.
        has_total_budget: whether a network drawn anew has trained on the task for as long as the others on the stream.
    """

    label: str
    is_old: bool = True
    method: str | None = None
    has_total_budget: bool = False


UNTREATED, SCRATCH, SCRATCH_SHORT = "untreated", "scratch", "scratch_short"
ARMS: dict[str, Arm] = {
    UNTREATED: Arm("after the stream, untreated"),
    "recovery": Arm("after the stream, recovery controller", method="recovery"),
    "noise": Arm("after the stream, noise that stays", method="noise"),
    "redo": Arm("after the stream, ReDo", method="redo"),
    SCRATCH: Arm("drawn anew, total budget", is_old=False, has_total_budget=True),
    SCRATCH_SHORT: Arm("drawn anew, budget of the recovery", is_old=False),
}
"""By name."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    dataset: str = "digits"
    """"digits" or any prepared TFDS image classification set."""
    label_noise: float = 0.2
    """Fraction of the training labels of the task that are redrawn at random."""
    stream: StreamConfig = field(default_factory=lambda: StreamConfig(30, 400, 16, 0.003, (32, 32), 1, 160))
    """Random labels on digits, as in `experiments.remedies`, and the ReLU network; Adam at its rate everywhere."""
    task_steps: int = 2000
    """Steps on the task: the budget of the recovery."""
    next_steps: int = 1000
    """Steps on the next task, the same images, classes permuted, by plain Adam for all."""
    chunks: int = 5
    """Records of each of the two."""
    recovery_setting: int = 0
    """Which of its settings in `experiments.remedies` the controller has: thresholds at half, a cool-down of 100."""
    noise_setting: int = 2
    """Likewise of noise on the gradient: the one that tuning chose on this stream."""
    redo_setting: int = 2
    """Likewise of ReDo."""
    seeds: tuple[int, ...] = tuple(range(10))
    """One network from the stream each, and every arm of it."""
    probe_samples: int = 500
    """Training examples of the task on which rank, distinct units and sharpness are measured."""


PRESETS: dict[str, Config] = {"quick": Config()}
"""By name."""
