"""What a run of the experiment on control is built from, checked before anything is compiled."""

import math
from dataclasses import fields
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.control.config import Config, ProblemConfig
from experiments.control.environments import World, make_world
from experiments.control.methods import METHODS, groups_of
from experiments.control.network import actor_critic
from experiments.control.ppo import (
    Experience,
    gae,
    normalised,
    ppo_loss,
    start_moments,
    update_moments,
)
from experiments.kit.experiment import NO_RESOURCES, Resources
from experiments.kit.methods import Group, numbers_of, numbers_read
from lopjax.model import Model
from lopjax.training import check_lanes

NUMBERS = ("max_gradient_norm", *numbers_read(METHODS))


class Bench(NamedTuple):
    """One environment and all that is needed to learn on it.

    Attributes:
        name: name of the environment.
        problem: its sizes.
        world: its functions.
        model: policy and value.
        loss: `(outputs, experience) -> scalar`.
        probe: fixed inputs of the network and what the loss needs of them.
        groups: lanes that share a program.
    """

    name: str
    problem: ProblemConfig
    world: World
    model: Model
    loss: Any
    probe: tuple[jax.Array, Experience]
    groups: tuple[Group, ...]


class Setup(NamedTuple):
    """Config and everything built from it before compilation."""

    config: Config
    benches: dict[str, Bench]
    mesh: Any = None


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config and build environments and models; no training step is compiled.

    Raises:
        ImportError: gymnax is not installed.
        ValueError: a field out of range; the message names it, its value and what is allowed.
    """
    for name in ("problems", "seeds"):
        values = getattr(config, name)
        _check(name, values, len(set(values)) == len(values) > 0, "distinct, at least one")
    _check("methods", config.methods, len(set(config.methods)) == len(config.methods), "distinct")
    for name in ("episodes", "probe_samples", "reset_every", "look_every"):
        _check(name, getattr(config, name), getattr(config, name) >= 1, "at least 1")
    is_norm = 0 < config.max_gradient_norm < math.inf
    _check("max_gradient_norm", config.max_gradient_norm, is_norm, "positive and finite")
    for name in ("l2_init", "noise_scale", "replacement_rate", "maturity", "redo_threshold"):
        value = getattr(config, name)
        _check(name, value, 0 <= value < math.inf, "non-negative and finite")
    _check("percentile", config.percentile, 0 <= config.percentile < 1, "in [0, 1)")
    check_lanes(len(config.seeds), resources.mesh)
    return Setup(config, {name: make_bench(name, config) for name in config.problems}, resources.mesh)


def make_bench(name: str, config: Config) -> Bench:
    """One environment.

    Raises:
        ImportError: gymnax is not installed.
        ValueError: a field out of range.
    """
    problem = getattr(config, name)
    _check_problem(name, problem)
    world = make_world(name, problem)
    numbers = {**numbers_of(config, NUMBERS), "learning_rate": problem.learning_rate}
    return Bench(
        name=name,
        problem=problem,
        world=world,
        model=actor_critic(world.observations, problem.widths, world.num_actions, problem.activation),
        loss=ppo_loss(problem.clip, problem.value_weight, problem.entropy),
        probe=jax.jit(lambda: make_probe(world, problem, config.probe_samples))(),
        groups=groups_of(config.methods, config.seeds, numbers, config.fresh),
    )


def make_probe(world: World, problem: ProblemConfig, samples: int) -> tuple[jax.Array, Experience]:
    """Inputs of the network that stay the same through a run, of the uniformly random policy in task 0.

    Its observations are normalised by their own moments, whatever the normaliser of an agent does, so that what is
    seen on them are changes of the network. Advantages are discounted returns, normalised; targets are the returns.
    """
    reset_key, *keys = jax.random.split(jax.random.key(0), 3)
    physics = world.physics(reset_key, jnp.int32(0))
    steps = -(-samples // problem.num_envs)
    starts = jax.random.split(reset_key, problem.num_envs)
    observation, state = jax.vmap(world.reset, in_axes=(0, None))(starts, physics)
    actions = jax.random.randint(keys[0], (steps, problem.num_envs), 0, world.num_actions)
    step_keys = jax.random.split(keys[1], (steps, problem.num_envs))

    def act(carry: Any, drawn: tuple[jax.Array, jax.Array]) -> Any:
        move = jax.vmap(world.step, in_axes=(0, 0, 0, None))(drawn[1], carry[1], drawn[0], physics)
        return (move.observation, move.state), (carry[0], move)

    _, (seen, moves) = jax.lax.scan(act, (observation, state), (actions, step_keys))
    zeros = jnp.zeros_like(moves.reward)
    returns = gae(moves.reward, zeros, zeros, moves.terminated, moves.truncated, problem.discount, 1.0)
    flat = lambda array: array.reshape(-1, *array.shape[2:])[:samples]  # noqa: E731
    inputs, returns = flat(seen), flat(returns)
    advantage = normalised(update_moments(start_moments(), returns), returns)
    log_prob = jnp.full(samples, -math.log(world.num_actions))
    return normalised(update_moments(start_moments((world.observations,)), inputs), inputs), Experience(
        flat(actions), log_prob.astype(returns.dtype), advantage, returns
    )


def _check_problem(name: str, problem: ProblemConfig) -> None:
    for one in fields(problem):
        value = getattr(problem, one.name)
        if isinstance(value, int) and not isinstance(value, bool):
            _check(f"{name}.{one.name}", value, value >= 1, "at least 1")
    for field in ("discount", "gae_decay"):
        value = getattr(problem, field)
        _check(f"{name}.{field}", value, 0 <= value <= 1, "in [0, 1]")
    rate = problem.learning_rate
    _check(f"{name}.learning_rate", rate, 0 < rate < math.inf, "positive and finite")
    for field in ("clip", "entropy", "value_weight", "offset"):
        value = getattr(problem, field)
        _check(f"{name}.{field}", value, 0 <= value < math.inf, "finite and at least 0")
    every, size = problem.records_per_task, problem.num_envs * problem.num_steps
    _check(f"{name}.records_per_task", every, problem.iterations % every == 0, f"a divisor of {problem.iterations}")
    _check(f"{name}.minibatches", problem.minibatches, size % problem.minibatches == 0, f"a divisor of {size}")


def _check(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value}: must be {allowed}")
