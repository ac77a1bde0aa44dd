"""Adam with a separate step count for every weight."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from lopjax.optim.checks import Params, check, check_real, transformation


class AdamPerWeightState(NamedTuple):
    """State of `adam_per_weight`: steps since each weight was last reset (int32), and its two moments."""

    count: Params
    mu: Params
    nu: Params


def adam_per_weight(
    learning_rate: optax.ScalarOrSchedule,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    variant: Literal["paper", "official"] = "paper",
) -> optax.GradientTransformationExtraArgs:
    r"""Adam whose bias correction counts the steps of each weight, so that a reset weight starts like a new one.

    With `optax.adam` a reset clears the moments of a weight but not the count that all weights share: its first updates
    are :math:`(1-\beta_1)/\sqrt{1-\beta_2} \approx 3` times the learning rate for a gradient of constant size, instead
    of 1. Here resets clear the counts, too (all resets in `lopjax.interventions` find them by their structure). Without
    resets it is `optax.adam`.

    - `variant="paper"`: :math:`\hat m / (\sqrt{\hat v} + \epsilon)`, algorithm 1 of Kingma & Ba.
    - `variant="official"`: as in the code of continual backprop, :math:`(1-\beta_2^t)\, m/(\sqrt v + \epsilon)`.
      The correction is not Adam's :math:`\sqrt{1-\beta_2^t}/(1-\beta_1^t)`: a new weight starts at a thousandth of that
      rate and needs about :math:`1/(1-\beta_2)` steps to reach the full rate. (Determined from traces of that code.)

    Args:
        learning_rate: a number or a schedule.
        b1: :math:`\beta_1` in [0, 1).
        b2: :math:`\beta_2` in [0, 1).
        eps: :math:`\epsilon`, at least 0.
        variant: name of the variant.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number out of range, an unknown variant, or parameters that are not real.

    References:
        Kingma & Ba, arXiv 1412.6980; `AdamGnT` of shibhansh/loss-of-plasticity.
    """
    check("b1", b1, 0.0, 1.0, is_open=True)
    check("b2", b2, 0.0, 1.0, is_open=True)
    check("eps", eps, 0.0)
    if variant not in ("paper", "official"):
        raise ValueError(f"variant={variant!r}: must be 'paper' or 'official'")

    def init(params: Params) -> AdamPerWeightState:
        check_real(params)
        count = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.int32), params)
        return AdamPerWeightState(count, optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def direction(count: jax.Array, mu: jax.Array, nu: jax.Array) -> jax.Array:
        # In bfloat16 beta_2 rounds to 1, and the correction would divide by zero.
        dtype = jnp.promote_types(mu.dtype, jnp.float32)
        first, second = ((1 - jnp.asarray(b, dtype) ** count).astype(mu.dtype) for b in (b1, b2))
        if variant == "paper":
            return ((mu / first) / (jnp.sqrt(nu / second) + eps)).astype(mu.dtype)
        return (second * mu / (jnp.sqrt(nu) + eps)).astype(mu.dtype)

    def update(updates: Params, state: AdamPerWeightState, params: Any = None) -> tuple[Params, AdamPerWeightState]:
        count = jax.tree.map(lambda steps: steps + 1, state.count)
        mu = jax.tree.map(lambda m, g: (b1 * m + (1 - b1) * g).astype(m.dtype), state.mu, updates)
        nu = jax.tree.map(lambda v, g: (b2 * v + (1 - b2) * jnp.square(g)).astype(v.dtype), state.nu, updates)
        return jax.tree.map(direction, count, mu, nu), AdamPerWeightState(count, mu, nu)

    return optax.chain(transformation(init, update), optax.scale_by_learning_rate(learning_rate))
