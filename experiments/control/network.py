"""The network of an agent: a policy and a value, two perceptrons without anything in common."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from lopjax.activations import Activation
from lopjax.model import Model
from lopjax.models import from_linen, recorded
from lopjax.models.labels import tap
from lopjax.models.layers import Dense
from lopjax.models.options import check_options


class ActorCritic(nn.Module):
    """Layer k of either reads `policy_{k-1}` or `value_{k-1}` and writes `policy_k` or `value_k`.

    Attributes:
        sizes: `(unit space, number of units)`: those of the policy, the actions, those of the value, the value.
        activation: its name.
        initialisation: its name.
    """

    sizes: tuple[tuple[str, int], ...]
    activation: str | Activation
    initialisation: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, dropout_rate: object = None) -> jax.Array:
        """`(batch, observation)` to `(batch, actions + 1)`: logits of the actions, then the value."""
        outputs, reads, y = [], "input", x
        for space, size in self.sizes:
            is_last = space in ("actions", "value")
            # What either writes last is a part of the output only: it has no source to check it by.
            source = None if is_last else reads
            y = Dense(reads, space, size, space, source, self.initialisation, name=space)(y)
            if is_last:
                outputs.append(y)
                reads, y = "input", x
            else:
                reads, y = space, tap(self, space, space, self.activation, y)
        return jnp.concatenate(outputs, axis=-1)


@recorded
def actor_critic(
    observations: int, widths: Sequence[int], num_actions: int, activation: str = "relu", init: str = "pytorch"
) -> Model:
    """Policy and value; unit spaces and sites `policy_0`, ..., `value_0`, ...; fixed: `input`, `actions`, `value`.

    Args:
        observations: numbers of an observation.
        widths: units of each hidden layer, of either.
        num_actions: number of actions.
        activation: name of the activation function.
        init: name of the initialisation.

    Returns:
        The model, whose `logits` are those of the actions and, last, the value.

    Raises:
        ValueError: a bad argument; names it, what was given and what is allowed.
    """
    check_options((observations,), num_actions, activation, "none", 0.0, init, "float32", widths=widths)
    sizes = [(f"{part}_{index}", int(width)) for part in ("policy", "value") for index, width in enumerate(widths)]
    depth = len(widths)
    sizes = (*sizes[:depth], ("actions", int(num_actions)), *sizes[depth:], ("value", 1))
    return from_linen(ActorCritic(sizes, activation, init), (int(observations),))
