"""Tiny networks of every architecture, with batches; all initial weights come from one draw, which compiles fast."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from oracles.architectures import ARCHITECTURES, IMAGE, batch_of, build

from lopjax.model import Model


class Case(NamedTuple):
    """A network and a batch."""

    model: Model
    batch: tuple[np.ndarray, np.ndarray]


# The architectures of the library, for two classes, and smaller ones whose programs compile faster.
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ARCHITECTURES},
    "plain": ("mlp", {"widths": (4,), "norm": "none"}),
    "small": ("mlp", {"widths": (4,)}),
    "cnn": ("cnn", {"channels": (3,), "norm": "none"}),
    "resnet": ("resnet", {"width": 3, "blocks": (1, 1)}),
}


@cache
def case(name: str) -> Case:
    architecture, options = OPTIONS[name]
    shape = (4, 4, 1) if ARCHITECTURES[architecture].shape == IMAGE else ARCHITECTURES[architecture].shape
    model = build(architecture, input_shape=shape, num_classes=2, **options)
    if ARCHITECTURES[architecture].is_of_tokens:
        return Case(drawn_at_once(model), jax.tree.map(np.asarray, batch_of(architecture, 6, num_classes=2)))
    random = np.random.default_rng(0)
    return Case(drawn_at_once(model), (random.normal(size=(6, *shape)), random.integers(2, size=6)))


def drawn_at_once(model: Model) -> Model:
    """The same network with uniform initial weights of the same variance, array by array; constants stay constants."""
    start = jax.tree.map(np.asarray, jax.jit(model.init)(jax.random.key(0)))
    leaves, structure = jax.tree.flatten(start)
    sizes, deviations = [leaf.size for leaf in leaves], [float(np.std(leaf)) for leaf in leaves]

    def one(leaf: np.ndarray, deviation: float, part: jax.Array) -> jax.Array:
        return deviation * part.reshape(leaf.shape) if deviation else jnp.asarray(leaf, part.dtype)

    def init(key: jax.Array):
        flat = jax.random.uniform(key, (sum(sizes),), minval=-(3**0.5), maxval=3**0.5)
        return structure.unflatten(map(one, leaves, deviations, jnp.split(flat, np.cumsum(sizes)[:-1])))

    return model._replace(init=init)
