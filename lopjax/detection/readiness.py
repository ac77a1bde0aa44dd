"""What one step can gain at most: how strong the gradient is, and how far that of a minibatch can be relied on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopjax.arguments.batches import check_leaves
from lopjax.arguments.integers import as_integer
from lopjax.losses import loss_of, mean_cross_entropy
from lopjax.model import Model, Variables, outputs_of

NUM_GROUPS = 10
"""Groups of samples whose gradients differ: their spread is the noise of minibatches."""


class Readiness(NamedTuple):
    """Gradient strength and reliability at one point.

    With an L-smooth loss a step of SGD of the best length lowers it, in the mean over minibatches, by at least
    `strength * reliability / (2 L)`: `L(p) - E L(p - eta g) >= eta |G|^2 - (L/2) eta^2 (|G|^2 + tr S / B)`, largest at
    `eta = reliability / L`. So their product orders points by what a step is sure to gain, if L is the same.

    Attributes:
        strength: `|G|^2`, G the gradient of the mean loss; unbiased, but not below 0.
        reliability: `|G|^2 / (|G|^2 + tr S / B)`, in [0, 1], S the covariance of one sample's gradient.
    """

    strength: Float[Array, ""]
    reliability: Float[Array, ""]


def gradient_readiness(
    model: Model,
    variables: Variables,
    batch: tuple[Any, Any],
    batch_size: int,
    *,
    loss: Callable[[jax.Array, Any], jax.Array] = mean_cross_entropy,
) -> Readiness:
    """Strength and reliability of gradients, from ten groups of a batch in eval mode. Pure; use under jit.

    The gradients of K groups of m samples have mean G and, each, covariance S/m, so that
    `tr S = m/(K-1) sum_k |g_k - G|^2`, and `|G|^2` is too large by `tr S / (K m)`, which is taken off. Groups are drawn
    by a fixed key; samples that are left over are not used.

    Args:
        model: any model.
        variables: its variables.
        batch: `(inputs, labels)`, at least two samples.
        batch_size: B, samples of a training step.
        loss: `(logits, labels) -> scalar`, a mean over samples.

    Raises:
        ValueError: fewer than two samples, a batch size that is not positive, or inputs and labels that do not fit one
            another, the network or the loss.

    References:
        Optimization readiness (strength times reliability): arXiv 2605.09044.
    """
    size = as_integer(batch_size, 1, f"batch_size={batch_size!r}: must be a positive integer")
    check_leaves(*batch)
    num = len(jax.tree.leaves(batch[0])[0])
    if num < 2:
        raise ValueError(f"a batch of {num}: must have at least two samples, or gradients have no spread")
    groups = min(NUM_GROUPS, num)
    m = num // groups
    # A probe may be sorted by class or task; groups of neighbours would differ by more than chance.
    order = jax.random.permutation(jax.random.key(0), num)[: groups * m].reshape(groups, m)
    grouped = jax.tree.map(lambda leaf: jnp.asarray(leaf)[order], batch)

    def gradient(group: tuple[Any, Any]) -> Any:
        def value(params: Any) -> jax.Array:
            output = outputs_of(model, {**variables, "params": params}, group[0], dropout_rate=0.0)
            return loss_of(loss, output.logits, group[1])

        return jax.grad(value)(variables["params"])

    gradients = jax.tree.leaves(jax.lax.map(gradient, grouped))
    gradients = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in gradients]
    # On the scale of the largest entry, so that no square overflows or vanishes; NaN and infinity come through.
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in gradients]))
    gradients = [leaf / jnp.where(largest > 0, largest, 1) for leaf in gradients]
    means = [jnp.mean(leaf, axis=0) for leaf in gradients]
    apart = [leaf - mean for leaf, mean in zip(gradients, means, strict=True)]
    spread = _square(apart) / (groups - 1)
    strength = jnp.maximum(_square(means) - spread / groups, 0)
    total = strength + m * spread / size
    # Where every sample's gradient is 0 there is nothing to rely on; NaN stays NaN.
    reliability = jnp.where(total > 0, strength / jnp.where(total > 0, total, 1), 0 * total)
    return Readiness(strength * jnp.square(largest), reliability)


def _square(leaves: list[jax.Array]) -> jax.Array:
    return jnp.sum(jnp.stack([jnp.sum(jnp.square(leaf)) for leaf in leaves]))
