"""Gradient transformations that perturb, pull back or confine the parameters, for use with optax.

Each function returns an ``optax.GradientTransformationExtraArgs`` that composes with ``optax.chain``, ``optax.masked``
(to spare some arrays) and ``optax.inject_hyperparams``. Numbers may be traced, so that a grid of settings is one
vmapped program; concrete ones are checked where the transformation is made. Dtypes of parameters are preserved; noise
is drawn in float32 (float64 for float64 parameters) and then cast. Complex parameters are refused. (Beware that
``inject_hyperparams`` stores numbers in the dtype of the parameters: in bfloat16 a decay of 0.999 is 1. Give it
``hyperparam_dtype=jnp.float32``.)

Randomness is a pure function of (seed, step, position of the array in the tree, which of the two laws below): nothing
else is in the state, and a resumed run draws what the uninterrupted run would have drawn. A key of any implementation
will do, and they are equally fast: float32 noise comes from :func:`lopjax.normals.standard_normal`, which takes 64 bits
from it. An int seed makes a ``philox4x32`` key. **Under vmap give each lane its
own key**: with an int, all lanes get the same noise. A state owns its buffers: it may be donated to a compiled step,
and neither the seed nor another state made by the same transformation is lost with it.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key, PyTree

from lopjax.integers import as_integer
from lopjax.metrics.scaling import scaled, times_power_of_two
from lopjax.normals import standard_normal
from lopjax.philox import spell_out_products

Params = PyTree[Array]

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


class L2InitState(NamedTuple):
    """State of :func:`l2_init`: the parameters it was initialised with."""

    initial: Params


def _check(name: str, value: Any, minimum: float, maximum: float = math.inf) -> None:
    """Refuse a concrete number out of range; a traced one passes."""
    if isinstance(value, Tracer):
        return
    number = np.asarray(value)
    is_number = jnp.issubdtype(number.dtype, jnp.integer) or jnp.issubdtype(number.dtype, jnp.floating)
    if not is_number or not np.all(np.isfinite(number) & (number >= minimum) & (number <= maximum)):
        allowed = f"finite and at least {minimum:g}" if maximum == math.inf else f"in [{minimum:g}, {maximum:g}]"
        raise ValueError(f"{name}={value!r}: must be {allowed}")


def _as_key(seed: ArrayLike) -> Key[Array, ""]:
    """One key from an integer or a key, either of them possibly traced."""
    array = seed if isinstance(seed, jax.Array) else np.asarray(seed)
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    if not is_key and not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"seed={seed!r}: must be an integer or a jax.random.key")
    if array.shape:
        raise ValueError(f"seed has shape {array.shape}: must be one integer or one key; vmap over several")
    key = _own_copy(jnp.asarray(seed)) if is_key else jax.random.key(seed, impl="philox4x32")
    # A program over several devices has two of them to run on; `standard_normal` needs the products under any key.
    if jax.device_count() > 1:
        spell_out_products()
    return key


def _own_copy(key: Key[Array, ""]) -> Key[Array, ""]:
    """The same key in a buffer of its own: donated, it takes no other with it."""
    return jax.random.wrap_key_data(jnp.array(jax.random.key_data(key)), impl=jax.random.key_impl(key))


def _transformation(
    init: Callable[..., Any], update: Callable[..., tuple[Params, Any]]
) -> optax.GradientTransformationExtraArgs:
    return optax.with_extra_args_support(optax.GradientTransformation(init, update))


def _check_real(params: Params) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"params{name} has dtype {jnp.result_type(leaf)}: must be real and floating-point")


def _check_params(name: str, params: Params | None) -> None:
    if params is None:
        raise ValueError(f"{name} needs the parameters: call update(updates, state, params)")


def _norm(array: Array) -> Array:
    """Euclidean norm of all entries, finite where it can be.

    Where squares overflow, or vanish so that the sum would notice, entries are scaled by a power of two, which rounds
    nothing. Elsewhere one pass is enough; the other three cost as much as a fifth of the noise.
    """
    if not array.size:
        return jnp.zeros((), array.dtype)
    info, norm = jnp.finfo(array.dtype), jnp.linalg.norm(array.ravel())
    is_safe = jnp.isfinite(norm) & (norm > np.sqrt(array.size * float(info.tiny) / float(info.eps)))
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
    _check("noise_scale", noise_scale, minimum=0.0)
    _check("noise_decay", noise_decay, minimum=0.0, maximum=1.0)
    key = _as_key(seed)

    def init(params: Params) -> RelativeNoiseState:
        _check_real(params)
        return RelativeNoiseState(step=jnp.zeros((), jnp.int32), key=_own_copy(key))

    def update(updates: Params, state: RelativeNoiseState, params: Params | None = None) -> tuple[Params, Any]:
        del params

        def perturb(noise: Array, gradient: Array) -> Array:
            decay = jnp.asarray(noise_decay, noise.dtype) ** state.step.astype(noise.dtype)
            scale = jnp.asarray(noise_scale, noise.dtype) * decay
            return gradient + scale * _norm(gradient) * noise

        updates = _map_with_noise(perturb, jax.random.fold_in(state.key, state.step), updates)
        return updates, RelativeNoiseState(jnp.asarray(optax.safe_increment(state.step)), state.key)

    return _transformation(init, update)


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
        _check("learning_rate", learning_rate, minimum=0.0)
    _check("momentum", momentum, minimum=0.0, maximum=1.0)
    has_momentum = not (isinstance(momentum, (int, float)) and momentum == 0)
    sgd = optax.sgd(learning_rate, momentum if has_momentum else None)

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        new, new_state = sgd.update(updates, state, params)  # a traced float32 rate would promote bfloat16
        return optax.tree.cast_like(new, updates), optax.tree.cast_like(new_state, state)

    return optax.chain(add_relative_noise(noise_scale, noise_decay, seed), _transformation(sgd.init, update))


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
    _check("shrink", shrink, minimum=0.0, maximum=1.0)
    _check("noise_std", noise_std, minimum=0.0)
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
    key = _as_key(seed)

    def init(params: Params) -> ShrinkAndPerturbState:
        _check_real(params)
        return ShrinkAndPerturbState(step=jnp.zeros((), jnp.int32), key=_own_copy(key))

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
        _check_params("shrink_and_perturb", params)
        step = jnp.asarray(optax.safe_increment(state.step))
        updates = jax.lax.cond(step % every == 0, apply, lambda updates, *_: updates, updates, state, params)
        return updates, ShrinkAndPerturbState(step, state.key)

    return _transformation(init, update)


def l2_init(
    strength: ArrayLike, variant: Literal["paper", "official"] = "paper"
) -> optax.GradientTransformationExtraArgs:
    r"""Pull the parameters towards where they started; place it before the optimizer.

    Adds the gradient of a penalty, a sum over parameters. The paper and its authors' code differ by a factor of 2:

    - ``variant="paper"``: :math:`\lambda \lVert\theta-\theta_0\rVert^2`, so :math:`2\lambda (\theta-\theta_0)`.
    - ``variant="official"``: :math:`\frac\lambda2 \lVert\theta-\theta_0\rVert^2`, so
      :math:`\lambda (\theta-\theta_0)`; published strengths are meant for it. The code also spares the parameters of
      norms, which ``optax.masked`` does here.

    Args:
        strength: :math:`\lambda`, at least 0.
        variant: ``"paper"`` or ``"official"``.

    Returns:
        The transformation; ``update`` needs ``params``. Its state holds a copy of the initial parameters.

    Raises:
        ValueError: If a concrete ``strength`` is negative or not finite, ``variant`` is unknown, or parameters are
            missing or not real.

    References:
        Kumar, Marklund & Van Roy, *Maintaining Plasticity in Continual Learning via Regenerative Regularization*,
        arXiv 2308.11958.
    """
    _check("strength", strength, minimum=0.0)
    if variant not in ("paper", "official"):
        raise ValueError(f"variant={variant!r}: must be 'paper' or 'official'")
    factor = 2 if variant == "paper" else 1

    def init(params: Params) -> L2InitState:
        _check_real(params)
        return L2InitState(initial=jax.tree.map(jnp.array, params))

    def update(updates: Params, state: L2InitState, params: Params | None = None) -> tuple[Params, Any]:
        _check_params("l2_init", params)

        def pull(gradient: Array, param: Array, initial: Array) -> Array:
            dtype = jnp.promote_types(jnp.result_type(gradient), jnp.float32)
            gradient, param, initial = (jnp.asarray(x, dtype) for x in (gradient, param, initial))
            return gradient + factor * jnp.asarray(strength, dtype) * (param - initial)

        pulled = jax.tree.map(pull, updates, params, state.initial)
        return optax.tree.cast_like(pulled, updates), state

    return _transformation(init, update)


def keep_on_manifold(project: Callable[[Params], Params]) -> optax.GradientTransformationExtraArgs:
    """Project every update onto the tangent space of an affine manifold; place it last in a chain.

    In exact arithmetic most optimizers keep clones equal; in floating point their differences start from rounding
    and then grow like any perturbation of a saddle. Projecting the *update* removes what this step has added.

    Inside ``optax.masked`` and ``optax.multi_transform`` the arrays that are left to this transformation are projected,
    the others pass: the projectors of cloned and frozen units act array by array. (Those of level sets do not, and
    refuse a part of the parameters.)

    Args:
        project: A linear projector from parameters to parameters, for example ``manifold.project``.

    Returns:
        The transformation; it has no state.
    """

    def update(updates: Params, state: optax.EmptyState, params: Params | None = None) -> tuple[Params, Any]:
        del params
        return optax.tree.cast_like(project(updates), updates), state

    return _transformation(lambda params: optax.EmptyState(), update)
