"""The pieces of proximal policy optimisation, as short pure functions: advantages, the clipped objective, moments."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int


class Experience(NamedTuple):
    """What the loss is given besides the outputs of the network; a leading axis of samples.

    Attributes:
        action: taken, an integer.
        log_prob: log-probability of the action under the policy that took it.
        advantage: advantage of the action, normalised over the whole batch so that the loss is a plain mean over
            samples.
        target: target of the value.
    """

    action: Int[Array, " samples"]
    log_prob: Float[Array, " samples"]
    advantage: Float[Array, " samples"]
    target: Float[Array, " samples"]


def gae(
    rewards: Float[Array, "steps envs"],
    values: Float[Array, "steps envs"],
    next_values: Float[Array, "steps envs"],
    terminated: Bool[Array, "steps envs"],
    truncated: Bool[Array, "steps envs"],
    discount: ArrayLike,
    decay: ArrayLike,
) -> Float[Array, "steps envs"]:
    r"""Generalised advantage estimates.

    .. math:: \delta_t = r_t + \gamma (1 - d_t) V(s'_t) - V(s_t), \qquad
        A_t = \delta_t + \gamma \lambda (1 - e_t) A_{t+1}, \quad A_T = 0

    with :math:`s'_t` the state that step t led to, before any reset; :math:`d_t` whether the task ended there
    (termination), :math:`e_t` whether the episode did, by termination or by a limit of time (truncation). A state
    behind a limit of time has its value, one behind a termination has none. The last step of the batch bootstraps
    from the value of the state that it led to, like every other.

    Args:
        rewards: :math:`r_t`.
        values: :math:`V(s_t)`.
        next_values: :math:`V(s'_t)`.
        terminated: :math:`d_t`.
        truncated: whether a limit of time ended the episode.
        discount: :math:`\gamma`.
        decay: :math:`\lambda`.

    References:
        Schulman et al., arXiv 1506.02438, equation 16; Pardo et al., arXiv 1712.00378, on limits of time.
    """
    gains = rewards + discount * jnp.where(terminated, 0, next_values) - values
    keeps = jnp.where(terminated | truncated, 0, discount * decay).astype(gains.dtype)

    def back(later: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        advantage = now[0] + now[1] * later
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(gains[0]), (gains, keeps), reverse=True)[1]


def log_policy(outputs: Float[Array, "samples outputs"]) -> Float[Array, "samples actions"]:
    """Logarithms of the probabilities of the actions: all outputs but the last, which is the value."""
    return jax.nn.log_softmax(outputs[..., :-1])


def of_action(log_probs: Float[Array, "samples actions"], action: Int[Array, " samples"]) -> Float[Array, " samples"]:
    """That of the action of every sample."""
    return jnp.take_along_axis(log_probs, action[..., None], axis=-1)[..., 0]


def clipped_surrogate(
    ratio: Float[Array, " samples"], advantage: Float[Array, " samples"], clip: ArrayLike
) -> Float[Array, " samples"]:
    r"""The objective :math:`\min(\rho A, \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon) A)`, to be maximised.

    References:
        Schulman et al., arXiv 1707.06347, equation 7.
    """
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def entropy(log_probs: Float[Array, "samples actions"]) -> Float[Array, " samples"]:
    """Of the policy at every sample, in nats."""
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def ppo_loss(clip: float, value_weight: float, entropy_weight: float) -> Callable[[jax.Array, Experience], jax.Array]:
    """The loss `(outputs, experience) -> scalar`, a mean over samples: arXiv 1707.06347, equation 9, with a minus sign.

    The error of the value is half its square and is not clipped.
    """

    def loss(outputs: jax.Array, seen: Experience) -> jax.Array:
        log_probs = log_policy(outputs)
        ratio = jnp.exp(of_action(log_probs, seen.action) - seen.log_prob)
        error = (outputs[..., -1] - seen.target) ** 2 / 2
        gain = clipped_surrogate(ratio, seen.advantage, clip)
        return jnp.mean(value_weight * error - gain - entropy_weight * entropy(log_probs))

    return loss


class Moments(NamedTuple):
    """Running mean and variance of vectors; all samples count alike.

    Attributes:
        count: samples so far.
        mean: their mean.
        squares: sum of the squared distances from the mean.
    """

    count: Float[Array, ""]
    mean: Float[Array, "*shape"]
    squares: Float[Array, "*shape"]


def start_moments(shape: tuple[int, ...] = ()) -> Moments:
    """Of no samples."""
    return Moments(jnp.zeros(()), jnp.zeros(shape), jnp.zeros(shape))


def update_moments(moments: Moments, samples: Float[Array, "samples *shape"]) -> Moments:
    """With further samples: Welford's recursion for a batch.

    References:
        Chan, Golub & LeVeque, *Updating formulae and a pairwise algorithm for computing sample variances* (1979).
    """
    own, number = jnp.mean(samples, axis=0), samples.shape[0]
    count = moments.count + number
    away = own - moments.mean
    between = away**2 * moments.count * number / count
    squares = moments.squares + jnp.sum((samples - own) ** 2, axis=0) + between
    return Moments(count, moments.mean + away * number / count, squares)


def deviation(moments: Moments) -> Float[Array, "*shape"]:
    """Standard deviation with 1/N; 1 where nothing has varied yet."""
    variance = moments.squares / jnp.maximum(moments.count, 1)
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 1)


def normalised(
    moments: Moments, samples: Float[Array, "*batch shape"], limit: float = 10.0
) -> Float[Array, "*batch shape"]:
    """Less the mean, over the standard deviation, cut at a limit."""
    return jnp.clip((samples - moments.mean) / deviation(moments), -limit, limit)
