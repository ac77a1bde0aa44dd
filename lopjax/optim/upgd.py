"""Utility-based perturbed gradient descent: useful weights are protected, the others are updated and perturbed."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key

from lopjax.optim.checks import Params, as_key, check, check_params, own_copy, transformation
from lopjax.optim.noise import map_with_noise

# Folded into the key, so that the noise is not that of another transformation with the same seed.
_STREAM = 0x0F6D


class UPGDState(NamedTuple):
    r"""State of `upgd`.

    Attributes:
        step: number of updates so far.
        key: the key from which the keys of all steps are derived.
        utility: running average of :math:`-g \theta` without bias correction; a tree like the parameters.
    """

    step: Int[Array, ""]
    key: Key[Array, ""]
    utility: Params


def upgd(
    learning_rate: ArrayLike,
    noise_std: ArrayLike,
    seed: ArrayLike,
    utility_decay: ArrayLike = 0.999,
    weight_decay: ArrayLike = 0.0,
    variant: Literal["paper", "official"] = "paper",
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent with noise, where both are damped for each weight by its utility: a complete optimizer.

    The utility of a weight is the first-order increase of the loss if it were removed. At step t = 1, 2, ..., entry by
    entry except for the maximum :math:`\eta`, which is over all weights of the network:

    .. math::
        u_t = \beta u_{t-1} - (1-\beta)\, g \theta, \quad \hat u = \frac{u_t}{1-\beta^t}, \quad
        \theta \leftarrow (1 - \alpha\lambda)\theta
        - 2\alpha (g + \sigma\xi) \left(1 - \mathrm{sigmoid}(\hat u / \eta)\right)

    With the factor 2 a weight without utility learns at the rate :math:`\alpha`, since sigmoid(0) is 1/2.

    - `variant="paper"`: :math:`\eta = \max \hat u`, so the most useful weight always has the damping
      1 - sigmoid(1) = 0.27.
    - `variant="official"`: :math:`\eta = \max u_t`, without bias correction, while the numerator is corrected: the
        ratio is larger by the factor :math:`1/(1-\beta^t)`, 1,000 at the first step with :math:`\beta = 0.999`, so the
        damping of early steps is all or nothing. The first versions of the code also lack the factor 2.

    If no weight has a positive utility the quotient by :math:`\eta` has the opposite sign, and it is 0/0 if all are 0
    (the published code then produces NaN); here :math:`\eta = 0` gives every weight the utility 0.

    Args:
        learning_rate: :math:`\alpha`, at least 0.
        noise_std: :math:`\sigma`, at least 0, on the scale of gradients.
        seed: an integer or a `jax.random.key` (one for each lane under vmap).
        utility_decay: :math:`\beta` in [0, 1).
        weight_decay: :math:`\lambda`, at least 0, not damped.
        variant: `"paper"` or `"official"`.

    Returns:
        The transformation; `update` needs `params`. Its state is a `UPGDState`.

    Raises:
        ValueError: a concrete argument is out of its range, `variant` is unknown, or parameters are missing or not
            real.

    References:
        Elsayed & Mahmood, *Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning*, arXiv
        2404.00781, algorithm 1 (global utility).
    """
    _check_numbers(learning_rate, noise_std, utility_decay, weight_decay)
    if variant not in ("paper", "official"):
        raise ValueError(f"variant={variant!r}: must be 'paper' or 'official'")
    key = as_key(seed)

    def init(params: Params) -> UPGDState:
        return UPGDState(jnp.zeros((), jnp.int32), own_copy(key), jax.tree.map(_zeros, params))

    def update(updates: Params, state: UPGDState, params: Params | None = None) -> tuple[Params, Any]:
        check_params("upgd", params)
        step = jnp.asarray(optax.safe_increment(state.step))
        utility = jax.tree.map(lambda u, g, p: _average(u, g, p, utility_decay), state.utility, updates, params)
        corrected = jax.tree.map(lambda u: _corrected(u, utility_decay, step), utility)
        largest = _largest(corrected if variant == "paper" else utility)

        def damped(noise: Array, gradient: Array, param: Array, useful: Array) -> Array:
            rate, std, decay, eta = (
                jnp.asarray(x, noise.dtype) for x in (learning_rate, noise_std, weight_decay, largest)
            )
            share = jnp.where(eta == 0, 0, useful / jnp.where(eta == 0, 1, eta))
            return -2 * rate * (gradient + std * noise) * jax.nn.sigmoid(-share) - rate * decay * param

        step_key = jax.random.fold_in(jax.random.fold_in(state.key, _STREAM), state.step)
        return map_with_noise(damped, step_key, updates, params, corrected), UPGDState(step, state.key, utility)

    return transformation(init, update)


def _check_numbers(
    learning_rate: ArrayLike, noise_std: ArrayLike, utility_decay: ArrayLike, weight_decay: ArrayLike
) -> None:
    for name, value in {"learning_rate": learning_rate, "noise_std": noise_std, "weight_decay": weight_decay}.items():
        check(name, value, minimum=0.0)
    check("utility_decay", utility_decay, minimum=0.0, maximum=1.0)
    if not isinstance(utility_decay, Tracer) and np.any(np.asarray(utility_decay) == 1):
        raise ValueError(f"utility_decay={utility_decay!r}: must be below 1, or the utility is never updated")


def _zeros(param: Array) -> Array:
    return jnp.zeros(jnp.shape(param), jnp.promote_types(jnp.result_type(param), jnp.float32))


def _average(utility: Array, gradient: Array, param: Array, decay: ArrayLike) -> Array:
    beta = jnp.asarray(decay, utility.dtype)
    return beta * utility - (1 - beta) * jnp.asarray(gradient, utility.dtype) * jnp.asarray(param, utility.dtype)


def _corrected(utility: Array, decay: ArrayLike, step: Int[Array, ""]) -> Array:
    return utility / (1 - jnp.asarray(decay, utility.dtype) ** step.astype(utility.dtype))


def _largest(tree: Params) -> Float[Array, ""]:
    """The largest entry over all arrays."""
    return jnp.max(
        jnp.stack([jnp.max(leaf).astype(jnp.result_type(*jax.tree.leaves(tree))) for leaf in jax.tree.leaves(tree)])
    )
