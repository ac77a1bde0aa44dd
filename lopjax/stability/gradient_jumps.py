"""Does the gradient jump here? Derivatives at a kink are those of one side and say nothing about curvature."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopjax.curvature import hvp
from lopjax.curvature.products import Loss, Params
from lopjax.manifolds import tree_norm
from lopjax.tolerance import GAP, rounding_unit

# Rounding of a gradient, in units of eps |H| |theta| + eps |g|: a jump must exceed it.
_NOISE = 1000


def gradient_jump(loss: Loss, params: Params, direction: Params, hessian_size: float) -> tuple[bool, float]:
    """Whether the gradient jumps within rounding of the point, along a direction.

    A smooth gradient changes by `2 s H v` over the step from `-s v` to `s v`, and its mean over the two ends is that in
    the middle, both up to `s²`. At s = 640 eps |theta| anything else is a kink. (Where only f'' jumps, as in the ELU,
    the change is too small to be seen.)

    Args:
        loss: `params -> scalar`.
        params: the point.
        direction: a unit vector, generic: it should move every pre-activation.
        hessian_size: largest |eigenvalue| of the Hessian, for the rounding of the gradient.

    Returns:
        Whether it jumps, and the distance s looked at.
    """
    epsilon = float(jnp.finfo(jnp.result_type(*jax.tree.leaves(params))).eps)
    size = float(tree_norm(params))
    step = GAP * rounding_unit(jnp.result_type(*jax.tree.leaves(params))) * max(size, 1.0)
    first, second, length = (float(value) for value in jax.jit(partial(_differences, loss))(params, direction, step))
    noise = _NOISE * epsilon * (length + hessian_size * max(size, 1.0))
    return bool(max(first, second) > noise), step


def _differences(
    loss: Loss, params: Params, direction: Params, step: Array
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """`|g+ - g- - 2 s H v|`, `|g+ + g- - 2 g|` and |g|."""
    gradient = jax.grad(loss)

    def at(side: float) -> Params:
        return gradient(jax.tree.map(lambda leaf, move: leaf + side * step * move, params, direction))

    before, here, after = at(-1.0), gradient(params), at(1.0)
    product = hvp(loss, params, direction)
    change = jax.tree.map(lambda a, b, p: a - b - 2 * step * p, after, before, product)
    bend = jax.tree.map(lambda a, b, g: a + b - 2 * g, after, before, here)
    return tree_norm(change), tree_norm(bend), tree_norm(here)
