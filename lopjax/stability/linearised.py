"""Training linearised around a manifold: linear theory for a whole run, not only at a critical point."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
from jaxtyping import Array, Float

from lopjax.arguments.numbers import takes_numbers
from lopjax.manifolds import Manifold
from lopjax.model import Params

Output = TypeVar("Output")


class Split(NamedTuple):
    """A point in two parts: `params = foot + deviation`.

    Attributes:
        foot: the nearest point of the manifold.
        deviation: the rest, normal to it.
    """

    foot: Params
    deviation: Params


def split(manifold: Manifold, params: Params) -> Split:
    """The nearest point of an affine manifold, and the deviation from it.

    Raises:
        ValueError: a manifold that is known to be curved.
    """
    if manifold.is_affine is False:
        raise ValueError(
            f"manifold {manifold.space!r} is curved: its projector finds the nearest point of affine ones only"
        )
    foot = jax.tree.map(
        lambda start, along: start + along,
        manifold.origin,
        manifold.project(jax.tree.map(lambda leaf, start: leaf - start, params, manifold.origin)),
    )
    return Split(foot, jax.tree.map(lambda leaf, near: leaf - near, params, foot))


def linearised(function: Callable[[Params], Output], manifold: Manifold, params: Params) -> Output:
    """A function to first order in the distance from a manifold: `f(p) + f'(p) v`, p + v the split of the parameters.

    Applied to the activations of clones, this makes `1 - R²` a quadratic form of v.

    Args:
        function: from parameters to a tree of arrays.
        manifold: an affine manifold.
        params: the point.

    Example:
        >>> import jax.numpy as jnp
        >>> from lopjax.manifolds import Manifold
        >>> line = Manifold(jnp.zeros(2), lambda v: v * jnp.array([1.0, 0.0]))
        >>> linearised(lambda p: p[0] * p[1] + p[1] ** 2, line, jnp.array([3.0, 0.5])).item()
        1.5
    """
    foot, deviation = split(manifold, params)
    value, change = jax.jvp(function, (foot,), (deviation,))
    return jax.tree.map(lambda a, b: a + b, value, change)


@takes_numbers(params=None)
def linearised_gradient(loss: Callable[[Params], Float[Array, ""]], manifold: Manifold, params: Params) -> Params:
    """The gradient to first order in the distance from a manifold: `grad L(p) + Hess L(p) v`.

    An optimizer that receives this instead of the gradient follows the linear theory of its own training: on a manifold
    that traps gradients p moves as a confined network does, and v follows the linear process

        v <- v - eta (H_t v + xi_t),    with momentum  m <- beta m + H_t v + xi_t,  v <- v - eta m,

    along the moving p, on the batch of every step, with whatever noise, decay and momentum the optimizer adds. Nothing
    needs to be critical, constant or averaged; only terms of second order in v are left out. Gradients that leave the
    manifold, such as those of dropout, are part of xi. Costs about ten per cent more than two gradients per step.

    Args:
        loss: a function of parameters, on one batch.
        manifold: an affine manifold, such as the leaf of block-constant
            clones.
        params: the point.

    References:
        The variational equation along a trajectory; for minibatches arXiv 2306.04251. See `transverse_lyapunov` for
        the growth rate alone, and `first_passage_times` for the closed form at a critical point.
    """
    return linearised(jax.grad(loss), manifold, params)
