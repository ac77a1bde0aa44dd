"""What a program does behind its types: casts to fewer digits, and derivatives that are not those of its values.

Both are read off the program. A network of float64 arrays that multiplies in float32 is as exact as float32, and a
rounding with the derivative 1 (a straight-through estimator) has a "Hessian" that is none of its loss.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_LIBRARIES = tuple(f"/{name}/" for name in ("jax", "flax", "optax"))
_KEEPS_A_MAXIMUM = frozenset({"broadcast_in_dim", "reshape", "max", "convert_element_type", "squeeze", "select_n"})
_STEPS = (1e-3, 1e-5, 1e-7, 1e-9)
_AGREES = 1e-3


class Program(NamedTuple):
    """What was read off a program.

    Attributes:
        narrowest: bits of the coarsest floating-point type to which an array of more digits is rounded; 64 if none is.
        is_own: whether a derivative may not be that of the value: a rule or `stop_gradient` of the author's.
        is_backward_only: whether a rule for reverse mode alone is among them, of which no second derivative is taken.
    """

    narrowest: int
    is_own: bool
    is_backward_only: bool


def read_program(function: Callable[..., Any], *arguments: Any) -> Program:
    """Trace a function of trees of arrays, or of their shapes, and read the three facts; nothing is computed."""
    equations = list(_equations(jax.make_jaxpr(function)(*arguments).jaxpr))
    narrowed = [bits for equation, _ in equations if (bits := _bits_left(equation)) is not None]
    own = [equation for equation, made_by in equations if _is_own(equation, made_by)]
    backward = any(equation.primitive.name.startswith("custom_vjp") for equation in own)
    return Program(min(narrowed, default=64), bool(own), backward)


def check_derivative(what: str, function: Callable[[Any], jax.Array], point: Any) -> None:
    """Refuse a derivative that is not that of the value, by central differences in float64 along a random direction.

    Agreement to 1e-3 at one of four steps passes: a kink that a step crosses is no contradiction, and a function that
    is constant between its jumps has differences 0 at every step, whatever its rule says.

    Args:
        what: "the network", "the loss".
        function: from a tree of arrays to one array.
        point: where; concrete.

    Raises:
        ValueError: the two differ.
    """
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        point = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), point)
        size = max(float(np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(point)))), 1.0)
        direction = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), point)
        weights = random.normal(size=jax.eval_shape(function, point).shape)

        def scalar(point: Any) -> jax.Array:
            return jnp.sum(weights * function(point))

        def at(step: float) -> jax.Array:
            return forward(jax.tree.map(lambda leaf, part: leaf + step * part, point, direction))

        forward = jax.jit(scalar)
        value, gradient = jax.jit(jax.value_and_grad(scalar))(point)
        rule = sum(float(jnp.vdot(*pair)) for pair in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
        changes = [float(at(step) - at(-step)) / (2 * step) for step in (size * each for each in _STEPS)]
    noise = 1e-12 * abs(float(value)) / _STEPS[0]
    if not np.isfinite([rule, *changes]).all():
        return  # seen elsewhere, and said there
    if min(abs(change - rule) - _AGREES * (abs(change) + abs(rule)) for change in changes) > noise:
        raise ValueError(
            f"the derivative of {what} is not that of its value: along one direction JAX says {rule:.3g} and the "
            f"values change by {changes[-1]:.3g}. Something has a derivative of its own, such as a straight-through "
            "estimator; no verdict about curvature or stationarity holds: take the estimator out"
        )


def check_forward_mode(what: str, program: Program) -> None:
    """Refuse a rule for reverse mode alone where second derivatives are taken.

    Raises:
        ValueError: there is one.
    """
    if program.is_backward_only:
        raise ValueError(
            f"{what} has a derivative for reverse mode alone (jax.custom_vjp), of which JAX takes no second one: use "
            "jax.custom_jvp"
        )


def _equations(jaxpr: Any) -> Iterator[tuple[Any, dict[Any, Any]]]:
    """Every equation with what made the variables around it; the insides of JAX's own rules are left out."""
    made_by = {out: equation for equation in jaxpr.eqns for out in equation.outvars}
    for equation in jaxpr.eqns:
        yield equation, made_by
        if equation.primitive.name.startswith("custom_") and not _is_own(equation, made_by):
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)


def _bits_left(equation: Any) -> int | None:
    """Bits of the result where an equation rounds an array of floats to fewer; None where it does not.

    Scalars and weak types do not count: they are constants of the program, such as the 0 of a `where`.
    """
    given = [_bits(each.aval) for each in equation.invars]
    left = [_bits(each.aval) for each in equation.outvars]
    if equation.primitive.name == "reduce_precision":
        return min(left, default=0) // 2 or None
    widest, kept = max(given, default=0), min((each for each in left if each), default=0)
    return kept if 0 < kept < widest else None


def _bits(aval: Any) -> int:
    """Bits of a floating-point array; 0 for anything else."""
    is_array = getattr(aval, "ndim", 0) > 0 and not getattr(aval, "weak_type", False)
    return jnp.finfo(aval.dtype).bits if is_array and jnp.issubdtype(aval.dtype, jnp.floating) else 0


def _is_own(equation: Any, made_by: dict[Any, Any]) -> bool:
    """Whether a derivative was written by the author of the network or the loss, not by JAX, Flax or Optax."""
    name = equation.primitive.name
    if name == "stop_gradient":
        return not _is_maximum(equation.invars[0], made_by)
    if not name.startswith(("custom_jvp", "custom_vjp")):
        return False
    inner = equation.params.get("call_jaxpr") or equation.params.get("fun_jaxpr")
    source = str(getattr(getattr(inner, "jaxpr", inner), "debug_info", None) and inner.jaxpr.debug_info.func_src_info)
    return not ("site-packages" in source and any(each in source for each in _LIBRARIES))


def _is_maximum(variable: Any, made_by: dict[Any, Any]) -> bool:
    """Whether a variable is a maximum over an axis: what a softmax subtracts needs no derivative."""
    equation = None if hasattr(variable, "val") else made_by.get(variable)
    if equation is None:
        return False
    if equation.primitive.name == "reduce_max":
        return True
    is_where = equation.params.get("name") == "_where"
    passes = is_where or equation.primitive.name in _KEEPS_A_MAXIMUM
    return passes and any(_is_maximum(each, made_by) for each in equation.invars)
