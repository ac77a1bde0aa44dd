"""PPO in one file of plain PyTorch with gymnasium's vector environments, written for `benchmarks.control`.

The same networks, batch, updates and normalisation of observations as `experiments.control`; a Python loop over steps.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import nn


def perceptron(reads: int, widths: tuple[int, ...], writes: int) -> nn.Module:
    """Dense layers with ReLU between them."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(reads, width), nn.ReLU()]
        reads = width
    return nn.Sequential(*layers, nn.Linear(reads, writes))


class Normaliser:
    """Running mean and variance of observations."""

    def __init__(self, size: int) -> None:
        self.count, self.mean, self.squares = 0.0, np.zeros(size), np.zeros(size)

    def update(self, samples: np.ndarray) -> None:
        """Update with another batch."""
        own, number = samples.mean(axis=0), len(samples)
        away, count = own - self.mean, self.count + number
        self.squares += ((samples - own) ** 2).sum(axis=0) + away**2 * self.count * number / count
        self.mean, self.count = self.mean + away * number / count, count

    def __call__(self, samples: np.ndarray) -> torch.Tensor:
        """Subtract the mean and divide by the standard deviation."""
        scale = np.sqrt(self.squares / max(self.count, 1)) + (self.squares == 0)
        return torch.as_tensor(np.clip((samples - self.mean) / scale, -10, 10), dtype=torch.float32)


def make_iteration(name: str, problem: Any, seed: int = 0) -> Callable[[], float]:
    """A function that collects one batch, learns from it, and returns the mean reward per step.

    Args:
        name: name of the environment in gymnasium.
        problem: an `experiments.control.config.ProblemConfig`.
        seed: seed of everything random.
    """
    torch.manual_seed(seed)
    make = [lambda: gymnasium.make(name)] * problem.num_envs
    envs = gymnasium.vector.SyncVectorEnv(make, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)
    size, actions = envs.single_observation_space.shape[0], int(envs.single_action_space.n)
    policy, value = perceptron(size, problem.widths, actions), perceptron(size, problem.widths, 1)
    parameters = [*policy.parameters(), *value.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=problem.learning_rate, eps=1e-5)
    normaliser, observation = Normaliser(size), envs.reset(seed=seed)[0]
    shape = problem.num_steps, problem.num_envs

    def iteration() -> float:
        nonlocal observation
        seen, finals = np.zeros((*shape, size)), np.zeros((*shape, size))
        rewards, terminated, ended = np.zeros(shape), np.zeros(shape, bool), np.zeros(shape, bool)
        chosen = torch.zeros(shape, dtype=torch.int64)
        for step in range(problem.num_steps):
            seen[step] = observation
            with torch.no_grad():
                logits = policy(normaliser(observation))
                chosen[step] = torch.distributions.Categorical(logits=logits).sample()
            observation, rewards[step], terminated[step], truncated, info = envs.step(chosen[step].numpy())
            finals[step], ended[step] = observation, terminated[step] | truncated
            for env in np.flatnonzero(ended[step]):
                finals[step, env] = info["final_obs"][env]
        inputs, nexts = normaliser(seen), normaliser(finals)
        normaliser.update(seen.reshape(-1, size))
        with torch.no_grad():
            values, next_values = value(inputs)[..., 0].numpy(), value(nexts)[..., 0].numpy()
            log_probs = torch.distributions.Categorical(logits=policy(inputs)).log_prob(chosen)
        gains = rewards + problem.discount * ~terminated * next_values - values
        advantages, last = np.zeros(shape), np.zeros(problem.num_envs)
        for step in reversed(range(problem.num_steps)):
            last = gains[step] + problem.discount * problem.gae_decay * ~ended[step] * last
            advantages[step] = last
        targets = torch.as_tensor((advantages + values).reshape(-1), dtype=torch.float32)
        normed = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        normed = torch.as_tensor(normed.reshape(-1), dtype=torch.float32)
        improve(inputs.reshape(-1, size), chosen.reshape(-1), log_probs.reshape(-1), normed, targets)
        return float(rewards.mean())

    def improve(inputs: Any, action: Any, log_prob: Any, advantage: Any, target: Any) -> None:
        for _ in range(problem.epochs):
            for order in torch.randperm(len(inputs)).chunk(problem.minibatches):
                now = torch.distributions.Categorical(logits=policy(inputs[order]))
                ratio = (now.log_prob(action[order]) - log_prob[order]).exp()
                clipped = ratio.clamp(1 - problem.clip, 1 + problem.clip)
                gain = torch.minimum(ratio * advantage[order], clipped * advantage[order])
                error = (value(inputs[order])[:, 0] - target[order]) ** 2 / 2
                loss = (problem.value_weight * error - gain - problem.entropy * now.entropy()).mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()

    return iteration
