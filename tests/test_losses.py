"""Losses against the formula written in NumPy, and their derivatives against the textbook ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax import losses
from lopjax.losses import (
    accuracy,
    check_batch,
    check_inputs,
    cross_entropy,
    mean_cross_entropy,
    mean_squared_error,
    mse,
)
from lopjax.models import mlp
from lopjax.probes import symptoms
from lopjax.signals import observe

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(6, 4)) * 3
LABELS = np.array([0, 3, 1, 1, 2, 0])
TARGETS = RANDOM.normal(size=(6, 4))


def test_cross_entropy_is_the_mean_negative_log_probability(x64):
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    expected = -np.mean(np.log(probabilities[np.arange(6), LABELS]))
    value, gradient = jax.value_and_grad(mean_cross_entropy)(jnp.asarray(LOGITS), jnp.asarray(LABELS))
    np.testing.assert_allclose(value, expected, rtol=1e-14)
    np.testing.assert_allclose(gradient, (probabilities - np.eye(4)[LABELS]) / 6, atol=1e-15)


def test_cross_entropy_survives_large_logits(x64):
    value = mean_cross_entropy(jnp.array([[1e4, 0.0], [0.0, 1e4]]), jnp.array([0, 0]))
    np.testing.assert_allclose(value, 5e3)


def test_squared_error_sums_over_outputs_and_averages_over_samples(x64):
    value, gradient = jax.value_and_grad(mean_squared_error)(jnp.asarray(LOGITS), jnp.asarray(TARGETS))
    np.testing.assert_allclose(value, sum(np.sum((y - t) ** 2) for y, t in zip(LOGITS, TARGETS)) / 12, rtol=1e-14)
    np.testing.assert_allclose(gradient, (LOGITS - TARGETS) / 6, atol=1e-15)


def test_accuracy_counts_right_answers():
    logits = jnp.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert accuracy(logits, jnp.array([1, 0, 0, 0])) == 0.75
    assert accuracy(logits, jnp.array([0, 1, 0, 1])) == 0.0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int32])
def test_accuracy_of_many_samples_is_not_rounded(unchecked, dtype):
    logits = jnp.tile(jnp.array([[1, 0]], dtype), (1000, 1))
    found = accuracy(logits, (jnp.arange(1000) < 1).astype(jnp.int32))
    np.testing.assert_allclose(found, 0.999, rtol=1e-6)


def test_a_diverged_network_has_no_accuracy():
    nan, inf = jnp.nan, jnp.inf
    for logits in ([nan, nan, nan], [9.0, nan, 0.0], [inf, 0.0, 0.0], [-inf, -inf, -inf]):
        for label in range(3):
            both = jnp.array([[1.0, 2.0, 3.0], logits])
            assert jnp.isnan(accuracy(both, jnp.array([2, label])))
            assert not jnp.isfinite(mean_cross_entropy(both, jnp.array([2, label])))
    # Minus infinity rules a class out; the loss of another is finite.
    ruled_out = jnp.array([[-inf, 1.0, 0.0]])
    assert accuracy(ruled_out, jnp.array([1])) == 1
    assert jnp.isfinite(mean_cross_entropy(ruled_out, jnp.array([1])))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(("name", "labels"), [("cross_entropy", LABELS), ("mse", TARGETS)])
def test_loss_of_parameters_is_the_loss_of_logits(x64, name, labels, train):
    model = mlp((3,), (5,), 4, norm="batch", dropout=0.5)
    variables = model.init(jax.random.key(0))
    inputs, labels = jnp.asarray(RANDOM.normal(size=(6, 3))), jnp.asarray(labels)
    of_params, of_logits = {
        "cross_entropy": (cross_entropy, mean_cross_entropy),
        "mse": (mse, mean_squared_error),
    }[name]
    loss = of_params(model, variables, (inputs, labels), train=train)
    logits = model.apply(variables, inputs, train=train, dropout_rate=0.0).logits
    np.testing.assert_allclose(loss(variables["params"]), of_logits(logits, labels), rtol=1e-15)
    # Train mode normalises by this batch: another value. The statistics passed in are not the parameters' business.
    other = of_params(model, variables, (inputs, labels), train=not train)
    assert abs(other(variables["params"]) - loss(variables["params"])) > 1e-3


def test_gradient_of_the_loss_against_finite_differences(x64):
    model = mlp((3,), (5,), 4, activation="tanh")
    variables = model.init(jax.random.key(0))
    loss = jax.jit(cross_entropy(model, variables, (jnp.asarray(RANDOM.normal(size=(6, 3))), jnp.asarray(LABELS))))
    flat, unravel = jax.flatten_util.ravel_pytree(variables["params"])
    direction = jnp.asarray(RANDOM.normal(size=flat.shape))
    slope = jnp.vdot(jax.grad(lambda vector: loss(unravel(vector)))(flat), direction)
    step = 1e-5
    difference = (loss(unravel(flat + step * direction)) - loss(unravel(flat - step * direction))) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": jnp.array([1, 2, 3, 1])}, r"labels 1\.\.3: must be classes, 0\.\.2"),
        ({"labels": jnp.array([-1, 0, 1, 1])}, r"labels -1\.\.1: must be classes, 0\.\.2"),
        ({"inputs": jnp.full((4, 2), jnp.nan)}, "inputs of the batch hold values that are not finite"),
        ({"labels": jnp.array([0, 1])}, "one label per input"),
    ],
)
def test_no_verdict_rests_on_a_batch_without_meaning(change, message, unchecked):
    from lopjax.certificates import certify_cloned
    from lopjax.cloning import clone_variables, uniform_partition, widen
    from lopjax.stability import unit_blocks

    base = mlp((2,), (2,), 3)
    variables, wide = base.init(jax.random.key(0)), widen(base, 2)
    good = {"inputs": jnp.ones((4, 2)), "labels": jnp.array([0, 1, 2, 2])}
    batch = tuple({**good, **change}.values())
    with pytest.raises(ValueError, match=message):
        unit_blocks(base, variables, batch, 2)
    cloned = clone_variables(variables, base.wiring, 2)
    with pytest.raises(ValueError, match=message):
        certify_cloned(wide, cloned, batch, uniform_partition(wide.wiring, 2))
    losses.check_batch(base, variables, tuple(good.values()), loss=losses.mean_cross_entropy)


def test_inputs_that_a_network_does_not_take_and_labels_that_a_loss_does_not_are_refused(unchecked):
    model = mlp((6,), (5,), 3)
    variables, inputs, labels = model.init(jax.random.key(0)), np.ones((4, 6), np.float32), np.arange(4) % 3
    check_inputs(model, variables, inputs)
    check_batch(model, variables, (inputs, labels), loss=mean_cross_entropy)
    for wrong in (inputs[:, :4], inputs[:0], "hello"):
        with pytest.raises(ValueError, match=r"the network does not take inputs|must hold|must be an array of numbers"):
            check_inputs(model, variables, wrong)
    for wrong in (labels.astype(np.float32), np.eye(3, dtype=np.float32)[labels], labels > 1):
        with pytest.raises(ValueError, match=r"labels .*must be one integer class per sample"):
            check_batch(model, variables, (inputs, wrong), loss=mean_cross_entropy)


def test_a_batch_without_samples_is_refused_where_signals_and_symptoms_are_taken(unchecked):
    model = mlp((6,), (5,), 3)
    variables, labels = model.init(jax.random.key(0)), np.zeros(0, int)
    for look in (observe, symptoms):
        with pytest.raises(ValueError, match="no samples"):
            look(model, variables, (np.ones((0, 6), np.float32), labels))


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6])
def test_a_mean_over_samples_is_one_whatever_is_left_for_the_last_batch(x64, size):
    model = mlp((3,), (2,), 4)
    variables, batch = model.init(jax.random.key(0)), (jnp.asarray(RANDOM.normal(size=(6, 3))), LABELS)
    losses.check_mean_over_samples(model, variables, batch, loss=mean_cross_entropy, size=size)
    total = lambda logits, labels: 6 * mean_cross_entropy(logits, labels) / len(labels)  # noqa: E731
    if size < 6:
        with pytest.raises(ValueError, match="no plain mean over samples"):
            losses.check_mean_over_samples(model, variables, batch, loss=total, size=size)
