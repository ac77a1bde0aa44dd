"""What the bit-flipping experiment can be asked to do: the config and its presets. Nothing here imports JAX."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from experiments.bit_flipping.methods import METHODS
from experiments.kit.grid import Grid

if TYPE_CHECKING:
    MethodName = str
else:
    MethodName = Literal[tuple(METHODS)]
ActivationName = Literal["sigmoid", "tanh", "elu", "relu", "leaky_relu", "swish"]


@dataclass(frozen=True)
class Config:
    """Everything that decides the result. The defaults are those of the published problem."""

    steps: int = 1_000_000
    """Online steps of every lane."""
    record_every: int = 10_000
    """Steps of a bin: one record after each."""
    methods: tuple[MethodName, ...] = ("sgd", "continual_backprop_official", "linear")
    """What to train with, side by side."""
    activations: tuple[ActivationName, ...] = ("relu",)
    """Activations of the hidden layer; every method is run with each."""
    widths: tuple[int, ...] = (5,)
    """Numbers of hidden units; every method is run with each."""
    step_sizes: tuple[float, ...] = (0.01,)
    """Step sizes of SGD or Adam; every method is run with each."""
    seeds: tuple[int, ...] = (0,)
    """One run each, with its own target, inputs and initial weights, the same for all methods."""
    flip: Literal["one", "all"] = "one"
    """What happens every flip_every steps: one slow bit flips (the paper), or all are drawn anew (its code)."""
    threshold: Literal["official", "textbook"] = "official"
    """Threshold of the target's units: from S = (m - sum of weights + bias) / 2, or the number of negative weights."""
    num_inputs: int = 20
    """Bits of an input."""
    num_slow: int = 15
    """How many of the bits are slow."""
    flip_every: int = 10_000
    """Steps between flips."""
    target_units: int = 100
    """Threshold units of the target."""
    beta: float = 0.7
    """Share of its pattern that an input must match for a target unit to fire."""
    grid: Grid = ()
    """Axis of a grid over a number below, each point a lane of the same program: --grid replacement_rate=1e-5,1e-4."""
    l2: float = 1e-3
    """L2: weight decay as in the official code, added to the gradient."""
    l2_init: float = 1e-3
    """L2-init: strength as in its authors' code, a factor on half the squared distance to the initial weights."""
    shrink: float = 1e-4
    """Shrink and perturb: share by which parameters shrink per step."""
    perturb: float = 1e-4
    """Shrink and perturb: standard deviation of the noise per step."""
    upgd_noise: float = 1e-3
    """UPGD: standard deviation of the noise on the gradient."""
    upgd_decay: float = 0.999
    """UPGD: decay of its utility."""
    replacement_rate: float = 1e-4
    """Continual backprop: share of the eligible units that are replaced per step."""
    maturity: int = 100
    """Continual backprop: steps until a unit is eligible."""
    utility_decay: float = 0.99
    """Continual backprop: decay of its traces."""
    percentile: float = 0.99
    """Self-normalised resets: share of a unit's own past silences that a silence must exceed for a reset."""
    redo_threshold: float = 0.1
    """ReDo: largest score of a unit that is reset."""
    clone_tolerance: float = 0.05
    """Clone splitting: relative distance of activations up to which two units count as near."""
    act_every: int = 10_000
    """ReDo and clone splitting: steps between two acts, a multiple of 1,000. They see the inputs of the block of
    1,000 steps that ends, all with the present slow bits."""
    probe_samples: int = 256
    """Random inputs of the fixed batch on which symptoms are measured."""


_THIRTY = tuple(range(30))
_SIX: tuple[ActivationName, ...] = ("sigmoid", "tanh", "elu", "relu", "leaky_relu", "swish")
_REFERENCE = Config(
    steps=400_000, methods=("sgd", "continual_backprop_official", "linear"), seeds=_THIRTY, maturity=10
)  # fmt: skip

PRESETS: dict[str, Config] = {
    "quick": Config(
        steps=300_000, methods=("sgd", "continual_backprop", "fresh", "linear"), seeds=tuple(range(8))
    ),
    "paper": Config(
        steps=5_000_000, record_every=50_000, seeds=_THIRTY,
        methods=tuple(name for name in METHODS if name != "fresh"),
    ),
    "widths": Config(
        steps=1_000_000, record_every=50_000, seeds=_THIRTY, widths=(5, 10, 50, 100),
        methods=("sgd", "continual_backprop"),
    ),
    "official_figure": Config(
        steps=1_000_000, record_every=20_000, methods=("sgd", "adam"), activations=_SIX,
        step_sizes=(0.01, 0.003, 0.001), seeds=tuple(range(100)), flip="all",
    ),
    "reference_one": _REFERENCE,
    "reference_all": Config(**{**_REFERENCE.__dict__, "flip": "all"}),
}  # fmt: skip
"""By name; the first is the default."""
