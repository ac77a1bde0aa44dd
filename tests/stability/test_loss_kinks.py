"""Losses with corners of their own: at a hinge, a tie or a zero residual, derivatives are those of one side."""

import jax
import jax.numpy as jnp
import pytest

from lopjax.cloning import clone_variables
from lopjax.losses import mean_cross_entropy, mean_squared_error, of_parameters
from lopjax.manifolds import cloned_manifold
from lopjax.models import mlp
from lopjax.stability import Stability, classify, unit_blocks

BASE, WIDE = mlp((3,), (2,), 3, activation="tanh"), mlp((3,), (4,), 3, activation="tanh")
INPUTS = jax.random.normal(jax.random.key(1), (6, 3))
LABELS, TARGETS = jnp.arange(6) % 3, jnp.zeros((6, 3))


def absolute_error(outputs, targets):
    return jnp.mean(jnp.sum(jnp.abs(outputs - targets), axis=-1))


def hinge(logits, labels):
    """Crammer and Singer: the best wrong logit ties with the others where all are 0."""
    wrong = jnp.where(jax.nn.one_hot(labels, 3, dtype=bool), -jnp.inf, logits)
    return jnp.mean(jax.nn.relu(1 + wrong.max(axis=1) - jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]))


def network(head):
    params = BASE.init(jax.random.key(0))["params"]
    kernel = head * jnp.asarray([[1.0, -0.5, 0.25], [0.75, 2, -1]])
    return {"params": {**params, "classes": {"kernel": kernel, "bias": jnp.zeros(3)}}}


def by_blocks(loss, labels, head, method="auto"):
    return unit_blocks(BASE, network(head), (INPUTS, labels), 2, loss=loss, method=method, num_steps=8).total


def by_products(loss, labels, head):
    return by_blocks(loss, labels, head, "batched hvp")


def by_classify(loss, labels, head, method="dense"):
    clones = clone_variables(network(head), BASE.wiring, 2)
    manifold = cloned_manifold(clones["params"], WIDE.wiring, {"hidden_0": (0, 0, 1, 1)})
    of_clones = of_parameters(WIDE, clones, (INPUTS, labels), loss=loss)
    return classify(of_clones, clones["params"], manifold, method, num_steps=8)


def by_lanczos(loss, labels, head):
    return by_classify(loss, labels, head, "lanczos")


ROUTES = [by_blocks, by_products, by_classify, by_lanczos]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("loss", "labels"), [(absolute_error, TARGETS), (hinge, LABELS)])
def test_a_network_without_outputs_stands_at_the_corner_of_the_loss(x64, loss, labels, route):
    """|y| is least at y = 0, so no direction curves downwards there, whatever the derivative of one side says."""
    report = route(loss, labels, head=0.0)
    assert report.verdict is Stability.UNDECIDED
    assert max(report.n_plus, report.n_minus, 0) == 0
    assert not report.exact
    assert "kink" in report.note
    # The control: away from the corner the same loss has a verdict.
    assert route(loss, labels, head=1.0).verdict is Stability.SADDLE


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("loss", "labels"), [(mean_squared_error, TARGETS + 1), (mean_cross_entropy, LABELS)])
def test_smooth_losses_have_no_corner(x64, loss, labels, route):
    report = route(loss, labels, head=0.0)
    assert report.verdict is Stability.SADDLE
    assert report.exact is (route in (by_blocks, by_classify))
