"""A small network with one of each trap, made by hand; importable, as `--network sick:make` wants it."""

from functools import cache

import jax
import numpy as np

from lopjax.doctor import Diagnosis, diagnose
from lopjax.models import mlp

RANDOM = np.random.default_rng(5)
INPUTS, LABELS = RANDOM.normal(size=(40, 4)).astype(np.float32), RANDOM.integers(3, size=40)


def make():
    """The network of the checkpoint."""
    return mlp((4,), (8,), 3, norm="none")


def plain():
    """The same network as any JAX function, with parameters to read shapes from and inputs: to be traced."""
    model = make()
    return lambda params, x: model.apply({"params": params}, x).logits, variables()["params"], INPUTS


def variables():
    """Unit 1 is a clone of 0, 3 almost one of 2, 5 is dead; 4, 6 and 7 are well."""
    shapes = jax.eval_shape(make().init, jax.random.key(0))
    tree = jax.tree.map(lambda leaf: np.random.default_rng(1).normal(size=leaf.shape).astype(np.float32), shapes)
    hidden, out = tree["params"]["hidden_0"], tree["params"]["classes"]["kernel"]
    hidden["bias"][:] = 1
    hidden["kernel"][:, 1], out[1] = hidden["kernel"][:, 0], out[0]
    hidden["kernel"][:, 3] = 1.002 * hidden["kernel"][:, 2]
    hidden["bias"][5] = -30
    return tree


@cache
def diagnosis() -> Diagnosis:
    """Made once for all tests."""
    return diagnose(make(), variables(), (INPUTS, LABELS), learning_rate=0.1)
