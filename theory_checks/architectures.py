"""Networks with clusters of unequal size, for every check that must hold whatever the architecture.

A new architecture joins by one row of `ARCHITECTURES`. Widths are those of the *cloned* network.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.model import Model, Variables
from lopjax.models import ACTIVATIONS, cnn, mlp, resnet18, vit
from theory_checks.check import Size

NUM_CLASSES = 3


class Architecture(NamedTuple):
    """One row: how to build the network, the shape of an input, whether gradients are taken in train mode."""

    build: Callable[[], Model]
    input_shape: tuple[int, ...]
    train: bool = False


def _mlp(activation: str, norm: str) -> Architecture:
    build = partial(mlp, (5,), (6, 5), NUM_CLASSES, activation=activation, norm=norm)
    return Architecture(build, (5,), train=norm == "batch")


def _cnn(activation: str, norm: str) -> Architecture:
    shape = (4, 4, 2)
    build = partial(cnn, shape, NUM_CLASSES, channels=(4, 6), dense=5, activation=activation, norm=norm)
    return Architecture(build, shape, train=norm == "batch")


def _resnet(norm: str) -> Architecture:
    shape = (4, 4, 2)
    build = partial(resnet18, shape, NUM_CLASSES, width=4, blocks=(1, 1), norm=norm)
    return Architecture(build, shape, train=norm == "batch")


def _vit(activation: str, norm: str) -> Architecture:
    shape = (4, 4, 2)
    build = partial(
        vit, shape, NUM_CLASSES, patch=2, width=8, depth=1, heads=4, mlp_ratio=0.75, activation=activation, norm=norm
    )
    return Architecture(build, shape, train=norm == "batch")


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        **{f"mlp, {activation}": _mlp(activation, "none") for activation in ACTIVATIONS},
        "mlp, tanh, batch norm": _mlp("tanh", "batch"),
        "mlp, relu, layer norm": _mlp("relu", "layer"),
        "cnn, relu": _cnn("relu", "none"),
        "cnn, tanh, batch norm": _cnn("tanh", "batch"),
        "resnet, relu, batch norm": _resnet("batch"),
        "vit, gelu, layer norm": _vit("gelu", "layer"),
    }
)
"""Every architecture, by the name that tables show."""

MORE_ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        **{
            f"mlp, {activation}, {norm} norm": _mlp(activation, norm)
            for activation in ACTIVATIONS
            for norm in ("batch", "layer")
        },
        "cnn, gelu, layer norm": _cnn("gelu", "layer"),
        "resnet, relu, layer norm": _resnet("layer"),
        "resnet, relu": _resnet("none"),
        "vit, relu, batch norm": _vit("relu", "batch"),
        "vit, gelu": _vit("gelu", "none"),
    }
)
"""Combinations that only `--full` adds."""


def architectures(size: Size) -> dict[str, Architecture]:
    """The rows of the table, for `--full` with further combinations."""
    return {**ARCHITECTURES, **MORE_ARCHITECTURES} if size == "full" else dict(ARCHITECTURES)


def random_variables(model: Model, seed: int = 0, scale: float = 0.6) -> Variables:
    """Uniform parameters in [-scale, scale] and statistics in [1, 1 + scale²], by NumPy: nothing to compile."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    drawn = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-scale, scale, leaf.shape)), dict(shapes))
    if "batch_stats" in drawn:
        drawn["batch_stats"] = jax.tree.map(lambda leaf: 1 + leaf**2, drawn["batch_stats"])
    return drawn


def random_batches(shape: tuple[int, ...], count: int, samples: int = 8, seed: int = 1) -> tuple[jax.Array, jax.Array]:
    """`count` batches of normal inputs with random labels: `(count, samples, *shape)` and `(count, samples)`."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, samples, *shape))
    return jnp.asarray(inputs), jnp.asarray(rng.integers(0, NUM_CLASSES, (count, samples)))
