"""Noise in proportion to gradients, and shrinking with noise: what perturbs the parameters."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key

from lopjax.integers import as_integer
from lopjax.metrics.scaling import scaled, times_power_of_two
from lopjax.normals import standard_normal
from lopjax.optim.checks import Params, as_key, check, check_params, check_real, own_copy, transformation

# Folded into the key of `shrink_and_perturb`, so that its noise is not that of `noisy_sgd` with the same seed.
_SHRINK_AND_PERTURB = 0x5A9D


class RelativeNoiseState(NamedTuple):
    """State of :func:`add_relative_noise`: steps taken so far, and the key that all steps derive theirs from."""

    step: Int[Array, ""]
    key: Key[Array, ""]


class ShrinkAndPerturbState(NamedTuple):
    """State of :func:`shrink_and_perturb`: steps taken so far, and the key that all steps derive theirs from."""

    step: Int[Array, ""]
    key: Key[Array, ""]


def _norm(array: Array) -> Array:
    """Euclidean norm of all entries, finite where it can be.

    Where squares overflow, or vanish so that the sum would notice, entries are scaled by a power of two, which rounds
    nothing. Elsewhere one pass is enough; the others would cost a sixth of the noise or more.
    """
    if not array.size:
        return jnp.zeros((), array.dtype)
    info, norm = jnp.finfo(array.dtype), jnp.linalg.norm(array.ravel())
    is_safe = jnp.isfinite(norm) & (norm > math.sqrt(array.size * float(info.tiny) / float(info.eps)))
    return jax.lax.cond(is_safe, lambda _: norm, _scaled_norm, array)


def _scaled_norm(array: Array) -> Array:
    _, exponent = scaled(array)
    return times_power_of_two(jnp.linalg.norm(times_power_of_two(array, -exponent).ravel()), exponent)


def _map_with_noise(function: Callable[..., Array], key: Key[Array, ""], *trees: Params) -> Params:
    """Map ``function(noise, *leaves)``, all in the noise's dtype, with independent standard normals per leaf."""
    leaves, structure = jax.tree.flatten(trees[0])

    def apply(position: int, *values: Array) -> Array:
        dtype = jnp.promote_types(jnp.result_type(values[0]), jnp.float32)
        noise = standard_normal(jax.random.fold_in(key, position), jnp.shape(values[0]), dtype)
        return function(noise, *(jnp.asarray(value, dtype) for value in values)).astype(values[0].dtype)

    return jax.tree.map(apply, structure.unflatten(range(len(leaves))), *trees)


def add_relative_noise(
    noise_scale: ArrayLike, noise_decay: ArrayLike, seed: ArrayLike
) -> optax.GradientTransformationExtraArgs:
    r"""Add Gaussian noise in proportion to the norm of each gradient array, decaying geometrically.

    For each array g of the gradient, at step t = 0, 1, ...:

    .. math:: g \leftarrow g + \sigma_0 \gamma^t \lVert g \rVert_2 \, \xi, \qquad \xi \sim N(0, I)

    The norm is that of the whole array and the noise is not normalised, so an array of d entries gets noise of norm
    about :math:`\sigma_0 \gamma^t \sqrt d` times that of its gradient. An array without gradient gets none.

    Args:
        noise_scale: :math:`\sigma_0`, at least 0.
        noise_decay: :math:`\gamma` in [0, 1]; 0 makes a single noisy step, 1 noise that does not decay.
        seed: An integer or a ``jax.random.key`` (one for each lane under vmap).

    Returns:
        The transformation; its state is a :class:`RelativeNoiseState`.

    Raises:
        ValueError: If a concrete argument is out of its range, or parameters are not real.

    References:
        The "noisy SGD" of arXiv 2510.00304.
    """
    check("noise_scale", noise_scale, minimum=0.0)
    check("noise_decay", noise_decay, minimum=0.0, maximum=1.0)
    key = as_key(seed)

    def init(params: Params) -> RelativeNoiseState:
        check_real(params)
        return RelativeNoiseState(step=jnp.zeros((), jnp.int32), key=own_copy(key))

    def update(updates: Params, state: RelativeNoiseState, params: Params | None = None) -> tuple[Params, Any]:
        del params

        def perturb(noise: Array, gradient: Array) -> Array:
            decay = jnp.asarray(noise_decay, noise.dtype) ** state.step.astype(noise.dtype)
            scale = jnp.asarray(noise_scale, noise.dtype) * decay
            return gradient + scale * _norm(gradient) * noise

        updates = _map_with_noise(perturb, jax.random.fold_in(state.key, state.step), updates)
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

    With :math:`\tilde g` the noisy gradient of :func:`add_relative_noise`:
    :math:`m \leftarrow \tilde g + \mu m`, update :math:`-\eta m`.

    Args:
        learning_rate: :math:`\eta`, a number or a schedule.
        noise_scale: :math:`\sigma_0`, at least 0.
        noise_decay: :math:`\gamma` in [0, 1], per step.
        seed: An integer or a ``jax.random.key`` (one for each lane under vmap).
        momentum: :math:`\mu` in [0, 1]. The Python number 0 keeps no momentum array; a traced one always does.

    Returns:
        The optimizer.

    Raises:
        ValueError: If a concrete argument is out of its range, or parameters are not real.

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
    sgd = optax.sgd(learning_rate, momentum if has_momentum else None)

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        new, new_state = sgd.update(updates, state, params)  # a traced float32 rate would promote bfloat16
        return optax.tree.cast_like(new, updates), optax.tree.cast_like(new_state, state)

    return optax.chain(add_relative_noise(noise_scale, noise_decay, seed), transformation(sgd.init, update))


def shrink_and_perturb(
    shrink: ArrayLike,
    noise_std: ArrayLike,
    seed: ArrayLike,
    every: int,
    noise: Literal["normal", "init"] = "normal",
    initialise: Callable[[Key[Array, ""]], Params] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink the parameters and add noise after every ``every``-th update; place it last in a chain.

    After updates number ``every``, ``2 every``, ...: :math:`\theta \leftarrow s\,\theta + \sigma\,\xi`, for every array
    alike. Other updates pass unchanged. What :math:`\xi` is differs between publications of one name:

    - ``noise="normal"``: standard normal numbers (arXiv 2308.11958, and with ``every=1`` the code of Dohare et al.).
    - ``noise="init"``: a fresh draw of the initial parameters, so that each array is perturbed on its own scale (Ash &
      Adams). With :math:`s = \lambda` and :math:`\sigma = 1 - \lambda` it moves towards a new start.

    Args:
        shrink: s in [0, 1]; 1 only adds noise.
        noise_std: :math:`\sigma`, at least 0: on the scale of the parameters, or (``"init"``) of their initial draw.
        seed: An integer or a ``jax.random.key`` (one for each lane under vmap). The noise is not that of
            :func:`noisy_sgd` with the same seed.
        every: Number of updates between two applications, for example the length of a task.
        noise: ``"normal"`` or ``"init"``.
        initialise: For ``"init"``: key to parameters, for example ``lambda key: model.init(key)["params"]``. A static
            argument of ``optax.inject_hyperparams``.

    Returns:
        The transformation; ``update`` needs ``params``. Its state is a :class:`ShrinkAndPerturbState`.

    Raises:
        ValueError: If a concrete argument is out of its range, parameters are missing or not real, or ``initialise``
            is missing, superfluous or draws other arrays than the parameters.

    References:
        Ash & Adams, *On Warm-Starting Neural Network Training*, arXiv 1910.08475.
    """
    check("shrink", shrink, minimum=0.0, maximum=1.0)
    check("noise_std", noise_std, minimum=0.0)
    every = as_integer(
        every, 1, f"every={every!r}: must be a positive integer, the number of updates between applications"
    )
    if noise not in ("normal", "init"):
        raise ValueError(f"noise={noise!r}: must be 'normal' or 'init'")
    if (noise == "init") != (initialise is not None):
        raise ValueError(
            f"noise={noise!r}, initialise={initialise!r}: 'init' needs initialise, a function from a key "
            "to parameters, and 'normal' takes none"
        )
    key = as_key(seed)

    def init(params: Params) -> ShrinkAndPerturbState:
        check_real(params)
        return ShrinkAndPerturbState(step=jnp.zeros((), jnp.int32), key=own_copy(key))

    def shrink_one(drawn: Array, update: Array, param: Array) -> Array:
        factor, std = jnp.asarray(shrink, drawn.dtype), jnp.asarray(noise_std, drawn.dtype)
        return factor * (param + update) + std * drawn - param

    def apply(updates: Params, state: ShrinkAndPerturbState, params: Params) -> Params:
        own = jax.random.fold_in(jax.random.fold_in(state.key, _SHRINK_AND_PERTURB), state.step)
        if initialise is None:
            return _map_with_noise(shrink_one, own, updates, params)
        drawn = initialise(own)
        if jax.tree.map(jnp.shape, drawn) != jax.tree.map(jnp.shape, params):
            raise ValueError("initialise: its arrays are not those of the parameters; it must return a tree like them")
        return jax.tree.map(lambda *leaves: shrink_one(*leaves).astype(leaves[1].dtype), drawn, updates, params)

    def update(updates: Params, state: ShrinkAndPerturbState, params: Params | None = None) -> tuple[Params, Any]:
        check_params("shrink_and_perturb", params)
        step = jnp.asarray(optax.safe_increment(state.step))
        updates = jax.lax.cond(step % every == 0, apply, lambda updates, *_: updates, updates, state, params)
        return updates, ShrinkAndPerturbState(step, state.key)

    return transformation(init, update)
