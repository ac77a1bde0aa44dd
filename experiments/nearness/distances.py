"""How near units and heads are to manifolds on which gradients would hold them. Pure, of parameters alone.

A unit is the vector v = (w, b, a) of its incoming weights, its bias and its outgoing weights: clones are trapped where
all of v agrees, not where activations alone do. Distances are relative: 0 is on the manifold.
"""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp

from lopjax.model import Params

LAYERS = ("hidden_0", "hidden_1", "classes")
Distance = Callable[[Params, Params, jax.Array], jax.Array]
"""`(parameters, initial parameters, key) -> a number a unit`; the key shuffles the units of a control."""


def unit_vectors(params: Params) -> list[jax.Array]:
    """Of every hidden layer the vectors (w, b, a), `(units, numbers)`."""
    return [
        jnp.concatenate([params[own]["kernel"].T, params[own]["bias"][:, None], params[following]["kernel"]], axis=1)
        for own, following in pairwise(LAYERS)
    ]


def shuffled(key: jax.Array, rows: jax.Array) -> jax.Array:
    """Every column permuted by itself: the same weights at the same places, of other units."""
    return jax.random.permutation(key, rows, axis=0, independent=True)


def nearest(rows: jax.Array, multiples: str) -> jax.Array:
    """Relative distance of every row to the nearest other, `|v_i - c v_k| / max(|v_i|, |c v_k|)`.

    Args:
        rows: `(units, numbers)`.
        multiples: the c that count: "equal" for 1, "signed" for 1 and -1, "weighted" for every c > 0.
    """
    sizes = jnp.linalg.norm(rows, axis=1)
    cosines = rows @ rows.T / jnp.maximum(sizes[:, None] * sizes[None], jnp.finfo(rows.dtype).tiny)
    cosines = jnp.abs(cosines) if multiples == "signed" else cosines
    if multiples == "weighted":
        # The nearest point of a ray, with both at one length: the sine of the angle, 1 beyond a right angle.
        gaps = jnp.where(cosines > 0, jnp.sqrt(jnp.maximum(1 - cosines**2, 0)), 1.0)
    else:
        share = jnp.minimum(sizes[:, None], sizes[None]) / jnp.maximum(sizes[:, None], sizes[None])
        gaps = jnp.sqrt(jnp.maximum(1 + share**2 - 2 * share * cosines, 0))
    return jnp.min(jnp.where(jnp.eye(len(rows), dtype=bool), jnp.inf, gaps), axis=1)


def to_clones(multiples: str, is_control: bool) -> Distance:
    """Distance to the nearest clone; of a control, after shuffling units."""

    def distance(params: Params, start: Params, key: jax.Array) -> jax.Array:
        del start
        layers = unit_vectors(params)
        if is_control:
            layers = [shuffled(jax.random.fold_in(key, n), rows) for n, rows in enumerate(layers)]
        return jnp.concatenate([nearest(rows, multiples) for rows in layers])

    return distance


def to_vanishing(is_control: bool) -> Distance:
    """Length of a unit over the root mean square of its layer's; of a control, after shuffling units."""

    def distance(params: Params, start: Params, key: jax.Array) -> jax.Array:
        del start
        layers = unit_vectors(params)
        if is_control:
            layers = [shuffled(jax.random.fold_in(key, n), rows) for n, rows in enumerate(layers)]
        sizes = [jnp.linalg.norm(rows, axis=1) for rows in layers]
        return jnp.concatenate([size / jnp.sqrt(jnp.mean(size**2)) for size in sizes])

    return distance


def to_level_set(is_control: bool) -> Distance:
    """Change of `|w|² + b² - |a|²` since the start, over `|w|² + b² + |a|²`; in a control a is the next unit's."""

    def split(params: Params) -> list[tuple[jax.Array, jax.Array]]:
        pairs = []
        for own, following in pairwise(LAYERS):
            read = jnp.sum(params[own]["kernel"] ** 2, 0) + params[own]["bias"] ** 2
            sent = jnp.sum(params[following]["kernel"] ** 2, 1)
            pairs.append((read, jnp.roll(sent, 1) if is_control else sent))
        return pairs

    def distance(params: Params, start: Params, key: jax.Array) -> jax.Array:
        del key
        both = zip(split(params), split(start), strict=True)
        return jnp.concatenate([jnp.abs((r - s) - (r0 - s0)) / (r + s) for (r, s), (r0, s0) in both])

    return distance


def to_equal_heads(is_control: bool) -> Distance:
    """Relative distance to the nearest head by what no invertible map of a head's coordinates changes.

    These are the products `Q K'` and `V O` of a head, biases of queries, keys and values included as a further input.
    The distance to another head is the larger of the two, each `|P - P'| / max(|P|, |P'|)`. In a control every head has
    the keys and the output map of the next one.
    """

    def products(params: Params) -> list[jax.Array]:
        heads = params["heads_0"]
        # Width axis first, coordinates, heads: as `lopjax.models.vit` has them.
        query, key, value = (
            jnp.concatenate([heads[name]["kernel"], heads[name]["bias"][None]]) for name in ("query", "key", "value")
        )
        out = heads["out"]["kernel"]
        if is_control:
            key, out = jnp.roll(key, 1, axis=2), jnp.roll(out, 1, axis=1)
        return [jnp.einsum("ach,bch->hab", query, key), jnp.einsum("ach,chb->hab", value, out)]

    def distance(params: Params, start: Params, key: jax.Array) -> jax.Array:
        del start, key
        gaps = []
        for matrices in products(params):
            flat = matrices.reshape(len(matrices), -1)
            sizes = jnp.linalg.norm(flat, axis=1)
            between = jnp.linalg.norm(flat[:, None] - flat[None], axis=2)
            gaps.append(between / jnp.maximum(sizes[:, None], sizes[None]))
        larger = jnp.maximum(*gaps)
        return jnp.min(jnp.where(jnp.eye(len(larger), dtype=bool), jnp.inf, larger), axis=1)

    return distance


def distance_named(name: str, is_control: bool) -> Distance:
    """The distance of `experiments.nearness.config.DISTANCES` with a name, or its control."""
    others = {"size": to_vanishing, "level": to_level_set, "heads": to_equal_heads}
    return others[name](is_control) if name in others else to_clones(name, is_control)
