"""Losses with corners of their own: at a hinge, a tie or a zero residual, derivatives are those of one side."""

import jax
import jax.numpy as jnp
import pytest

from lopjax.losses import mean_cross_entropy, mean_squared_error
from lopjax.models import mlp
from lopjax.stability import Stability, unit_blocks

BASE = mlp((3,), (2,), 3, activation="tanh")
INPUTS = jax.random.normal(jax.random.key(1), (6, 3))
LABELS, TARGETS = jnp.arange(6) % 3, jnp.zeros((6, 3))


def absolute_error(outputs, targets):
    return jnp.mean(jnp.sum(jnp.abs(outputs - targets), axis=-1))


def hinge(logits, labels):
    """Crammer and Singer: the best wrong logit ties with the others where all are 0."""
    wrong = jnp.where(jax.nn.one_hot(labels, 3, dtype=bool), -jnp.inf, logits)
    return jnp.mean(jax.nn.relu(1 + wrong.max(axis=1) - jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]))


def blocks(loss, labels, head):
    params = BASE.init(jax.random.key(0))["params"]
    kernel = head * jnp.asarray([[1.0, -0.5, 0.25], [0.75, 2, -1]])
    params = {**params, "classes": {"kernel": kernel, "bias": jnp.zeros(3)}}
    return unit_blocks(BASE, {"params": params}, (INPUTS, labels), 2, loss=loss).total


@pytest.mark.parametrize(("loss", "labels"), [(absolute_error, TARGETS), (hinge, LABELS)])
def test_a_network_without_outputs_stands_at_the_corner_of_the_loss(x64, loss, labels):
    """|y| is least at y = 0, so no direction curves downwards there, whatever the derivative of one side says."""
    report = blocks(loss, labels, head=0.0)
    assert (report.verdict, report.n_plus, report.n_minus, report.exact) == (Stability.UNDECIDED, 0, 0, False)
    assert "the loss's own derivative" in report.note
    assert blocks(loss, labels, head=1.0).verdict is Stability.SADDLE


@pytest.mark.parametrize(("loss", "labels"), [(mean_squared_error, TARGETS + 1), (mean_cross_entropy, LABELS)])
def test_smooth_losses_have_no_corner(x64, loss, labels):
    report = blocks(loss, labels, head=0.0)
    assert report.verdict is Stability.SADDLE
    assert report.exact
