"""What the formation experiment can be asked to do. Nothing here imports JAX."""

from dataclasses import dataclass

STREAMS = ("fixed labels", "permuted labels")
"""What happens to the labels while clones may form."""
ARMS = {"as_it_is": "as it is", "free_kick": "after a free kick", "drawn_anew": "drawn anew"}
"""How a network meets the next task, by name: the words of tables and figures."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    activations: tuple[str, ...] = ("tanh", "gelu")
    """Activation of the hidden units; a name that `lopjax.models.mlp` knows."""
    width: int = 16
    """Hidden units."""
    samples: int = 256
    """Training examples, all in every step: digits, averaged over 2 x 2 pixels, every feature standardised."""
    decays: tuple[float, ...] = (0.0, 0.03, 0.06, 0.1, 0.16, 0.2)
    """Weight decay: added to the loss is half of it times the squared norm of all parameters, biases included."""
    learning_rate: float = 0.3
    """Of gradient descent with momentum."""
    momentum: float = 0.95
    """Of the heavy ball."""
    steps: int = 4000
    """While clones may form."""
    period: int = 500
    """Steps between two permutations of the classes, where they are permuted."""
    next_steps: int = 100
    """On the next task: the same inputs, classes permuted once more, no decay."""
    kick: float = 0.5
    """Standard deviation of the free kick, over the root mean square of the outgoing weights."""
    tolerance: float = 0.05
    """Units are one if their activations differ by at most this share of the larger; a unit has vanished if it is this
    share of the largest unit or less."""
    predicted_seeds: int = 0
    """Seeds whose clusters are judged by their blocks, from the first on. Compiles for minutes: each number of units is
    another network."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One initial network and one sequence of permutations each."""


_FULL = Config(
    activations=("tanh", "gelu", "relu"), decays=(0.0, 0.01, 0.03, 0.06, 0.1, 0.13, 0.16, 0.2), steps=8000,
    predicted_seeds=2, seeds=tuple(range(8)),
)  # fmt: skip
PRESETS = {"quick": Config(), "full": _FULL}
"""By name; the first is the default."""
