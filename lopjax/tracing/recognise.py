"""The activation function between two values of a program, identified with one of the library's where possible."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.activations import ACTIVATIONS, Activation
from lopjax.tracing.flow import has_own_derivative
from lopjax.tracing.interpret import entrywise_call
from lopjax.tracing.jaxprs import Node, rebind, walk
from lopjax.tracing.sites import FoundSite
from lopjax.tracing.types import Typing

_POINTS = np.linspace(-6.0, 6.0, 49)
_FAR = np.array([6.9, 8.3, 11.7, 19.3, 31.1, 57.7])
_BETWEEN = np.concatenate([7.0 * np.sin(np.arange(1.0, 60.0)), _FAR, -_FAR])
"""Points between those, and beyond."""

_FARTHEST, _STEEPEST, _MOST_NUMBERS = 1e4, 20.0, 12
"""How far out values are compared, and derivatives, where a formula with exponentials may overflow."""


def recognised(typing: Typing, site: FoundSite, names: dict[str, str | None]) -> str | Activation:
    """Name of the library's activation that agrees with a site on a grid, up to rounding; else a name without facts.

    Args:
        typing: axes of the program.
        site: the site whose activation is to be named.
        names: names recognised so far, by program text; extended here, so that equal functions are evaluated once.
    """
    if not site.nodes:
        return "identity"
    if own := calls_with_own_derivative(typing, site):
        return _of_own_derivative(typing, site, own)
    text = _written(typing, site)
    if text not in names:
        function = entrywise(typing, site)
        names[text] = _name_of(function, function, _numbers(typing, site))
    return names[text] or Activation("unnamed", entrywise(typing, site))


def calls_with_own_derivative(typing: Typing, site: FoundSite) -> list[Node]:
    """The calls inside a site that bring their own derivative rule, which is not to be read off what they compute."""
    calls = filter(has_own_derivative, typing.program.custom_calls)
    return [call for call in calls if any(node in site.nodes for node in walk(call.blocks[0]))]


def has_own_rule(typing: Typing, site: FoundSite) -> bool:
    """Whether a site's derivative is neither JAX's nor that of an activation of the library."""
    own = calls_with_own_derivative(typing, site) if site.nodes else []
    return bool(own) and not isinstance(_of_own_derivative(typing, site, own), str)


def _of_own_derivative(typing: Typing, site: FoundSite, calls: Sequence[Node]) -> str | Activation:
    """The library's activation if values and the rule's derivatives agree with it, else one without facts."""
    values, inside = entrywise(typing, site), {node for call in calls for node in walk(call.blocks[0])}
    if len(calls) == 1 and site.nodes <= inside and len(calls[0].inputs) == 1:
        kept = partial(_bound, calls[0])
        name = _name_of(values, kept, _numbers(typing, site), is_double(typing, site))
        return name or Activation("unnamed", kept)
    return Activation("unnamed", values)


def is_double(typing: Typing, site: FoundSite) -> bool:
    """Whether a site computes in 64 bits: a derivative rule of one's own is written down in the site's type."""
    return typing.program.avals[site.pre].dtype == np.float64


def _bound(call: Node, z: Any) -> Any:
    """A call of one array, in its own type, on an array of any shape."""
    given = jnp.asarray(z).astype(call.eqn.invars[0].aval.dtype)
    return entrywise_call(call, [given])[0].astype(jnp.asarray(z).dtype)


def _numbers(typing: Typing, site: FoundSite) -> tuple[float, ...]:
    """The numbers in a site's nodes, with their products and quotients: where something may happen."""
    scalars = [typing.program.scalar(value) for node in site.nodes for value in node.inputs]
    given = {abs(float(each)) for each in scalars if isinstance(each, np.number | int | float)}
    own = sorted(each for each in given if np.isfinite(each) and each)[:_MOST_NUMBERS]
    made = {*own, *(a * b for a in own for b in own), *(a / b for a in own for b in own)}
    return tuple(sorted(each for each in made if each <= _FARTHEST))


def _is(
    function: Callable[[Any], Any], derivative_of: Callable[[Any], Any], name: str, points: np.ndarray, double: bool
) -> bool:
    """Whether values and derivatives are those of an activation of the library; on its flat pieces, exactly 0.

    Args:
        function: the function that was found.
        derivative_of: the function with the derivative that the program has, which may be a rule of its own.
        name: name of the activation.
        points: where to look.
        double: whether the program runs in double precision.
    """
    entry = ACTIVATIONS[name]
    smooth = np.abs(points) <= _STEEPEST
    for kink in entry.kinks or ():
        smooth &= np.abs(points - kink) > 1e-3
    with jax.enable_x64(double):
        z = jnp.asarray(points, jnp.float64 if double else jnp.float32)
        weights = jnp.ones_like(z)
        values = [np.asarray(each(z)) for each in (function, entry)]
        slopes = [np.asarray(jax.vjp(each, z)[1](weights)[0]) for each in (derivative_of, entry)]
    flat = np.zeros(points.shape, bool)
    for low, high in entry.flat or ():
        flat |= (points > low) & (points < high)
    return (
        np.allclose(*values, rtol=2e-6, atol=2e-6)
        and np.allclose(*(each[smooth] for each in slopes), rtol=1e-5, atol=1e-5)
        and not slopes[0][flat & smooth].any()
    )


def _written(typing: Typing, site: FoundSite) -> str:
    """The nodes of a site as text: in order, with parameters, and with operands by position or by value."""
    order = _order(site, {value: node for node in site.nodes for value in node.outputs})
    places = {site.pre: "z"} | {node.outputs[0]: f"v{index}" for index, node in enumerate(order)}
    lines = []
    for node in order:
        given = [places.get(value) or str(typing.program.scalar(value)) for value in node.inputs]
        lines.append(f"{node.name} {given} {sorted(node.params.items(), key=lambda item: item[0])}")
    return "; ".join([*lines, places[site.post]])


def _name_of(
    function: Callable[[Any], Any], derivative_of: Callable[[Any], Any], numbers: Sequence[float], double: bool = False
) -> str | None:
    """Name of the library's activation that a function, and the derivative of another, agree with.

    Few points tell most of them apart; the name is given only if it also holds between them, far out, on both sides of
    every number that the function mentions, and for the derivative: a straight-through estimator has a ReLU's values.
    """
    try:
        with jax.enable_x64(double):
            values = np.asarray(function(jnp.asarray(_POINTS, jnp.float64 if double else jnp.float32)))
    except (TypeError, ValueError, KeyError):
        return None
    near = np.outer([*numbers, 0.0], [0.99, 1.01]).ravel()
    points = np.concatenate([_BETWEEN, near, -near])
    for name, known in _known().items():
        if np.allclose(values, known, rtol=2e-6, atol=2e-6) and _is(function, derivative_of, name, points, double):
            return name
    return None


@cache
def _known() -> dict[str, np.ndarray]:
    with jax.enable_x64(False):
        every = jax.jit(lambda points: {name: entry(points) for name, entry in ACTIVATIONS.items()})
        return {name: np.asarray(values) for name, values in every(_POINTS.astype(np.float32)).items()}


def entrywise(typing: Typing, site: FoundSite) -> Callable[[Any], Any]:
    """A site's nodes as a function of an array of any shape, since they compute entry by entry."""
    program = typing.program
    outputs = {value: node for node in site.nodes for value in node.outputs}
    order = _order(site, outputs)

    def known(value: int, like: Any) -> Any:
        number = program.scalar(value)
        if number is None:
            raise ValueError("a constant array cannot be part of an activation function")
        dtype = program.avals[value].dtype
        return jnp.asarray(number, like.dtype if jnp.issubdtype(dtype, jnp.floating) else dtype)

    def function(z: Any) -> Any:
        values = {site.pre: z}
        for node in order:
            given = [values[value] if value in values else known(value, z) for value in node.inputs]
            shape = jnp.broadcast_shapes(*map(jnp.shape, given))
            wide = [jnp.broadcast_to(each, shape) for each in given]
            values[node.outputs[0]] = rebind(node, wide, _params(node, z))[0]
        return values[site.post]

    return function


def _params(node: Node, z: Any) -> dict[str, Any]:
    """Parameters with the type of the computation."""
    params = dict(node.params)
    if node.name == "convert_element_type" and jnp.issubdtype(params["new_dtype"], jnp.floating):
        params["new_dtype"] = z.dtype
    return params


def _order(site: FoundSite, outputs: dict[int, Node]) -> list[Node]:
    """The nodes on which the post-activation depends, in topological order."""
    order: list[Node] = []

    def visit(value: int) -> None:
        node = outputs.get(value)
        if node is not None and node not in order and value != site.pre:
            for each in node.inputs:
                visit(each)
            order.append(node)

    visit(site.post)
    return order
