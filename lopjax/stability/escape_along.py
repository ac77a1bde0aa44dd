"""Escape while the network still moves along the manifold: the curvature is that of the moving point."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopjax.arguments.numbers import takes_numbers
from lopjax.arguments.promotion import standard_promotion
from lopjax.curvature import check_same_tree
from lopjax.curvature.products import Loss, Params
from lopjax.manifolds import Manifold, tree_norm


@takes_numbers(params=None, kick=None)
@standard_promotion()
def escape_time_along(
    loss: Loss,
    params: Params,
    manifold: Manifold,
    kick: Params,
    radius: float,
    learning_rate: float,
    max_steps: int = 10_000,
) -> Float[Array, ""]:
    """Steps that a kick takes to reach a distance while gradient descent moves along an affine manifold.

    Away from critical points the normal Hessian changes along the way, so no single eigenvalue gives the time. Here the
    point follows `theta <- theta - eta P_T grad L(theta)` and the deviation v `<- (I - eta P_N H(theta)) v`, whose
    length grows by `d ln|v| / dt = -eta v'H(theta) v / |v|²` per step to first order: the time integral of the
    curvature along v. At a critical point it agrees with `escape_time`. Linear in the kick: its length may be far below
    rounding.

    Args:
        loss: `params -> scalar`, a mean over samples.
        params: the point on the manifold from which the kick leaves.
        manifold: an affine manifold through it that gradient descent does not leave (cloned or frozen units).
        kick: a tree like the parameters; its normal part counts.
        radius: R, in units of parameters, small enough for the linear theory.
        learning_rate: eta.
        max_steps: steps to follow; each costs one Hessian-vector product.

    Returns:
        A number of steps, interpolated between two. 0 if the kick starts at the radius or beyond; infinite if it does
        not reach it within `max_steps`; NaN if the run diverges first.

    Raises:
        ValueError: a kick that does not match the parameters or has no normal part; a manifold that is not known to be
            affine; a radius, learning rate or number of steps that is not positive.

    Example:
        >>> line = Manifold(jnp.zeros(2), lambda vector: vector * jnp.array([1.0, 0.0]), is_affine=True)
        >>> loss = lambda p: p[0] - 0.5 * p[1] ** 2
        >>> round(float(escape_time_along(loss, jnp.zeros(2), line, jnp.array([0.0, 1e-3]), 0.1, 0.1, 100)), 1)
        48.3
    """
    if not (radius > 0 and learning_rate > 0 and max_steps >= 1):
        raise ValueError(
            f"radius={radius}, learning_rate={learning_rate}, max_steps={max_steps}: all three must be positive"
        )
    if manifold.is_affine is not True:
        raise ValueError(
            "the manifold is not known to be affine: the normal directions of a curved one (a level set) turn "
            "along the way; for one of your own pass Manifold(..., is_affine=True)"
        )
    check_same_tree(params, manifold.origin, "manifold.origin")
    check_same_tree(params, kick, "kick")
    deviation = _leave(manifold, kick)
    size = tree_norm(deviation)
    if not bool(size > 0):
        raise ValueError(
            "the kick has no component normal to the manifold, so nothing can grow: give another, of finite numbers"
        )
    deviation = jax.tree.map(lambda leaf: leaf / size.astype(leaf.dtype), deviation)
    growth = _growth(loss, params, manifold, deviation, learning_rate, max_steps)
    logs = jnp.log(size) + jnp.concatenate([jnp.zeros(1, growth.dtype), jnp.cumsum(growth)])
    return _first_crossing(logs, jnp.log(jnp.asarray(radius, logs.dtype)))


def _leave(manifold: Manifold, vector: Params) -> Params:
    return jax.tree.map(jnp.subtract, vector, manifold.project(vector))


def _growth(loss, params, manifold, deviation, learning_rate, max_steps) -> Float[Array, "steps"]:
    """`ln(|v_(t+1)| / |v_t|)` of every step, renormalising the deviation.

    Args:
        loss: `params -> scalar`.
        params: start of the point that moves along the manifold.
        manifold: the manifold.
        deviation: start of the deviation, normal to it, of length 1.
        learning_rate: eta.
        max_steps: number of steps.
    """

    def step(state: tuple[Params, Params], _: None):
        point, vector = state
        # One pass gives both the gradient, which moves the point, and the Hessian product, which moves the deviation.
        gradient, product = jax.jvp(jax.grad(loss), (point,), (vector,))
        descend = partial(jax.tree.map, lambda leaf, change: leaf - learning_rate * change)
        vector = _leave(manifold, descend(vector, product))
        norm = tree_norm(vector)
        vector = jax.tree.map(lambda leaf: leaf / jnp.where(norm == 0, 1, norm).astype(leaf.dtype), vector)
        return (descend(point, manifold.project(gradient)), vector), jnp.log(norm)

    return jax.jit(lambda state: jax.lax.scan(step, state, None, length=max_steps)[1])((params, deviation))


def _first_crossing(logs: Float[Array, "records"], target: Float[Array, ""]) -> Float[Array, ""]:
    """First index, interpolated linearly, at which the logs reach the target; infinite if they never do."""
    index = jnp.argmax((logs >= target) | jnp.isnan(logs))
    before, at = logs[jnp.maximum(index - 1, 0)], logs[index]
    inside = index - jnp.where(index > 0, (at - target) / jnp.where(at == before, 1, at - before), 0.0)
    return jnp.where((at >= target) | jnp.isnan(at), inside, jnp.inf)
