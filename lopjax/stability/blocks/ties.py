"""Maxima over units, or absolute values of their differences: clones tie there, a kink that no activation shows."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lopjax.cloning import Partition
from lopjax.losses import Batch
from lopjax.manifolds import Clusters, cloned_manifold, normal_part, tree_norm
from lopjax.model import Model, Variables
from lopjax.stability.blocks.results import at_least
from lopjax.tolerance import TWO_ORDERS_OF_SUMMATION

_ORDERING = frozenset({
    "reduce_max", "reduce_min", "argmax", "argmin", "sort", "top_k", "cummax", "cummin", "max", "min", "abs",
})  # fmt: skip
_STEP = 1e-9


def spaces_with_ties(
    model: Model, variables: Variables, batch: Batch, clusters: Mapping[str, Clusters], size: int, train: bool
) -> tuple[str, ...]:
    """Spaces whose clones tie in a function that the network takes of its units: a maximum, a sort, |h - h'|.

    Only spaces that are read by something other than parameters (`Wiring.coupled`) are tested, and only if the program
    contains an ordering or an absolute value. Along a normal direction of length s the outputs of clones change only to
    second order, by s², which is below rounding at s = 1e-9 relative to the parameters; at a tie they change by s. One
    forward program in float64.

    Args:
        model: the cloned network.
        variables: its variables, at a point of BC.
        batch: inputs and labels.
        clusters: clusters of every space with clones.
        size: samples per pass.
        train: whether batch norm uses the statistics of the batch.
    """
    asked = [space for space in clusters if space in model.wiring.coupled]
    if not asked:
        return ()
    with jax.enable_x64(True):
        variables, inputs = at_least(variables, jnp.float64), jnp.asarray(batch[0])
        inputs = inputs.astype(jnp.float64) if jnp.issubdtype(inputs.dtype, jnp.floating) else inputs
        parts = [inputs[start : start + size] for start in range(0, len(inputs), size)]

        def logits(params: Any, part: jax.Array) -> jax.Array:
            return model.apply({**variables, "params": params}, part, train=train, dropout_rate=0.0).logits

        if _ORDERING.isdisjoint(_primitives(jax.make_jaxpr(logits)(variables["params"], parts[0]).jaxpr)):
            return ()
        forward = jax.jit(logits)

        def is_tied(space: str) -> bool:
            change = _normal_direction(model, variables["params"], {space: tuple(clusters[space].ids.tolist())})
            moved = jax.tree.map(lambda leaf, part: leaf + _STEP * part, variables["params"], change)
            return any(_differ(forward(moved, part), forward(variables["params"], part)) for part in parts)

        return tuple(space for space in asked if is_tied(space))


def _differ(there: jax.Array, here: jax.Array) -> bool:
    """Whether logits differ by more than rounding."""
    noise = TWO_ORDERS_OF_SUMMATION * float(jnp.finfo(here.dtype).eps) * float(jnp.max(jnp.abs(here)))
    return bool(jnp.max(jnp.abs(there - here)) > noise)


def _normal_direction(model: Model, params: Any, partition: Partition) -> Any:
    """A random direction off the leaf of one space, as long as the parameters."""
    leaf = cloned_manifold(params, model.wiring, partition)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    draw = [jax.random.normal(key, each.shape, each.dtype) for key, each in zip(keys, leaves, strict=True)]
    normal = normal_part(leaf, tree.unflatten(draw))
    scale = jnp.maximum(tree_norm(params), 1.0) / tree_norm(normal)
    return jax.tree.map(lambda each: scale * each, normal)


def _primitives(jaxpr: Any) -> Iterator[str]:
    """Names of the primitives of a program, except those inside functions with custom derivatives (softmax)."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        if eqn.primitive.name.startswith("custom_jvp"):
            continue
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from _primitives(inner)
