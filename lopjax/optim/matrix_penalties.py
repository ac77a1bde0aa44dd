"""Penalties on kernels as matrices: largest singular value near 1, or orthogonal incoming weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from lopjax.arguments.integers import as_integer
from lopjax.optim.checks import Params, check, check_is_wiring, check_params, transformation
from lopjax.optim.matrices import MatrixAxes, as_matrices, map_matrices, matrix_axes
from lopjax.wiring import Wiring


class SpectralState(NamedTuple):
    """State of `spectral`: right singular vectors of every kernel, `(batch, columns)`; None for other arrays."""

    right: Params


def spectral(
    strength: ArrayLike, wiring: Wiring, power: int = 2, num_iterations: int = 1
) -> optax.GradientTransformationExtraArgs:
    r"""Keep the largest singular value of every kernel near 1; place it before the optimizer.

    Adds the gradient of :math:`\lambda \sum (\sigma_1^k - 1)^2`, a sum over kernels (heads one by one), which is
    :math:`2k\lambda(\sigma_1^k - 1)\sigma_1^{k-1} u v'` with the singular vectors u and v. They come from power
    iteration started at the vectors of the previous step, so they lag behind if parameters change quickly. Biases and
    norm parameters are unchanged; the paper pulls these towards 0 and 1 by a penalty of the same form.

    Args:
        strength: :math:`\lambda`, at least 0.
        wiring: wiring of the network, which determines rows and columns.
        power: k, a positive integer; 2 in the paper.
        num_iterations: number of power iterations in each update.

    Returns:
        The transformation; `update` needs `params`.

    Raises:
        ValueError: a concrete `strength` is negative or not finite, `power` or `num_iterations` is not a positive
            integer, or parameters are missing, not real or do not match the wiring.

    References:
        Lewandowski et al., *Learning Continually by Spectral Regularization*, arXiv 2406.06811.
    """
    check("strength", strength, minimum=0.0)
    check_is_wiring(wiring)
    power = as_integer(power, 1, f"power={power!r}: must be a positive integer")
    refusal = f"num_iterations={num_iterations!r}: must be a positive integer"
    num_iterations = as_integer(num_iterations, 1, refusal)

    def init(params: Params) -> SpectralState:
        return SpectralState(_generic_vectors(wiring, params))

    def update(updates: Params, state: SpectralState, params: Params | None = None) -> tuple[Params, Any]:
        check_params("spectral", params)
        axes = matrix_axes(wiring, params)

        def iterate(kind: MatrixAxes | None, param: Array, right: Any) -> Array | None:
            return None if kind is None else _iterate(as_matrices(_widened(param), kind)[0], right, num_iterations)

        def add(matrices: Array, gradient: Array, right: Array) -> Array:
            sigma, left = _normalised(jnp.einsum("bij,bj->bi", matrices, right))
            slope = 2 * power * (sigma**power - 1) * sigma ** (power - 1) * jnp.asarray(strength, sigma.dtype)
            return slope[:, None, None] * left[:, :, None] * right[:, None, :]

        right = jax.tree.map(iterate, axes, params, state.right, is_leaf=_is_kind)
        penalty = map_matrices(
            add, axes, jax.tree.map(_widened, params), updates, right, others=lambda param, *_: jnp.zeros_like(param)
        )
        return _added(updates, penalty), SpectralState(right)

    return transformation(init, update)


def parseval(strength: ArrayLike, wiring: Wiring, scale: ArrayLike = 1.0) -> optax.GradientTransformationExtraArgs:
    r"""Keep the incoming weights of the units of every kernel orthogonal; place it before the optimizer.

    Adds the gradient of :math:`\lambda \sum \lVert W'W - sI \rVert_F^2`, a sum over kernels W of `inputs x units`
    (heads one by one, positions of a convolution among the inputs), which is :math:`4\lambda W(W'W - sI)`. If a layer
    has more units than inputs, not all of them can be orthogonal. The papers and PyTorch use the transpose of W.

    Args:
        strength: :math:`\lambda`, at least 0.
        wiring: wiring of the network, which determines rows and columns.
        scale: s, at least 0: squared norm of a unit's incoming weights.

    Returns:
        The transformation; `update` needs `params`. It has no state.

    Raises:
        ValueError: a concrete number is negative or not finite, or parameters are missing, not real or do not match
            the wiring.

    References:
        Chung et al., *Parseval Regularization for Continual Reinforcement Learning*, arXiv 2412.07224; Cisse et al.,
        arXiv 1704.08847.
    """
    check("strength", strength, minimum=0.0)
    check_is_wiring(wiring)
    check("scale", scale, minimum=0.0)

    def init(params: Params) -> optax.EmptyState:
        return optax.EmptyState()

    def update(updates: Params, state: optax.EmptyState, params: Params | None = None) -> tuple[Params, Any]:
        check_params("parseval", params)

        def gradient(matrices: Array) -> Array:
            gram = jnp.einsum("bij,bik->bjk", matrices, matrices)
            off = gram - jnp.asarray(scale, gram.dtype) * jnp.eye(gram.shape[-1], dtype=gram.dtype)[None]
            return 4 * jnp.asarray(strength, gram.dtype) * matrices @ off

        wide = jax.tree.map(_widened, params)
        return _added(updates, map_matrices(gradient, matrix_axes(wiring, params), wide, others=jnp.zeros_like)), state

    return transformation(init, update)


def _generic_vectors(wiring: Wiring, params: Params) -> Params:
    """One unit start vector for every matrix, fixed; generic, so that it is not orthogonal to a singular vector."""
    axes = matrix_axes(wiring, params)
    counter = iter(range(len(jax.tree.leaves(params))))

    def draw(kind: MatrixAxes | None, param: Array) -> Array | None:
        key = jax.random.fold_in(jax.random.key(0, impl="philox4x32"), next(counter))
        if kind is None:
            return None
        shape = jax.eval_shape(lambda leaf: as_matrices(leaf, kind)[0], param).shape
        normal = jax.random.normal(key, (shape[0], shape[2]), _widened(param).dtype)
        return normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)

    return jax.tree.map(draw, axes, params, is_leaf=_is_kind)


def _iterate(
    matrices: Float[Array, "batch rows columns"], right: Float[Array, "batch columns"], num_iterations: int
) -> Float[Array, "batch columns"]:
    """Power iteration of `W'W`. A vector that W maps to 0 is left unchanged."""

    def once(_: Any, right: Array) -> Array:
        image = jnp.einsum("bij,bi->bj", matrices, jnp.einsum("bij,bj->bi", matrices, right))
        length, direction = _normalised(image)
        return jnp.where(length[:, None] > 0, direction, right)

    return jax.lax.fori_loop(0, num_iterations, once, right)


def _normalised(rows: Float[Array, "batch n"]) -> tuple[Float[Array, " batch"], Float[Array, "batch n"]]:
    """Lengths and directions; the direction of 0 is 0. On the scale of the largest entry, whose square may overflow."""
    largest = jnp.max(jnp.abs(rows), axis=-1, initial=0)
    rows = rows / jnp.where(largest == 0, 1, largest)[:, None]
    length = jnp.linalg.norm(rows, axis=-1)
    return largest * length, rows / jnp.where(length == 0, 1, length)[:, None]


def _widened(array: Array) -> Array:
    return jnp.asarray(array, jnp.promote_types(jnp.result_type(array), jnp.float32))


def _added(updates: Params, penalty: Params) -> Params:
    return optax.tree.cast_like(jax.tree.map(jnp.add, updates, penalty), updates)


def _is_kind(node: object) -> bool:
    return node is None or isinstance(node, MatrixAxes)
