"""What the experiment on control can be asked for: the config and its presets. Nothing here imports JAX."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from experiments.control.methods import METHODS

if TYPE_CHECKING:
    ProblemName = MethodName = str
else:
    ProblemName = Literal["cartpole", "acrobot", "mountain_car"]
    MethodName = Literal[tuple(METHODS)]


@dataclass(frozen=True)
class ProblemConfig:
    """One environment, its tasks, and PPO on it."""

    drift: Literal["none", "gravity", "link_length", "offset"] = "none"
    """What changes from task to task; task 0 has the environment's own physics."""
    offset: float = 2.0
    """Of the drift of observations: each number's is uniform up to this, either way."""
    restart_normaliser: bool = False
    """Whether every agent's moments of the observations begin anew with every task, of which it is told in this way."""
    num_tasks: int = 1
    """How many tasks."""
    iterations: int = 40
    """Of each task: a batch is collected and learnt from."""
    records_per_task: int = 1
    """Records of a task, equally spaced; a divisor of iterations."""
    horizon: int | None = None
    """Steps after which an episode is truncated; None for gymnax's number."""
    num_envs: int = 16
    """Environments side by side."""
    num_steps: int = 64
    """Steps of each in one batch."""
    epochs: int = 4
    """Times that a batch is gone through."""
    minibatches: int = 4
    """Updates of each time; must divide num_envs x num_steps."""
    learning_rate: float = 1e-3
    """Of Adam."""
    anneal: bool = False
    """Whether the learning rate falls linearly to 0 within every task."""
    discount: float = 0.99
    """Of rewards, a step."""
    gae_decay: float = 0.95
    """Of generalised advantage estimates."""
    clip: float = 0.2
    """Of the ratio of probabilities."""
    entropy: float = 0.0
    """Weight of the entropy."""
    value_weight: float = 0.5
    """Weight of the value's error."""
    scale_rewards: bool = False
    """Whether rewards are divided by the running standard deviation of the discounted return."""
    widths: tuple[int, ...] = (32, 32)
    """Hidden units of each layer, of the policy and of the value."""
    activation: str = "relu"
    """Of the hidden layers."""


@dataclass(frozen=True)
class Config:
    """Everything that decides the result."""

    problems: tuple[ProblemName, ...] = ("cartpole",)
    """Which environments."""
    methods: tuple[MethodName, ...] = tuple(METHODS)
    """Which methods, beside the plain optimizer."""
    fresh: bool = True
    """Whether a new network, normaliser and optimizer for every task is trained beside them."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One run each."""
    cartpole: ProblemConfig = field(default_factory=lambda: _CARTPOLE)
    """Keep a pole upright."""
    acrobot: ProblemConfig = field(default_factory=lambda: _ACROBOT)
    """Swing a double pendulum up."""
    mountain_car: ProblemConfig = field(default_factory=lambda: _MOUNTAIN_CAR)
    """Drive out of a valley with a weak motor."""
    max_gradient_norm: float = 0.5
    """Gradients are shortened to this."""
    episodes: int = 32
    """Of every evaluation, each from a start of its own, with the most probable action."""
    probe_samples: int = 256
    """Observations of the fixed probe, of the random policy in the environment's own physics."""
    l2_init: float = 1e-4
    """Of L2-init: strength of the pull to the initial parameters (half its square is the loss)."""
    noise_scale: float = 0.1
    """Of noise: per entry, over the norm of the gradient array."""
    replacement_rate: float = 1e-4
    """Of continual backprop: units replaced per mature unit and update."""
    maturity: int = 100
    """Of continual backprop, in updates."""
    redo_threshold: float = 0.025
    """Of ReDo."""
    reset_every: int = 400
    """Of ReDo: updates between two resets."""
    percentile: float = 0.99
    """Of self-normalised resets."""
    look_every: int = 100
    """Of the recovery controller: updates between two looks at the probe."""


# Many environments side by side, normalised observations. Learning rates are the best of three (2.5e-4 or 3e-4, 1e-3,
# 3e-3), tried on three seeds of Acrobot and Mountain Car in their own physics with tanh. With ReLU Acrobot stays
# at -500.
_CARTPOLE = ProblemConfig(num_envs=8, num_steps=64, gae_decay=0.9, discount=0.98)
_ACROBOT = ProblemConfig(
    num_envs=16, num_steps=128, gae_decay=0.94, entropy=0.01, scale_rewards=True, learning_rate=3e-3, activation="tanh"
)
_MOUNTAIN_CAR = ProblemConfig(
    num_envs=16, num_steps=128, gae_decay=0.98, scale_rewards=True, learning_rate=3e-3, activation="tanh"
)
_FULL = Config()
_DRIFTING = Config(seeds=tuple(range(10)))


def _stationary(problem: ProblemConfig, iterations: int) -> ProblemConfig:
    """One task, with the activation of published agents and a learning rate that falls."""
    return replace(
        problem, iterations=iterations, records_per_task=10, anneal=True, activation="tanh", learning_rate=3e-3
    )


PRESETS = {
    "quick": replace(
        _FULL,
        methods=("l2_init", "continual_backprop"),
        seeds=(0, 1, 2, 3),
        cartpole=replace(_CARTPOLE, drift="gravity", num_tasks=4, iterations=40),
    ),
    "stationary": replace(
        _FULL,
        problems=("cartpole", "acrobot", "mountain_car"),
        methods=(),
        fresh=False,
        seeds=tuple(range(10)),
        cartpole=_stationary(_CARTPOLE, 200),
        acrobot=_stationary(_ACROBOT, 80),
        mountain_car=_stationary(_MOUNTAIN_CAR, 240),
    ),
    "cartpole_gravity": replace(_DRIFTING, cartpole=replace(_CARTPOLE, drift="gravity", num_tasks=12, iterations=60)),
    "cartpole_offset": replace(_DRIFTING, cartpole=replace(_CARTPOLE, drift="offset", num_tasks=12, iterations=60)),
    "acrobot_link": replace(
        _DRIFTING,
        problems=("acrobot",),
        acrobot=replace(_ACROBOT, drift="link_length", num_tasks=8, iterations=20),
    ),
    "mountain_car_gravity": replace(
        _DRIFTING,
        problems=("mountain_car",),
        mountain_car=replace(_MOUNTAIN_CAR, drift="gravity", num_tasks=10, iterations=30),
    ),
}
"""By name; the first is the default."""
