"""Checks that refuse losses with a meaningless Hessian, trees that do not match, and matrices too large for memory."""

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import Var
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from lopjax.arguments.numbers import check_numbers
from lopjax.curvature.programs import read_program
from lopjax.tolerance import TWO_ORDERS_OF_SUMMATION

DENSE_LIMIT_BYTES = 2 * 2**30


def check_loss(loss: Callable[[PyTree], object], params: PyTree) -> None:
    """Refuse a loss whose Hessian is not meaningful, saying why and what to do.

    The loss is called twice and must give the same number up to rounding (1,000 eps, relative), which excludes dropout,
    fresh noise and reshuffled batches. Its gradient must predict how it changes (to 5 %, over a short step along the
    gradient), and its Hessian must exist and be symmetric (in the plane of one vector and its product); this fails if
    because of `stop_gradient` or a custom derivative the "gradient" is that of another function or of none. Costs about
    six evaluations, three gradients and two Hessian-vector products. Derivatives may be undefined at isolated points,
    as for ReLU.

    Args:
        loss: the candidate, `params -> scalar`.
        params: a point at which to try it: concrete arrays, so call this outside `jax.jit`.

    Raises:
        ValueError: a parameter is not floating point; the value is not one real floating-point number, differs between
            two calls or is not finite; it does not depend differentiably on any parameter; its gradient is not its
            derivative; it rounds inside to fewer digits than the parameters have; or its Hessian cannot be taken, is
            not finite or is not symmetric.

    Example:
        >>> check_loss(lambda p: p**2, jnp.arange(3.0))
        Traceback (most recent call last):
        ValueError: loss returned an array of shape (3,): it must be one number; take its mean over samples and outputs
    """
    check_numbers("params", params)
    _check_float_leaves(params)
    _check_scalar_output(loss, params)
    _check_depends_on_parameters(loss, params)
    _check_program(loss, params)
    trial = _tried(loss, params)
    _check_repeatable(trial)
    _check_finite_derivatives(trial)
    _check_gradient(trial)
    _check_symmetric(trial)


def _check_program(loss: Callable[[PyTree], object], params: PyTree) -> None:
    """Refuse a loss that rounds inside to fewer digits than its parameters have."""
    program = read_program(loss, params)
    dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(params)), jnp.float32)
    if program.narrowest < jnp.finfo(dtype).bits:
        raise ValueError(
            f"the loss rounds to {program.narrowest} bits inside, and parameters are {dtype}: its curvature is not "
            f"known to their digits. Take the cast out, or pass parameters of {program.narrowest} bits"
        )


def check_same_tree(params: PyTree, other: PyTree, name: str) -> None:
    """Refuse a tree whose structure, shapes or dtypes are not those of `params`.

    Args:
        params: the reference.
        other: the tree to compare.
        name: name of the tree in the message.

    Raises:
        ValueError: the trees differ; the message names the first array that does.
    """
    check_numbers("params", params)
    check_numbers(name, other)
    if jax.tree.structure(params) != jax.tree.structure(other):
        raise ValueError(
            f"{name} has the tree {jax.tree.structure(other)}: it must be that of the parameters, "
            f"{jax.tree.structure(params)}; build it with jax.tree.map over the parameters"
        )
    for (path, expected), leaf in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(other)):
        if jnp.shape(expected) != jnp.shape(leaf) or jnp.result_type(expected) != jnp.result_type(leaf):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)} and dtype "
                f"{jnp.result_type(leaf)}: the parameter has {jnp.shape(expected)} and "
                f"{jnp.result_type(expected)}; reshape or cast it"
            )


def check_size(what: str, shape: Sequence[int], dtype: DTypeLike, max_bytes: int, instead: str) -> None:
    """Refuse an array of more than `max_bytes`.

    Args:
        what: name of the array in the message.
        shape: its shape.
        dtype: its dtype.
        max_bytes: the limit.
        instead: the alternative, for the message.

    Raises:
        ValueError: the array would be too large; the message gives its shape, its size in bytes and the alternative.
    """
    num_bytes = prod(shape) * jnp.dtype(dtype).itemsize
    if num_bytes > max_bytes:
        raise ValueError(
            f"{what} of shape {tuple(shape)} in {jnp.dtype(dtype).name} takes {num_bytes:,} bytes, more than "
            f"max_bytes={max_bytes:,}: {instead}, or raise max_bytes"
        )


def _check_float_leaves(params: PyTree) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("params has no arrays: pass the tree of parameters to differentiate with respect to")
    for path, leaf in leaves:
        if isinstance(leaf, Tracer):
            raise ValueError("params is traced: check_loss compares numbers; call it outside jax.jit and jax.vmap")
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}: parameters must be real "
                "floating point; close over integers and keys instead of passing them as parameters"
            )


def _check_scalar_output(loss: Callable, params: PyTree) -> None:
    value = jax.eval_shape(loss, params)
    if not isinstance(value, jax.ShapeDtypeStruct):
        raise ValueError(
            f"loss returned {jax.tree.structure(value)}: it must be one number; return the loss alone, without "
            "auxiliary values"
        )
    if value.shape != ():
        raise ValueError(
            f"loss returned an array of shape {value.shape}: it must be one number; take its mean over samples "
            "and outputs"
        )
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"loss returned dtype {value.dtype}: it must be real floating point; counts and comparisons have no "
            "derivatives, use a differentiable loss"
        )


class _Trial(NamedTuple):
    """Numbers from one compiled program; v is a direction, H the Hessian, g the gradient, s a step along it.

    Attributes:
        first: the loss.
        second: the loss, traced a second time.
        size: at least 1.
        slope: |g|.
        step: s.
        ends: `(loss, g'g / |g|)` at `-s` and at `s`.
        once: |Hv|².
        twice: v'H(Hv).
        is_finite: whether g and Hv are finite.
    """

    first: Array
    second: Array
    size: Array
    slope: Array
    step: Array
    ends: tuple[Array, Array]
    once: Array
    twice: Array
    is_finite: Array


def _tried(loss: Callable, params: PyTree) -> _Trial:
    """Everything that the checks need, in one program: operation by operation it would cost ten times as much."""

    def trial(params: PyTree) -> _Trial:
        flat, unravel = ravel_pytree(params)
        # Two traces of the loss: noise and iterators on the host give each a different number.
        first, second = jnp.asarray(loss(params)), jnp.asarray(loss(params))
        value_and_gradient = jax.value_and_grad(lambda flat: loss(unravel(flat)))
        gradient_of = jax.grad(lambda flat: loss(unravel(flat)))
        value, gradient = value_and_gradient(flat)
        slope, tiny, epsilon = jnp.linalg.norm(gradient), jnp.finfo(flat.dtype).tiny, jnp.finfo(flat.dtype).eps
        along = gradient / jnp.maximum(slope, tiny)
        # Along the gradient alone any Hessian of rank one looks symmetric.
        generic = jnp.sin(1.0 + jnp.arange(flat.size, dtype=flat.dtype))
        direction = along + generic / jnp.linalg.norm(generic)

        def multiply(vector: Array, _: None) -> tuple[Array, Array]:
            product = jax.jvp(gradient_of, (flat,), (vector,))[1]
            return product, product

        _, (once, twice) = jax.lax.scan(multiply, direction, None, length=2)
        size = jnp.maximum(1.0, jnp.abs(value))
        longest = 0.01 * (1.0 + jnp.linalg.norm(flat))
        step = jnp.minimum(jnp.sqrt(epsilon) * size / jnp.maximum(slope, tiny), longest)
        values, slopes = jax.lax.map(value_and_gradient, jnp.stack([flat - step * along, flat + step * along]))
        is_finite = jnp.isfinite(gradient).all() & jnp.isfinite(once).all()
        return _Trial(
            first, second, size, slope, step, (values, slopes @ along), once @ once, direction @ twice, is_finite
        )

    try:
        program = jax.jit(trial).lower(params)
    except Exception as error:
        raise ValueError(
            f"loss is not twice differentiable: {type(error).__name__}: {error}; replace callbacks, while loops and "
            "custom derivatives that lack a second one"
        ) from error
    return program.compile()(params)


def _check_repeatable(trial: _Trial) -> None:
    first, second = trial.first, trial.second
    if not (np.isfinite(first) and np.isfinite(second)):
        raise ValueError(
            f"loss returned {first} and {second}: it must be finite; look for overflow in the parameters or data"
        )
    if abs(first - second) > TWO_ORDERS_OF_SUMMATION * jnp.finfo(first.dtype).eps * max(abs(first), abs(second)):
        raise ValueError(
            f"loss returned {first} and then {second} at the same parameters: it must be deterministic; fix the "
            "batch, switch dropout off or close over one random key"
        )


def _check_depends_on_parameters(loss: Callable, params: PyTree) -> None:
    """Look for a path of derivatives from a parameter to the loss; the derivative may be zero (dead units)."""
    try:
        program = jax.make_jaxpr(lambda at, along: jax.jvp(loss, (at,), (along,))[1])(params, params).jaxpr
    except Exception:  # Not differentiable at all: reported in detail below.
        return
    reached = set(program.invars[len(jax.tree.leaves(params)) :])
    for equation in program.eqns:
        if any(isinstance(variable, Var) and variable in reached for variable in equation.invars):
            reached.update(equation.outvars)
    if not any(isinstance(variable, Var) and variable in reached for variable in program.outvars):
        raise ValueError(
            "loss has no differentiable dependence on any parameter: argmax, rounding, comparisons, casts to "
            "integers and stop_gradient cut it; use a differentiable loss"
        )


def _check_finite_derivatives(trial: _Trial) -> None:
    if not trial.is_finite:
        raise ValueError(
            "loss is finite but its derivatives are not: look for square roots, norms or logarithms at zero and "
            "add a small constant inside them"
        )


def _check_gradient(trial: _Trial) -> None:
    """The change of the loss along its gradient must be the integral of the gradient (Simpson's rule)."""
    epsilon = jnp.finfo(trial.slope.dtype).eps
    if trial.step * trial.slope < TWO_ORDERS_OF_SUMMATION * epsilon * trial.size:
        return  # too flat: rounding would decide
    values, slopes = trial.ends
    change = values[1] - values[0]
    predicted = trial.step / 3 * (slopes[0] + 4 * trial.slope + slopes[1])
    is_resolved = abs(predicted - 2 * trial.step * trial.slope) < 0.01 * predicted
    if is_resolved and abs(change - predicted) > 0.05 * predicted:
        raise ValueError(
            f"loss changes by {change} along its gradient where the gradient predicts {predicted}: a stop_gradient "
            "or custom derivative makes the gradient that of another function; remove it"
        )


def _check_symmetric(trial: _Trial) -> None:
    """|Hv|² = v'H(Hv) iff H is symmetric in that plane. Not required if H is rounding noise."""
    floor = jnp.finfo(trial.once.dtype).eps * trial.size**2
    if trial.once > floor and abs(trial.once - trial.twice) > 0.01 * trial.once:
        raise ValueError(
            f"loss has a Hessian H that is not symmetric: |Hv|² = {trial.once} but v'HHv = {trial.twice}; a "
            "stop_gradient or custom derivative makes its gradient the gradient of nothing, remove it"
        )
