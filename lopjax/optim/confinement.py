"""Transformations that pull parameters back to their initial values or confine them to a manifold."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from lopjax.optim.checks import Params, check, check_params, transformation


class L2InitState(NamedTuple):
    """State of `l2_init`: the initial parameters."""

    initial: Params


def l2_init(
    strength: ArrayLike, variant: Literal["paper", "official"] = "paper"
) -> optax.GradientTransformationExtraArgs:
    r"""Pull the parameters towards their initial values; place it before the optimizer.

    Adds the gradient of a penalty, a sum over parameters. The paper and its authors' code differ by a factor of 2:

    - `variant="paper"`: :math:`\lambda \lVert\theta-\theta_0\rVert^2`, so :math:`2\lambda (\theta-\theta_0)`.
    - `variant="official"`: :math:`\frac\lambda2 \lVert\theta-\theta_0\rVert^2`, so
      :math:`\lambda (\theta-\theta_0)`; published strengths refer to it. The code also exempts norm parameters; use
      `optax.masked` for that here.

    Args:
        strength: :math:`\lambda`, at least 0.
        variant: `"paper"` or `"official"`.

    Returns:
        The transformation; `update` needs `params`. Its state holds a copy of the initial parameters.

    Raises:
        ValueError: a concrete `strength` is negative or not finite, `variant` is unknown, or parameters are
            missing or not real.

    References:
        Kumar, Marklund & Van Roy, *Maintaining Plasticity in Continual Learning via Regenerative Regularization*,
        arXiv 2308.11958.
    """
    check("strength", strength, minimum=0.0)
    if variant not in ("paper", "official"):
        raise ValueError(f"variant={variant!r}: must be 'paper' or 'official'")
    factor = 2 if variant == "paper" else 1

    def init(params: Params) -> L2InitState:
        return L2InitState(initial=jax.tree.map(jnp.array, params))

    def update(updates: Params, state: L2InitState, params: Params | None = None) -> tuple[Params, Any]:
        check_params("l2_init", params)

        def pull(gradient: Array, param: Array, initial: Array) -> Array:
            dtype = jnp.promote_types(jnp.result_type(gradient), jnp.float32)
            gradient, param, initial = (jnp.asarray(x, dtype) for x in (gradient, param, initial))
            return gradient + factor * jnp.asarray(strength, dtype) * (param - initial)

        pulled = jax.tree.map(pull, updates, params, state.initial)
        return optax.tree.cast_like(pulled, updates), state

    return transformation(init, update)


def keep_on_manifold(project: Callable[[Params], Params]) -> optax.GradientTransformationExtraArgs:
    """Project every update onto the tangent space of an affine manifold; place it last in a chain.

    In exact arithmetic most optimizers keep clones equal; in floating point differences between them arise from
    rounding and then grow like any perturbation of a saddle. Projecting the *update* removes what the step has added.

    Inside `optax.masked` and `optax.multi_transform` the arrays assigned to this transformation are projected and the
    others are unchanged: the projectors of cloned and frozen units act array by array. (Those of level sets do not, and
    refuse a subset of the parameters.)

    Args:
        project: linear projector from parameters to parameters, for example `manifold.project`.

    Returns:
        The transformation; it has no state.
    """

    def update(updates: Params, state: optax.EmptyState, params: Params | None = None) -> tuple[Params, Any]:
        del params
        return optax.tree.cast_like(project(updates), updates), state

    return transformation(lambda params: optax.EmptyState(), update)
