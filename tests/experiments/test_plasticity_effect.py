"""Tests of effect on the stream of UPGD's appendix H: gradient descent loses plasticity, three remedies do not.

Same starts, data and network for all; errors are those of `python -m benchmarks.plasticity`. UPGD itself is left to
that command and to the table of `docs/remedies.md`: drawing its noise takes minutes.
"""

from functools import partial

import jax
import numpy as np
import pytest

from benchmarks.plasticity import ENDS, SEEDS, STUDENT, errors

pytestmark = pytest.mark.slow


def errors_of(method: str) -> np.ndarray:
    """Of every seed and task."""
    keys = jax.vmap(partial(jax.random.key, impl="philox4x32"))(np.arange(SEEDS))
    return np.asarray(jax.vmap(partial(errors, method))(keys))


def growth(found: np.ndarray) -> np.ndarray:
    """By seed, error over the last tasks less that over the first."""
    return found[:, -ENDS:].mean(axis=1) - found[:, :ENDS].mean(axis=1)


@pytest.fixture(scope="module")
def of_sgd():
    return errors_of("sgd")


def half(values: np.ndarray) -> float:
    """Half of the 95 % interval of a mean over seeds."""
    return STUDENT * np.std(values, ddof=1) / np.sqrt(len(values))


def test_gradient_descent_loses_plasticity(of_sgd):
    lost = growth(of_sgd)
    assert lost.mean() - half(lost) > 0.005


@pytest.mark.parametrize("method", ["normalise and project", "parseval 1e-3", "l2 towards the start 5e-2"])
def test_a_remedy_does_not(method, of_sgd):
    """Its own growth excludes half of gradient descent's, and so does the paired difference; the control is above."""
    own, lost = growth(errors_of(method)), growth(of_sgd)
    assert own.mean() + half(own) < lost.mean() / 2
    spared = lost - own
    assert spared.mean() - half(spared) > lost.mean() / 2
