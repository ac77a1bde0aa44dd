"""Tests of effect on the stream of UPGD's appendix H: gradient descent loses plasticity, two remedies do not.

Same starts, data and network for all; errors are those of `python -m benchmarks.plasticity`, seeds side by side. UPGD
itself is left to that command: its program takes minutes to compile for seeds side by side.
"""

from functools import partial

import jax
import numpy as np
import pytest

from benchmarks.plasticity import ENDS, SEEDS, STUDENT, errors

pytestmark = pytest.mark.slow


def growth(method: str) -> np.ndarray:
    """By seed, error over the last tasks less that over the first."""
    keys = jax.vmap(partial(jax.random.key, impl="philox4x32"))(np.arange(SEEDS))
    found = np.asarray(jax.vmap(partial(errors, method))(keys))
    return found[:, -ENDS:].mean(axis=1) - found[:, :ENDS].mean(axis=1)


@pytest.fixture(scope="module")
def of_sgd():
    return growth("sgd")


def half(values: np.ndarray) -> float:
    """Half of the 95 % interval of a mean over seeds."""
    return STUDENT * np.std(values, ddof=1) / np.sqrt(len(values))


def test_gradient_descent_loses_plasticity(of_sgd):
    assert of_sgd.mean() - half(of_sgd) > 0.005


@pytest.mark.parametrize("method", ["normalise and project", "parseval 1e-3"])
def test_a_remedy_does_not(method, of_sgd):
    """Its own growth excludes half of gradient descent's, and so does the paired difference; the control is above."""
    own = growth(method)
    assert own.mean() + half(own) < of_sgd.mean() / 2
    spared = of_sgd - own
    assert spared.mean() - half(spared) > of_sgd.mean() / 2
