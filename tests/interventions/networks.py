"""Tiny networks of every architecture, with batches; all initial weights come from one draw, which compiles fast."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax import models
from lopjax.model import Model


class Case(NamedTuple):
    """A network and a batch."""

    model: Model
    batch: tuple[np.ndarray, np.ndarray]


IMAGE = (4, 4, 1)
MAKERS: dict[str, tuple[Callable[[], Model], tuple[int, ...]]] = {
    "mlp": (lambda: models.mlp((3,), (4, 5), 2, norm="batch"), (3,)),
    "plain": (lambda: models.mlp((3,), (4,), 2), (3,)),
    "small": (lambda: models.mlp((3,), (4,), 2, norm="batch"), (3,)),
    "cnn": (lambda: models.cnn(IMAGE, 2, channels=(3,), dense=4), IMAGE),
    "resnet": (lambda: models.resnet18(IMAGE, 2, width=3, blocks=(1, 1)), IMAGE),
    "vit": (lambda: models.vit(IMAGE, 2, patch=2, width=4, depth=1, heads=2, mlp_ratio=1.0, activation="relu"), IMAGE),
}


@cache
def case(name: str) -> Case:
    make, shape = MAKERS[name]
    random = np.random.default_rng(0)
    return Case(drawn_at_once(make()), (random.normal(size=(6, *shape)), random.integers(2, size=6)))


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
