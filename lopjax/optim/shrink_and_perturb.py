"""Shrink and perturb: four different methods of that name."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Key

from lopjax.arguments.integers import as_integer
from lopjax.optim.checks import Params, as_key, check, check_params, own_copy, transformation
from lopjax.optim.noise import map_with_noise

Law = Literal["kumar", "ash_adams", "dohare", "start"]
Initialise = Callable[[Key[Array, ""]], Params]

# Folded into the key, so that the noise is not that of `noisy_sgd` with the same seed.
_STREAM = 0x5A9D


class ShrinkAndPerturbState(NamedTuple):
    """State of `shrink_and_perturb`.

    Attributes:
        step: number of updates so far.
        key: the key from which the keys of all steps are derived.
        initial: the initial parameters for `law="start"`, otherwise empty.
    """

    step: Int[Array, ""]
    key: Key[Array, ""]
    initial: Params = ()


def shrink_and_perturb(
    shrink: ArrayLike,
    noise_std: ArrayLike,
    seed: ArrayLike,
    every: int,
    law: Law = "kumar",
    initialise: Initialise | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Shrink and perturb the parameters after every `every`-th update; place it last in a chain.

    With u the update of the optimizer (:math:`-\alpha g` for SGD), s the factor, :math:`\sigma` the scale and
    :math:`\xi \sim N(0, I)`, for every array alike. Four publications use the name for four methods:

    - `"kumar"`: :math:`\theta \leftarrow s(\theta + u) + \sigma \xi`.
    - `"ash_adams"`: :math:`\theta \leftarrow s(\theta + u) + \sigma \theta'` with :math:`\theta'` a *fresh draw of
      the initial parameters*, so that each array is perturbed on its own scale. With :math:`\sigma = 1 - s` it moves
      towards a new initialisation.
    - `"dohare"`: :math:`\theta \leftarrow s\theta + u + \sigma \xi`: weight decay and noise at every step (`every=1`),
        without shrinking the update itself. In the code of continual backprop :math:`s = 1 - \alpha\lambda` (SGD with
        L2) and :math:`\sigma` is used directly; the code of UPGD adds the noise to the gradient, so the scale is
        :math:`\alpha` times its `sigma`.
    - `"start"`: :math:`\theta \leftarrow s(\theta + u) + \sigma \theta_0` with :math:`\theta_0` the *initial
      parameters themselves*, and no noise: the baseline in the paper on FIRE, applied at every task with :math:`s =
      0.8, \sigma = 1 - s`.

    Args:
        shrink: s in [0, 1]; 1 does not shrink.
        noise_std: :math:`\sigma`, at least 0, on the scale of the parameters or of their initial values.
        seed: an integer or a `jax.random.key` (one for each lane under vmap). The noise is not that of
            `noisy_sgd` with the same seed.
        every: number of updates between two applications, for example the length of a task.
        law: name of the method.
        initialise: for `"ash_adams"`, a function from a key to parameters, for example `lambda key:
            model.init(key)["params"]`. A static argument of `optax.inject_hyperparams`.

    Returns:
        The transformation; `update` needs `params`. Its state is a `ShrinkAndPerturbState`.

    Raises:
        ValueError: a concrete argument is out of its range, `law` is unknown, parameters are missing or not real,
            or `initialise` is missing, superfluous or does not return arrays like the parameters.

    References:
        Ash & Adams, arXiv 1910.08475, section 4; Dohare et al., arXiv 2108.06325; Kumar et al., arXiv 2308.11958; Han
        et al. (FIRE), arXiv 2602.08040.
    """
    check("shrink", shrink, minimum=0.0, maximum=1.0)
    check("noise_std", noise_std, minimum=0.0)
    _check_law(law, initialise)
    every = as_integer(
        every, 1, f"every={every!r}: must be a positive integer, the number of updates between applications"
    )
    key, combine = as_key(seed), _combination(law, shrink, noise_std)

    def init(params: Params) -> ShrinkAndPerturbState:
        initial = jax.tree.map(jnp.array, params) if law == "start" else ()
        return ShrinkAndPerturbState(jnp.zeros((), jnp.int32), own_copy(key), initial)

    def apply(updates: Params, state: ShrinkAndPerturbState, params: Params) -> Params:
        step_key = jax.random.fold_in(jax.random.fold_in(state.key, _STREAM), state.step)
        if law in ("kumar", "dohare"):
            return map_with_noise(combine, step_key, updates, params)
        added = state.initial if law == "start" else _drawn(initialise, step_key, params)
        return optax.tree.cast_like(jax.tree.map(combine, added, updates, params), updates)

    def update(updates: Params, state: ShrinkAndPerturbState, params: Params | None = None) -> tuple[Params, Any]:
        check_params("shrink_and_perturb", params)
        state = state._replace(step=jnp.asarray(optax.safe_increment(state.step)))
        return jax.lax.cond(state.step % every == 0, apply, lambda updates, *_: updates, updates, state, params), state

    return transformation(init, update)


def _check_law(law: str, initialise: Initialise | None) -> None:
    if law not in get_args(Law):
        raise ValueError(f"law={law!r}: must be one of {list(get_args(Law))}")
    if (law == "ash_adams") != (initialise is not None):
        raise ValueError(
            f"law={law!r}, initialise={initialise!r}: 'ash_adams' needs initialise, a function from a key to "
            "parameters, and the others take none"
        )


def _combination(law: str, shrink: ArrayLike, scale: ArrayLike) -> Callable[[Array, Array, Array], Array]:
    """`(added, update, param) -> new update`, computed in at least float32."""

    def combine(added: Array, update: Array, param: Array) -> Array:
        dtype = jnp.promote_types(jnp.result_type(update), jnp.float32)
        s, scaled = jnp.asarray(shrink, dtype), jnp.asarray(scale, dtype) * jnp.asarray(added, dtype)
        update, param = jnp.asarray(update, dtype), jnp.asarray(param, dtype)
        if law == "dohare":
            return update - (1 - s) * param + scaled
        return s * (param + update) + scaled - param

    return combine


def _drawn(initialise: Initialise | None, key: Key[Array, ""], params: Params) -> Params:
    assert initialise is not None
    drawn, is_left_out = initialise(key), lambda node: isinstance(node, optax.MaskedNode)
    arrays, structure = jax.tree.flatten(params, is_leaf=is_left_out)
    try:
        # Under `optax.masked` arrays are missing from the parameters, but not from what is drawn for them.
        fresh = structure.flatten_up_to(drawn)
    except ValueError:
        fresh = []
    pairs = list(zip(fresh, arrays, strict=False))
    if len(fresh) != len(arrays) or any(not is_left_out(a) and jnp.shape(d) != jnp.shape(a) for d, a in pairs):
        raise ValueError("initialise: its arrays are not those of the parameters; it must return a tree like them")
    return structure.unflatten([a if is_left_out(a) else d for d, a in pairs])
