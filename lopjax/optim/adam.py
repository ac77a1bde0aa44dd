"""Adam with a separate step count for every weight."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from lopjax.optim.checks import Params, check, check_like, keep_dtypes, transformation, widened


class AdamPerWeightState(NamedTuple):
    """State of `adam_per_weight`: steps since each weight was last reset, int32, and its moments, at least float32."""

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
    if not callable(learning_rate):
        check("learning_rate", learning_rate, 0.0)
    check("b1", b1, 0.0, 1.0, is_open=True)
    check("b2", b2, 0.0, 1.0, is_open=True)
    check("eps", eps, 0.0)
    if variant not in ("paper", "official"):
        raise ValueError(f"variant={variant!r}: must be 'paper' or 'official'")

    def init(params: Params) -> AdamPerWeightState:
        count = jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.int32), params)
        zeros = jax.tree.map(jnp.zeros_like, widened(params))
        return AdamPerWeightState(count, zeros, zeros)

    def direction(count: jax.Array, mu: jax.Array, nu: jax.Array) -> jax.Array:
        first, second = (1 - jnp.asarray(b, mu.dtype) ** count for b in (b1, b2))
        small = jnp.asarray(eps, mu.dtype)
        if variant == "paper":
            return (mu / first) / (jnp.sqrt(nu / second) + small)
        return second * mu / (jnp.sqrt(nu) + small)

    def average(b: ArrayLike, old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.asarray(b, old.dtype) * old + jnp.asarray(1 - b, old.dtype) * new

    def update(updates: Params, state: AdamPerWeightState, params: Any = None) -> tuple[Params, AdamPerWeightState]:
        check_like(updates, state.mu)
        # In 16 bits beta_2 rounds to 1, and the square of a small gradient to 0: not only NaN, but steps too large.
        wide = widened(updates)
        count = jax.tree.map(lambda steps: steps + 1, state.count)
        mu = jax.tree.map(lambda m, g: average(b1, m, g), state.mu, wide)
        nu = jax.tree.map(lambda v, g: average(b2, v, jnp.square(g)), state.nu, wide)
        directions = optax.tree.cast_like(jax.tree.map(direction, count, mu, nu), updates)
        return directions, AdamPerWeightState(count, mu, nu)

    rate = keep_dtypes(optax.scale_by_learning_rate(learning_rate))
    return optax.chain(transformation(init, update), rate)
