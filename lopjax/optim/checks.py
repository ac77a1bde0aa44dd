"""Checks and random keys shared by all transformations."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Key, PyTree

from lopjax.random.philox import spell_out_products
from lopjax.wiring import Wiring

Params = PyTree[Array]


def check(name: str, value: Any, minimum: float, maximum: float = math.inf, *, is_open: bool = False) -> None:
    """Refuse a concrete number out of range, or equal to the maximum if the range is open; traced values pass."""
    check_single(name, value)
    if isinstance(value, Tracer):
        return
    number = np.asarray(value)
    is_number = jnp.issubdtype(number.dtype, jnp.integer) or jnp.issubdtype(number.dtype, jnp.floating)
    is_below = np.less if is_open else np.less_equal
    if not is_number or not np.all(np.isfinite(number) & (number >= minimum) & is_below(number, maximum)):
        end = ")" if is_open else "]"
        allowed = f"finite and at least {minimum:g}" if maximum == math.inf else f"in [{minimum:g}, {maximum:g}{end}"
        raise ValueError(f"{name}={value!r}: must be {allowed}")


def check_single(name: str, value: Any) -> None:
    """Refuse an array with axes where one number is meant: it would be broadcast against the parameters."""
    if np.ndim(value):
        raise ValueError(f"{name} has shape {np.shape(value)}: must be one number; vmap over several")


def as_key(seed: ArrayLike) -> Key[Array, ""]:
    """One key from an integer or a key, either of which may be traced."""
    array = seed if isinstance(seed, jax.Array) else np.asarray(seed)
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    if not is_key and not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"seed={seed!r}: must be an integer or a jax.random.key")
    if array.shape:
        raise ValueError(f"seed has shape {array.shape}: must be one integer or one key; vmap over several")
    key = own_copy(jnp.asarray(seed)) if is_key else jax.random.key(seed, impl="philox4x32")
    # Programs over several devices compile Philox keys only if their products are spelled out (`lopjax.random`).
    if jax.device_count() > 1:
        spell_out_products()
    return key


def own_copy(key: Key[Array, ""]) -> Key[Array, ""]:
    """The same key in its own buffer, so that donating it invalidates no other array."""
    return jax.random.wrap_key_data(jnp.array(jax.random.key_data(key)), impl=jax.random.key_impl(key))


def check_is_wiring(wiring: Any) -> None:
    """Refuse an argument that is not a wiring, such as the model itself."""
    if not isinstance(wiring, Wiring):
        raise ValueError(f"wiring is a {type(wiring).__name__}: must be a Wiring; a model's own is model.wiring")


def transformation(
    init: Callable[..., Any], update: Callable[..., tuple[Params, Any]]
) -> optax.GradientTransformationExtraArgs:
    """A transformation that checks what it is given, and ignores extra arguments meant for others in its chain.

    Args:
        init: `params -> state`.
        update: `(updates, state, params) -> (updates, state)`; `params` may be `None`.

    Returns:
        The transformation. Its two functions raise a `ValueError` for parameters or updates that are not arrays of real
        numbers, and for updates that do not have the structure and shapes of the parameters.
    """

    def checked_init(params: Params) -> Any:
        check_real(params)
        return init(params)

    def checked_update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        check_real(updates, "updates")
        if params is not None:
            check_real(params)
            check_like(updates, params)
        return update(updates, state, params)

    return optax.with_extra_args_support(optax.GradientTransformation(checked_init, checked_update))


def keep_dtypes(
    optimizer: optax.GradientTransformation, *, is_widened: bool = False
) -> optax.GradientTransformationExtraArgs:
    """The same optimizer with dtypes of updates and state preserved: a traced float32 rate would promote bfloat16.

    Args:
        optimizer: any.
        is_widened: whether it sees 16-bit arrays in float32, in which its state then is, too. In float16 the square of
            1e-4 is 0, and so is an epsilon of 1e-8.
    """
    seen = widened if is_widened else lambda tree: tree

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        new, new_state = optimizer.update(seen(updates), state, seen(params))
        return optax.tree.cast_like(new, updates), optax.tree.cast_like(new_state, state)

    return transformation(lambda params: optimizer.init(seen(params)), update)


def widened(tree: Any) -> Any:
    """The same arrays in float32 at least."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.promote_types(jnp.result_type(leaf), jnp.float32)), tree)


def check_real(params: Params, name: str = "params") -> None:
    """Refuse integer and complex arrays, and what is no array of numbers, naming the array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = getattr(leaf, "dtype", None) or np.asarray(leaf).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            where = jax.tree_util.keystr(path)
            raise ValueError(f"{name}{where} has dtype {dtype}: must be real and floating-point")


def check_like(updates: Params, params: Params) -> None:
    """Refuse updates that are not those of the parameters (or of the moments of a state, which are like them)."""
    trees = [jax.tree_util.tree_leaves_with_path(tree) for tree in (updates, params)]
    if jax.tree.structure(updates) != jax.tree.structure(params):
        paths = [{jax.tree_util.keystr(path) for path, _ in tree} for tree in trees]
        differ = sorted(paths[0] ^ paths[1])[:4]
        raise ValueError(f"updates must be a tree like the parameters; they differ in {differ or 'the kinds of nodes'}")
    for (path, update), (_, param) in zip(*trees, strict=True):
        if np.shape(update) != np.shape(param):
            raise ValueError(
                f"updates{jax.tree_util.keystr(path)} has shape {np.shape(update)}: must have that of its parameter, "
                f"{np.shape(param)}"
            )


def check_params(name: str, params: Params | None) -> None:
    """Refuse an update without parameters."""
    if params is None:
        raise ValueError(f"{name} needs the parameters: call update(updates, state, params)")
