"""Noise proportional to gradients, and how all transformations draw noise."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key

from lopjax.metrics.scaling import scaled, times_power_of_two
from lopjax.optim.checks import Params, as_key, check, keep_dtypes, own_copy, transformation
from lopjax.random.normals import standard_normals


class RelativeNoiseState(NamedTuple):
    """State of `add_relative_noise`: steps taken, and the key from which the keys of all steps are derived."""

    step: Int[Array, ""]
    key: Key[Array, ""]


def _norms(arrays: Sequence[Array]) -> list[Array]:
    """Euclidean norm of each array, finite whenever it is representable.

    If squares overflow, or underflow enough to affect the sum, entries are scaled by a power of two, which is exact.
    Otherwise one pass is enough; the others would cost a sixth of the time of the noise or more. One branch for all
    arrays: a branch for each is a program of its own to compile for each.
    """
    norms = [jnp.linalg.norm(array.ravel()) if array.size else jnp.zeros((), array.dtype) for array in arrays]
    are_safe = [_is_safe(norm, array.size) for norm, array in zip(norms, arrays, strict=True)]

    def scaled_where_unsafe() -> list[Array]:
        return [
            jnp.where(is_safe, norm, _scaled_norm(array)) if array.size else norm
            for is_safe, norm, array in zip(are_safe, norms, arrays, strict=True)
        ]

    return jax.lax.cond(jnp.all(jnp.array(are_safe)), lambda: norms, scaled_where_unsafe)


def _is_safe(norm: Array, size: int) -> Array:
    """Whether the squares of that many entries neither overflowed nor lost digits."""
    info = jnp.finfo(norm.dtype)
    return jnp.isfinite(norm) & (norm > math.sqrt(size * float(info.tiny) / float(info.eps))) | (size == 0)


def _scaled_norm(array: Array) -> Array:
    _, exponent = scaled(array)
    return times_power_of_two(jnp.linalg.norm(times_power_of_two(array, -exponent).ravel()), exponent)


def _noise_types(leaves: Sequence[Array]) -> list[Any]:
    """The type in which each array's noise is drawn and added."""
    return [jnp.promote_types(jnp.result_type(leaf), jnp.float32) for leaf in leaves]


def map_with_noise(function: Callable[..., Array], key: Key[Array, ""], *trees: Params) -> Params:
    """Map `function(noise, *leaves)`, all in the noise's dtype, with independent standard normals per leaf."""
    leaves, structure = jax.tree.flatten(trees[0])
    noises = standard_normals(key, [jnp.shape(leaf) for leaf in leaves], _noise_types(leaves))

    def apply(noise: Array, *values: Array) -> Array:
        return function(noise, *(jnp.asarray(value, noise.dtype) for value in values)).astype(values[0].dtype)

    return jax.tree.map(apply, structure.unflatten(noises), *trees)


def add_relative_noise(
    noise_scale: ArrayLike, noise_decay: ArrayLike, seed: ArrayLike
) -> optax.GradientTransformationExtraArgs:
    r"""Add Gaussian noise proportional to the norm of each gradient array, decaying geometrically.

    For each array g of the gradient, at step t = 0, 1, ...:

    .. math:: g \leftarrow g + \sigma_0 \gamma^t \lVert g \rVert_2 \, \xi, \qquad \xi \sim N(0, I)

    The norm is that of the whole array and the noise is not normalised, so for an array of d entries the norm of the
    noise is about :math:`\sigma_0 \gamma^t \sqrt d` times that of the gradient. An array with zero gradient gets no
    noise.

    Args:
        noise_scale: :math:`\sigma_0`, at least 0. At 0 nothing is drawn, so that the derivative in it is 0 there.
        noise_decay: :math:`\gamma` in [0, 1]; 0 gives a single noisy step, 1 noise that does not decay.
        seed: an integer or a `jax.random.key` (one for each lane under vmap).

    Returns:
        The transformation; its state is a `RelativeNoiseState`.

    Raises:
        ValueError: a concrete argument is out of its range, or parameters are not real.

    References:
        The "noisy SGD" of arXiv 2510.00304.
    """
    check("noise_scale", noise_scale, minimum=0.0)
    check("noise_decay", noise_decay, minimum=0.0, maximum=1.0)
    key = as_key(seed)

    def init(params: Params) -> RelativeNoiseState:
        return RelativeNoiseState(step=jnp.zeros((), jnp.int32), key=own_copy(key))

    def update(updates: Params, state: RelativeNoiseState, params: Params | None = None) -> tuple[Params, Any]:
        del params

        leaves, structure = jax.tree.flatten(updates)
        dtypes = _noise_types(leaves)
        gradients = [jnp.asarray(leaf, dtype) for leaf, dtype in zip(leaves, dtypes, strict=True)]

        def scale(dtype: Any) -> Array:
            return jnp.asarray(noise_scale, dtype) * jnp.asarray(noise_decay, dtype) ** state.step.astype(dtype)

        # Lanes without noise draw none.
        is_noisy = jnp.any(jnp.array([scale(dtype) != 0 for dtype in set(dtypes)]))
        key = jax.random.fold_in(state.key, state.step)
        noises = standard_normals(key, [leaf.shape for leaf in gradients], dtypes, is_noisy)
        noisy = [
            (gradient + scale(dtype) * norm * noise).astype(leaf.dtype)
            for leaf, gradient, dtype, norm, noise in zip(
                leaves, gradients, dtypes, _norms(gradients), noises, strict=True
            )
        ]
        updates = structure.unflatten(noisy)
        return updates, RelativeNoiseState(jnp.asarray(optax.safe_increment(state.step)), state.key)

    return transformation(init, update)


def noisy_sgd(
    learning_rate: optax.ScalarOrSchedule,
    noise_scale: ArrayLike,
    noise_decay: ArrayLike,
    seed: ArrayLike,
    momentum: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Stochastic gradient descent on gradients with relative noise: the way out of a cloned network's manifold.

    With :math:`\tilde g` the noisy gradient of `add_relative_noise`:
    :math:`m \leftarrow \tilde g + \mu m`, update :math:`-\eta m`.

    Args:
        learning_rate: :math:`\eta`, a number or a schedule.
        noise_scale: :math:`\sigma_0`, at least 0. At 0 nothing is drawn, so that the derivative in it is 0 there.
        noise_decay: :math:`\gamma` in [0, 1], per step.
        seed: an integer or a `jax.random.key` (one for each lane under vmap).
        momentum: :math:`\mu` in [0, 1]. The Python number 0 keeps no momentum array; a traced one always does.

    Returns:
        The optimizer.

    Raises:
        ValueError: a concrete argument is out of its range, or parameters are not real.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = noisy_sgd(0.1, noise_scale=0.01, noise_decay=0.999, seed=0)
        >>> state = optimizer.init(jnp.zeros(3))
        >>> updates, state = optimizer.update(jnp.ones(3), state)
        >>> print(state[0].step, bool(jnp.allclose(updates, -0.1, atol=0.01)))
        1 True
    """
    if not callable(learning_rate):
        check("learning_rate", learning_rate, minimum=0.0)
    check("momentum", momentum, minimum=0.0, maximum=1.0)
    has_momentum = not (isinstance(momentum, (int, float)) and momentum == 0)
    sgd = keep_dtypes(optax.sgd(learning_rate, momentum if has_momentum else None))
    return optax.chain(add_relative_noise(noise_scale, noise_decay, seed), sgd)
