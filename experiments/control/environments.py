"""The environments of gymnax, with physics that change from task to task.

gymnax 1.0.1 resets an episode by itself and says apart whether it was terminated or truncated; what the last step led
to is in `final_observation`. Its parameters are an argument of every step, so a task is a set of parameters.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from experiments.control.config import ProblemConfig

NAMES = {"cartpole": "CartPole-v1", "acrobot": "Acrobot-v1", "mountain_car": "MountainCar-v0"}
LEVELS = {"cartpole": 475.0, "acrobot": -100.0, "mountain_car": -110.0}
"""Mean returns of an episode at which each is taken to be solved, with its own physics."""


class Drift(NamedTuple):
    """A parameter of gymnax that changes, and between what; drawn from the logarithmic uniform law."""

    parameter: str
    low: float
    high: float


DRIFTS = {
    ("cartpole", "gravity"): Drift("gravity", 0.98, 98.0),
    # The length of the second link enters nothing, in gymnasium neither.
    ("acrobot", "link_length"): Drift("link_length_1", 0.5, 2.0),
    ("mountain_car", "gravity"): Drift("gravity", 0.0015, 0.0035),
}


class Physics(NamedTuple):
    """What a task is.

    Attributes:
        params: parameters of the gymnax environment.
        offset: added to every observation.
    """

    params: Any
    offset: Float[Array, " observation"]


class Move(NamedTuple):
    """What one step of one environment leads to.

    Attributes:
        observation: what the agent sees next; of a new episode if this one has ended.
        state: likewise.
        reward: reward of the step.
        terminated: whether the task ended: nothing is to be gained behind it.
        truncated: whether a limit of time ended the episode.
        final: observation of the state that the step led to, before any reset.
    """

    observation: Float[Array, " observation"]
    state: Any
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    truncated: Bool[Array, ""]
    final: Float[Array, " observation"]


class World(NamedTuple):
    """An environment and its tasks.

    Attributes:
        physics: `(key, task) -> Physics`; task 0 has the environment's own parameters.
        reset: `(key, physics) -> (observation, state)`.
        step: `(key, state, action, physics) -> Move`.
        observations: numbers of an observation.
        num_actions: number of actions.
        horizon: steps after which an episode is truncated.
    """

    physics: Callable[[jax.Array, Int[Array, ""]], Physics]
    reset: Callable[[jax.Array, Physics], tuple[jax.Array, Any]]
    step: Callable[[jax.Array, Any, jax.Array, Physics], Move]
    observations: int
    num_actions: int
    horizon: int


def make_world(name: str, problem: ProblemConfig) -> World:
    """An environment of gymnax.

    Raises:
        ImportError: gymnax is not installed.
        ValueError: an environment without such a drift.
    """
    if find_spec("gymnax") is None:
        raise ImportError('gymnax is not installed: pip install -e ".[rl]" has it')
    import gymnax  # pyright: ignore[reportMissingImports]

    if problem.drift not in ("none", "offset") and (name, problem.drift) not in DRIFTS:
        known = ["none", "offset", *(drift for own, drift in DRIFTS if own == name)]
        raise ValueError(f"{name}.drift={problem.drift!r}: must be one of {known}")
    env, params = gymnax.make(NAMES[name])
    horizon = params.max_steps_in_episode if problem.horizon is None else problem.horizon
    params = params.replace(max_steps_in_episode=horizon)
    size = env.obs_shape[0] if hasattr(env, "obs_shape") else 2

    def physics(key: jax.Array, task: Int[Array, ""]) -> Physics:
        changed, offset = drawn(name, problem, params, size, jax.random.fold_in(key, task))
        own = Physics(params, jnp.zeros(size))
        return jax.tree.map(lambda new, old: jnp.where(task == 0, old, new), Physics(changed, offset), own)

    def reset(key: jax.Array, physics: Physics) -> tuple[jax.Array, Any]:
        observation, state = env.reset(key, physics.params)
        return observation + physics.offset, _strong(state)

    def step(key: jax.Array, state: Any, action: jax.Array, physics: Physics) -> Move:
        observation, state, reward, terminated, truncated, info = env.step(key, state, action, physics.params)
        # At the limit of time both may hold: then it is a termination.
        truncated = truncated & ~terminated
        final = info["final_observation"] + physics.offset
        return Move(observation + physics.offset, _strong(state), reward, terminated, truncated, final)

    return World(physics, reset, step, size, env.num_actions, horizon)


def drawn(name: str, problem: ProblemConfig, params: Any, size: int, key: jax.Array) -> tuple[Any, jax.Array]:
    """Parameters of gymnax and the offset of one task, decided by its key."""
    offset = jnp.zeros(size)
    if problem.drift == "none":
        return params, offset
    if problem.drift == "offset":
        return params, jax.random.uniform(key, (size,), minval=-problem.offset, maxval=problem.offset)
    drift = DRIFTS[name, problem.drift]
    share = jax.random.uniform(key)
    return params.replace(**{drift.parameter: drift.low * (drift.high / drift.low) ** share}), offset


def _strong(tree: Any) -> Any:
    """Without weak types, which a scan would not carry: gymnax begins to count time with a Python integer."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, jnp.result_type(leaf)), tree)
