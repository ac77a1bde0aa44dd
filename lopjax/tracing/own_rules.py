"""Calls with a derivative rule of the user's own, in wider networks.

A rule is traced at the sizes of its call. Entry by entry it is kept at any size (`lopjax.tracing.interpret`); else a
wider network has JAX's derivative of what the call computes, which is right where the rule says the same.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.tracing.atoms import Atom
from lopjax.tracing.flow import has_own_derivative
from lopjax.tracing.interpret import call_by_parts, grows, is_elementwise
from lopjax.tracing.jaxprs import Node, rebind, walk
from lopjax.tracing.wide import Sizes


def lost_rules(sizes: Sizes, known: dict[Node, bool]) -> list[Node]:
    """Calls whose rule a network of these sizes would not have, though it is another than JAX's derivative.

    Args:
        sizes: sizes of the wider network.
        known: whether a call's rule is JAX's derivative, as far as it has been asked; grows.
    """
    lost = []
    for node in walk(sizes.typing.program.block):
        if node.blocks and has_own_derivative(node) and grows(sizes, node) and not is_elementwise(sizes, node):
            if node not in known:
                known[node] = _is_derivative(sizes, node)
            lost += [] if known[node] else [node]
    return lost


def _is_derivative(sizes: Sizes, node: Node) -> bool:
    """Whether a rule gives JAX's own derivative of its call, at random numbers and at positive ones."""
    unchanged: Mapping[Atom, int] = {}
    parts = partial(call_by_parts, Sizes(sizes.typing, unchanged), node)
    compared = [_gap(node, parts, is_positive) for is_positive in (False, True)]
    finite = [gap for gap in compared if gap is not None]
    return bool(finite) and max(finite) < 1e-3


def _gap(node: Node, parts: Any, is_positive: bool) -> float | None:
    """Relative difference of the two derivatives; None if one is not finite."""
    random = np.random.default_rng(0)

    def drawn(aval: Any) -> jax.Array:
        if not jnp.issubdtype(aval.dtype, jnp.floating):
            return jnp.zeros(aval.shape, aval.dtype)
        draw = random.uniform(0.5, 1.5, aval.shape) if is_positive else random.normal(size=aval.shape)
        return jnp.asarray(draw, aval.dtype)

    given = [drawn(var.aval) for var in node.eqn.invars]
    places = [i for i, each in enumerate(given) if jnp.issubdtype(each.dtype, jnp.floating)]

    def floats(call: Any, *moved: jax.Array) -> list[jax.Array]:
        values = list(given)
        for place, each in zip(places, moved, strict=True):
            values[place] = each
        return [each for each in call(values) if jnp.issubdtype(each.dtype, jnp.floating)]

    @jax.jit
    def both(moved: list[jax.Array]) -> Any:
        pulled = []
        for call in (partial(rebind, node), parts):
            outputs, pull = jax.vjp(partial(floats, call), *moved)
            weights = [jnp.cos(jnp.arange(each.size, dtype=each.dtype)).reshape(each.shape) for each in outputs]
            pulled.append(pull(weights))
        return pulled

    rule, plain = (jax.tree.leaves(each) for each in both([given[place] for place in places]))
    size = max((float(jnp.abs(each).max(initial=0.0)) for each in (*rule, *plain)), default=0.0)
    if not np.isfinite(size):
        return None
    apart = max((float(jnp.abs(a - b).max(initial=0.0)) for a, b in zip(rule, plain, strict=True)), default=0.0)
    return apart / size if size else 0.0
