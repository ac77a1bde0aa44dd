"""What users give as a batch or a tolerance: taken, or refused in one sentence that says what it was."""

import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.arguments.batches import as_batch, check_tolerance


def test_lists_and_trees_of_labels_become_arrays():
    inputs, labels = as_batch(([[1.0, 2.0], [3.0, 4.0]], {"class": np.array([0, 1]), "weight": np.ones(2)}))
    assert inputs.shape == (2, 2)
    assert labels["class"].shape == labels["weight"].shape == (2,)
    given = jnp.ones((2, 3), jnp.bfloat16)
    assert as_batch((given, jnp.zeros(2, bool)))[0] is given


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("ab", "batch is a str: batch must be"),
        (None, "batch is a NoneType"),
        ((np.ones((2, 3)),), "batch is a tuple"),
        (("hello", np.zeros(2)), "inputs: a str of type <U5; must be an array of numbers"),
        ((np.ones((2, 3)), np.array(["a", "b"])), "labels: a ndarray of type <U1"),
        ((np.ones((0, 3)), np.zeros(2)), r"inputs: shape \(0, 3\); must hold at least one sample"),
        ((3.0, np.zeros(2)), r"inputs: shape \(\); must hold"),
    ],
)
def test_what_is_no_batch_is_named(batch, message, unchecked):
    with pytest.raises(ValueError, match=message):
        as_batch(batch)


def test_a_tolerance_is_a_number_from_0_on(unchecked):
    for good in (None, 0, 1e-3, np.float32(0.1), jnp.asarray(0.1)):
        check_tolerance(good)
    for bad in (float("nan"), -1e-9, "1", [0.1]):
        with pytest.raises(ValueError, match=r"tolerance=.*must be a number from 0 on"):
            check_tolerance(bad)
