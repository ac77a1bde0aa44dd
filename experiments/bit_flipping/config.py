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
    """Everything that decides the result. The defaults are the published problem."""

    steps: int = 1_000_000
    """Online steps of every lane."""
    record_every: int = 10_000
    """Steps of a bin: one record after each."""
    methods: tuple[MethodName, ...] = ("sgd", "continual_backprop_official", "linear")
    """What to train with, side by side."""
    activations: tuple[ActivationName, ...] = ("relu",)
    """Of the hidden layer; every method with each."""
    widths: tuple[int, ...] = (5,)
    """Hidden units; every method with each."""
    step_sizes: tuple[float, ...] = (0.01,)
    """Of SGD or Adam; every method with each."""
    seeds: tuple[int, ...] = (0,)
    """One run each: another target, other inputs, another start. All methods of a seed see the same."""
    flip: Literal["one", "all"] = "one"
    """What happens every flip_every steps: one slow bit flips (the paper), or all are drawn anew (its code)."""
    threshold: Literal["official", "textbook"] = "official"
    """Of the target's units: with S = (m - sum of weights + bias) / 2, or the number of negative weights."""
    num_inputs: int = 20
    """Bits of an input."""
    num_slow: int = 15
    """How many of them are slow."""
    flip_every: int = 10_000
    """Steps between flips."""
    target_units: int = 100
    """Threshold units of the target."""
    beta: float = 0.7
    """Share of its pattern that an input must match for a target unit to fire."""
    grid: Grid = ()
    """Axis of a grid over a number below, each point a lane of the same program: --grid replacement_rate=1e-5,1e-4."""
    l2: float = 1e-3
    """Of L2: weight decay of the official code, added to the gradient."""
    l2_init: float = 1e-3
    """Of L2-init: strength by its authors' code, half the squared distance to the start."""
    shrink: float = 1e-4
    """Of shrink and perturb: by which parameters shrink a step."""
    perturb: float = 1e-4
    """Of shrink and perturb: deviation of the noise a step."""
    upgd_noise: float = 1e-3
    """Of UPGD: deviation of the noise on the gradient."""
    upgd_decay: float = 0.999
    """Of UPGD: decay of its utility."""
    replacement_rate: float = 1e-4
    """Of continual backprop: share of the eligible units that are replaced a step."""
    maturity: int = 100
    """Of continual backprop: steps until a unit is eligible."""
    utility_decay: float = 0.99
    """Of continual backprop: decay of its traces."""
    percentile: float = 0.99
    """Of self-normalised resets: share of a unit's own silences that a longer one exceeds."""
    redo_threshold: float = 0.1
    """Of ReDo: largest score of a unit that is reset."""
    clone_tolerance: float = 0.05
    """Of clone splitting: relative distance of activations up to which two units are near."""
    act_every: int = 10_000
    """Of ReDo and clone splitting: steps between two acts, a multiple of 1,000. They see the inputs of the block of
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
"""The first is the default."""
