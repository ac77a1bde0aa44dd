"""Does a derivative jump here? Derivatives at a kink are one-sided and say nothing about curvature."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from lopjax.curvature.products import Loss, Params
from lopjax.manifolds import tree_norm
from lopjax.tolerance import CERTAIN_FROM, rounding_unit

# Rounding of a gradient, in units of eps |H| |theta| + eps |g|, and of a product, in units of eps |H|.
_NOISE = 1000
_SIDES = (-1.0, -0.5, 0.0, 0.5, 1.0)


class Jumps(NamedTuple):
    """Result of `find_jumps`.

    Attributes:
        in_gradient: whether the gradient jumps, as that of a ReLU network with a pre-activation of 0 does.
        in_curvature: whether the second derivative jumps, as that of an ELU network does there.
        distance: largest distance from the point at which derivatives were taken.
        gradient: at the point itself.
    """

    in_gradient: bool
    in_curvature: bool
    distance: float
    gradient: Params


def find_jumps(loss: Loss, params: Params, direction: Params, hessian_size: float) -> Jumps:
    """Whether the gradient or the curvature jumps within rounding of the point, along a direction v.

    With s = 640 eps |theta|, a smooth gradient changes by `2 s H v` over the step from `-s v` to `s v`, and its mean
    over the two ends equals the gradient in the middle, both up to s²: anything else is a kink. A smooth product H v
    changes in proportion to the step, by half as much over half the step; a jump is just as large over half the step.

    Args:
        loss: `params -> scalar`.
        params: the point.
        direction: a unit vector, generic: it should move every pre-activation.
        hessian_size: largest |eigenvalue| of the Hessian, for the rounding of the gradient.
    """
    dtype = jnp.result_type(*jax.tree.leaves(params))
    epsilon, size = float(jnp.finfo(dtype).eps), max(float(tree_norm(params)), 1.0)
    step = CERTAIN_FROM * rounding_unit(dtype) * size
    gradient, lengths = jax.jit(partial(_differences, loss))(params, direction, step)
    change, asymmetry, length, whole, half = np.asarray(lengths, np.float64)
    noise = _NOISE * epsilon * (length + hessian_size * size)
    is_steady = half > 0.75 * whole
    return Jumps(
        in_gradient=bool(max(change, asymmetry) > noise),
        in_curvature=bool(whole > _NOISE * epsilon * hessian_size and is_steady),
        distance=step,
        gradient=gradient,
    )


def _differences(loss: Loss, params: Params, direction: Params, step: Array) -> tuple[Params, Float[Array, "5"]]:
    """g, and `|g+ - g- - 2 s H v|`, `|g+ + g- - 2 g|`, |g|, the change of H v over the step and over half of it."""

    def at(side: Array) -> tuple[Params, Params]:
        place = jax.tree.map(lambda leaf, move: leaf + (side * step).astype(leaf.dtype) * move, params, direction)
        return jax.jvp(jax.grad(loss), (place,), (direction,))

    gradients, products = jax.lax.map(at, jnp.asarray(_SIDES))

    def length(weights: tuple[float, ...], of_products: ArrayLike = 0.0) -> Array:
        mix = jnp.asarray(weights)
        return tree_norm(
            jax.tree.map(
                lambda g, p: jnp.tensordot(mix.astype(g.dtype), g, 1) - of_products * p[2], gradients, products
            )
        )

    def change_of_products(first: int, last: int) -> Array:
        return tree_norm(jax.tree.map(lambda p: p[last] - p[first], products))

    here = jax.tree.map(lambda g: g[2], gradients)
    lengths = jnp.stack(
        [
            length((-1.0, 0.0, 0.0, 0.0, 1.0), 2 * step),
            length((1.0, 0.0, -2.0, 0.0, 1.0)),
            length((0.0, 0.0, 1.0, 0.0, 0.0)),
            change_of_products(0, 4),
            change_of_products(1, 3),
        ]
    )
    return here, lengths
