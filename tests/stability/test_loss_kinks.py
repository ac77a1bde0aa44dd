"""Corners that no activation shows: hinges, ties and zero residuals of the loss, maxima over clones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.losses import mean_cross_entropy, mean_squared_error, of_parameters
from lopjax.manifolds import check_partition, cloned_manifold
from lopjax.models import mlp
from lopjax.stability import Stability, classify, unit_blocks
from lopjax.stability.blocks.ties import spaces_with_ties
from lopjax.tracing import trace_model

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


# --- Maxima over units, in which clones tie -----------------------------------------------------------------------


def tied_network(take):
    """A traced network of 3 units that also passes on what `take` makes of its units."""

    def apply(params, inputs):
        h = jnp.tanh(inputs @ params["w"] + params["b"])
        return h @ params["v"] + take(h)[:, None]

    rng = np.random.default_rng(0)
    inputs, params = rng.normal(size=(7, 3)), {"w": (3, 3), "b": (3,), "v": (3, 2)}
    params = {name: rng.normal(size=shape) for name, shape in params.items()}
    traced = trace_model(apply, params, inputs, check=False)
    return (
        apply,
        params,
        traced.model,
        traced.split(params),
        (jnp.asarray(inputs), jnp.asarray(rng.normal(size=(7, 2)))),
    )


@pytest.mark.slow
def test_clones_that_tie_in_a_maximum_over_units_stand_at_a_kink(x64):
    """The oracle: second differences of the loss along the biases of two clones, which grow as 1/s."""
    apply, params, model, variables, batch = tied_network(lambda h: jnp.max(h, axis=1))
    blocks = unit_blocks(model, variables, batch, 2, loss=mean_squared_error, num_steps=4)
    assert blocks.total.verdict is Stability.UNDECIDED
    assert not blocks.total.exact
    assert "clones tie" in blocks.spaces["w"].reports[2].note
    wide = {name: np.repeat(params[name], 2, -1) for name in "wb"} | {"v": np.repeat(params["v"], 2, 0) / 2}

    def second_difference(step):
        def loss(side):
            bias = wide["b"] + side * step * np.array([0, 0, 0, 0, 1, -1])
            return float(mean_squared_error(apply({**wide, "b": bias}, batch[0]), batch[1]))

        return (loss(1) + loss(-1) - 2 * loss(0)) / step**2

    assert second_difference(1e-4) < 5 * second_difference(1e-3) < 0


def test_a_smooth_function_of_units_that_computes_with_their_maximum_has_no_kink(x64):
    def average(h):
        weights = jnp.exp(h - jnp.max(h, axis=1, keepdims=True))
        return jnp.sum(weights * h, axis=1) / jnp.sum(weights, axis=1)

    def spread(h):
        return jnp.mean(jnp.mean(jnp.abs(h[:, :, None] - h[:, None]), axis=2), axis=1)

    for take, expected in ((average, ()), (lambda h: jnp.max(h, axis=1), ("w",)), (spread, ("w",))):
        _, _, model, variables, batch = tied_network(take)
        wide, cloned = widen(model, 2), clone_variables(variables, model.wiring, 2)
        clusters = check_partition(wide.wiring, uniform_partition(wide.wiring, 2))
        assert spaces_with_ties(wide, cloned, batch, clusters, 7, False) == expected
