"""The options of the conditions experiment, and the conditions themselves. Nothing here imports JAX."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Point = Literal["random", "critical", "fitted", "relabelled", "dead"]


class Condition(NamedTuple):
    """One row of the table.

    Attributes:
        network: its activation, and its norm if it has one: `mlp tanh layer norm`.
        loss: loss of the outputs.
        outputs: how many outputs there are; for cross-entropy, how many classes.
        point: where on the loss surface: see `networks.place`.
        decay: weight decay of the clones; above 0 the verdict is whether they attract.
        predicted: the verdict that a theorem gives for it; empty where theory is silent.
        theorem: the theorem, in words.
    """

    network: str
    loss: Literal["cross-entropy", "squared error"]
    outputs: int
    point: Point
    predicted: str = ""
    theorem: str = ""
    decay: float = 0.0

    @property
    def name(self) -> str:
        """Its name in records and tables."""
        decay = f", decay {self.decay:g}" if self.decay else ""
        outputs = f"{self.outputs} output{'s' if self.outputs > 1 else ''}"
        return f"{self.network}, {self.loss}, {outputs}, {self.point}{decay}"


_COUPLED = "B_j is not 0, and the outgoing block is"
_WIDE = "at a critical point rank B_j <= {}: generically not 0"
_NARROW = "B_j = 0 at a critical point; the sign of A_j decides, which no theorem gives"
_FITTED = "no residual: every term of M_j is 0"
_ANY = "what clones send can change freely in any architecture: a zero block, and B_j is not 0"
_DECAY = "attracts where decay + min lambda_min(M_j) > 0 there; its sign is computed, no theorem gives it"
_HOMOGENEOUS = "M_j v = -decay v, v the weights of the unit: no attraction unless all units vanish (v = 0)"

CONDITIONS: tuple[Condition, ...] = (
    Condition("mlp tanh", "cross-entropy", 3, "random", "SADDLE", _COUPLED),
    Condition("mlp gelu", "cross-entropy", 3, "random", "SADDLE", _COUPLED),
    Condition("mlp relu", "cross-entropy", 3, "random", "SADDLE", f"{_COUPLED}; A_j = 0: pairs of signs"),
    Condition("mlp tanh", "squared error", 3, "random", "SADDLE", _COUPLED),
    Condition("mlp tanh", "squared error", 1, "random", "SADDLE", f"{_COUPLED}, away from critical points, too"),
    Condition("mlp tanh", "squared error", 1, "critical", "", _NARROW),
    Condition("mlp tanh", "squared error", 2, "critical", "SADDLE", _WIDE.format("outputs - 1 = 1")),
    Condition("mlp tanh", "cross-entropy", 2, "critical", "", _NARROW),
    Condition("mlp tanh", "cross-entropy", 3, "critical", "SADDLE", _WIDE.format("classes - 2 = 1")),
    Condition("mlp tanh", "squared error", 3, "fitted", "NEUTRAL", _FITTED),
    Condition("mlp tanh", "squared error", 3, "relabelled", "SADDLE", f"{_COUPLED}: residuals are back"),
    Condition("mlp relu", "squared error", 3, "dead", "NEUTRAL", "dead units have no gradient and no curvature"),
    Condition("mlp tanh batch norm", "cross-entropy", 3, "random", "SADDLE", _COUPLED),
    Condition("mlp tanh layer norm", "cross-entropy", 3, "random", "SADDLE", _COUPLED),
    Condition("resnet gelu layer norm", "cross-entropy", 3, "random", "SADDLE", _ANY),
    Condition("vit gelu layer norm", "cross-entropy", 3, "random", "SADDLE", _ANY),
    Condition("mlp tanh", "cross-entropy", 3, "critical", "", _DECAY, 0.01),
    Condition("mlp tanh", "cross-entropy", 3, "critical", "", _DECAY, 0.1),
    Condition("mlp tanh", "cross-entropy", 3, "critical", "", _DECAY, 0.3),
    Condition("mlp relu", "cross-entropy", 3, "critical", "", _HOMOGENEOUS, 0.1),
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    seeds: tuple[int, ...] = tuple(range(20))
    """Seeds, one random network and data set each."""
    factor: int = 2
    """Clones of every unit."""
    samples: int = 24
    """Examples in a data set."""


PRESETS = {"quick": Config()}
