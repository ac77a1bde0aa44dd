"""Manifolds trapped by a symmetry of the loss: its fixed points, and all manifolds that it maps onto trapping ones.

If `g: theta -> U theta + t` with U orthogonal leaves the loss of every batch unchanged, then its gradient is
equivariant, `grad L(g theta) = U grad L(theta)`: differentiate `L(g theta) = L(theta)`. So gradient descent, with or
without momentum, from `g theta` is the image of that from `theta`. The caller must know that the loss is unchanged, or
test it by `lopjax.certificates.leaves_loss_unchanged`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lopjax.arguments.numbers import takes_numbers
from lopjax.curvature import check_same_tree
from lopjax.manifolds.manifold import CloneNormals, Manifold, Params, Projector, Subspace, tree_norm
from lopjax.tolerance import CERTAIN_FROM, relative_tolerance

Isometry = Callable[[Params], Params]
"""`theta -> U theta + t` on trees of parameters, U orthogonal, in JAX operations. Hashable, as functions are."""


@takes_numbers(params=None)
def isometric_manifold(params: Params, isometry: Isometry, manifold_at: Callable[[Params], Manifold]) -> Manifold:
    """The manifold through a point that a symmetry of the loss maps onto a known one.

    Heads that differ by rotations of (Q, K) and of (V, O), or units that differ in ways that a softmax or a layer norm
    cannot see, are clones after such a map. If the image traps training, so does this manifold, and its normal Hessian
    has the same eigenvalues, because the map is orthogonal.

    Args:
        params: the point.
        isometry: the map; must leave the loss of every batch unchanged (not checked here).
        manifold_at: from the image of the point to the manifold there, such as
            `lambda there: cloned_manifold(there, wiring, partition)`.

    Raises:
        ValueError: a map that is not affine, or whose linear part is not orthogonal, as tested on random vectors.

    References:
        This library.
    """
    _check_isometry(isometry, params)
    image = manifold_at(isometry(params))

    def pulled_back(subspace: Subspace) -> Subspace:
        return Subspace(_PulledBack(isometry, subspace.project), subspace.dimension)

    return Manifold(
        origin=params,
        project=_PulledBack(isometry, image.project),
        tangent_dimension=image.tangent_dimension,
        space=f"isometric to {image.space}",
        normals=None if image.normals is None else CloneNormals(*map(pulled_back, image.normals)),
        is_affine=image.is_affine,
    )


@takes_numbers(params=None)
def fixed_point_manifold(params: Params, isometry: Isometry, order: int = 2) -> Manifold:
    """The affine space of the fixed points of a symmetry of the loss.

    At a fixed point `grad L = U grad L`, so the gradient is tangent. Swapping two units has clones as fixed points;
    changing the sign of an odd unit's incoming and outgoing weights has vanished units; both together, mirrored clones.
    The projector is the mean of the powers of U.

    Args:
        params: a fixed point.
        isometry: the map; must leave the loss of every batch unchanged (not checked here).
        order: number of applications after which the map is the identity: 2 for swaps and signs.

    Raises:
        ValueError: as `isometric_manifold`; an order that is not positive or is not the map's; a point that is not
            fixed.

    References:
        This library.
    """
    if order < 1:
        raise ValueError(f"order={order}: must be a positive integer")
    _check_isometry(isometry, params)
    moved, length = _distance(isometry(params), params), float(tree_norm(params))
    if not moved <= _allowed(params) * max(length, 1.0):
        raise ValueError(f"the point is not fixed: the map moves it by {moved:.3g}; project it first")
    if not _returns(isometry, order, params):
        raise ValueError(f"order={order}: the map is not the identity after this many applications")
    return Manifold(
        origin=params, project=_MeanOfPowers(isometry, order), space="fixed points of a symmetry", is_affine=True
    )


@dataclass(frozen=True)
class _PulledBack:
    """`U' P U`, compiled once for each pair of map and projector."""

    isometry: Isometry
    project: Projector

    def __call__(self, vector: Params) -> Params:
        return _pull_back(self.isometry, self.project, vector)


@partial(jax.jit, static_argnums=(0, 1))
def _pull_back(isometry: Isometry, project: Projector, vector: Params) -> Params:
    # An affine map has the same derivative everywhere, also at zero: U in forward mode, U' in reverse mode.
    zero = jax.tree.map(jnp.zeros_like, vector)
    (back,) = jax.vjp(isometry, zero)[1](project(_linear(isometry, vector)))
    return back


@dataclass(frozen=True)
class _MeanOfPowers:
    """`(1 + U + ... + U^(order - 1)) / order`."""

    isometry: Isometry
    order: int

    def __call__(self, vector: Params) -> Params:
        return _mean_of_powers(self.isometry, self.order, vector)


@partial(jax.jit, static_argnums=(0, 1))
def _mean_of_powers(isometry: Isometry, order: int, vector: Params) -> Params:
    total = power = vector
    for _ in range(order - 1):
        power = _linear(isometry, power)
        total = jax.tree.map(jnp.add, total, power)
    return jax.tree.map(lambda leaf: leaf / order, total)


def _linear(isometry: Isometry, vector: Params) -> Params:
    return jax.jvp(isometry, (jax.tree.map(jnp.zeros_like, vector),), (vector,))[1]


_SCALES = (1.0, -1.0, 30.0, -30.0, 1000.0, -1000.0)


@partial(jax.jit, static_argnums=0)
def _departures(isometry: Isometry, params: Params, vector: Params) -> tuple[jax.Array, jax.Array]:
    """`|U'U v - v|`, and the largest of `|g(theta + s v) - g(theta) - s U v| / max(|s|, 1)`.

    Both directions and far out: a map made of affine pieces, such as |theta| or a sort, may be affine on one side.
    """
    there, (back,) = _linear(isometry, vector), jax.vjp(isometry, params)[1](_linear(isometry, vector))
    here = isometry(params)

    def off(scale: jax.Array) -> jax.Array:
        far = isometry(jax.tree.map(lambda leaf, move: leaf + scale.astype(leaf.dtype) * move, params, vector))
        away = jax.tree.map(lambda a, b, c: a - b - scale.astype(c.dtype) * c, far, here, there)
        return tree_norm(away) / jnp.maximum(jnp.abs(scale), 1)

    return tree_norm(jax.tree.map(jnp.subtract, back, vector)), jnp.max(jax.vmap(off)(jnp.asarray(_SCALES)))


def _check_isometry(isometry: Isometry, params: Params) -> None:
    check_same_tree(params, jax.eval_shape(isometry, params), "the image")
    vector = _random(params)
    stretching, nonlinearity = (float(each) for each in _departures(isometry, params, vector))
    size = float(tree_norm(vector)) + float(tree_norm(params))
    if not jnp.isfinite(jnp.asarray([size, stretching, nonlinearity])).all():
        raise ValueError("the parameters, or what the map makes of them, are not finite: they must be")
    for departure, what in ((nonlinearity, "affine"), (stretching, "orthogonal")):
        if not departure <= _allowed(params) * size:
            raise ValueError(
                f"the map is not {what}: off by {departure:.3g} on a random vector of length {size:.3g}; only maps "
                "theta -> U theta + t with U orthogonal commute with gradient descent"
            )


@partial(jax.jit, static_argnums=(0, 1))
def _powers(isometry: Isometry, order: int, vector: Params) -> Params:
    for _ in range(order):
        vector = _linear(isometry, vector)
    return vector


def _returns(isometry: Isometry, order: int, params: Params) -> bool:
    vector = _random(params)
    return _distance(_powers(isometry, order, vector), vector) <= _allowed(params) * order * float(tree_norm(vector))


def _random(params: Params) -> Params:
    flat, unravel = ravel_pytree(params)
    return unravel(jnp.asarray(np.random.default_rng(0).normal(size=flat.size), flat.dtype))


def _distance(one: Params, other: Params) -> float:
    return float(tree_norm(jax.tree.map(jnp.subtract, one, other)))


def _allowed(params: Params) -> float:
    leaves = jax.tree.leaves(params)
    return CERTAIN_FROM * relative_tolerance(jnp.result_type(*leaves), sum(leaf.size for leaf in leaves))
