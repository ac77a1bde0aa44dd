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
    if isinstance(value, Tracer):
        return
    number = np.asarray(value)
    is_number = jnp.issubdtype(number.dtype, jnp.integer) or jnp.issubdtype(number.dtype, jnp.floating)
    is_below = np.less if is_open else np.less_equal
    if not is_number or not np.all(np.isfinite(number) & (number >= minimum) & is_below(number, maximum)):
        end = ")" if is_open else "]"
        allowed = f"finite and at least {minimum:g}" if maximum == math.inf else f"in [{minimum:g}, {maximum:g}{end}"
        raise ValueError(f"{name}={value!r}: must be {allowed}")


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
    """A transformation that ignores extra arguments meant for others in its chain."""
    return optax.with_extra_args_support(optax.GradientTransformation(init, update))


def keep_dtypes(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same optimizer with dtypes of updates and state preserved: a traced float32 rate would promote bfloat16."""

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        new, new_state = optimizer.update(updates, state, params)
        return optax.tree.cast_like(new, updates), optax.tree.cast_like(new_state, state)

    return transformation(optimizer.init, update)


def check_real(params: Params) -> None:
    """Refuse integer and complex arrays, naming the array."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"params{name} has dtype {jnp.result_type(leaf)}: must be real and floating-point")


def check_params(name: str, params: Params | None) -> None:
    """Refuse an update without parameters."""
    if params is None:
        raise ValueError(f"{name} needs the parameters: call update(updates, state, params)")
