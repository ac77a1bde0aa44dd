"""Clones parted at no change of the function: plain ones, mirror twins, multiples; a block against a dense Hessian."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles.architectures import normal_variables

from lopjax.cloning import clone_variables, widen
from lopjax.detection import Multiples, activation_rows, nearest_units
from lopjax.interventions import REASONS, Setting, intervene, split_clones, start_intervention
from lopjax.losses import cross_entropy, mean_cross_entropy
from lopjax.models import mlp, vit
from lopjax.signals import observe
from lopjax.training import init_state, train_step

RANDOM = np.random.default_rng(2)
SGD = optax.sgd(0.1)
BATCH = jnp.asarray(RANDOM.normal(size=(12, 3))), jnp.asarray(RANDOM.integers(0, 3, 12))


def twins(activation, multiple, off=0.0):
    """Three units, of which 2 is `multiple` times 1 in all that it reads and writes, up to a change of size `off`."""
    model = mlp((3,), (3,), 3, activation=activation)
    variables = jax.tree.map(np.array, normal_variables(model))
    random, hidden, classes = np.random.default_rng(9), *(variables["params"][k] for k in ("hidden_0", "classes"))
    hidden["kernel"][:, 2] = multiple * hidden["kernel"][:, 1] + off * random.normal(size=3)
    hidden["bias"][2] = multiple * hidden["bias"][1]
    classes["kernel"][2] = multiple * classes["kernel"][1]
    return model, jax.tree.map(jnp.asarray, variables)


@partial(jax.jit, static_argnums=0)
def act(setting, state, seen, tolerance, loss_tolerance):
    """One program for all that is tested on one network: the numbers may be traced."""
    intervention = split_clones(tolerance, 1, loss_tolerance=loss_tolerance)
    return intervene(intervention, setting, state, seen, jax.random.key(0), 0)


def run(model, variables, batch=BATCH, **numbers):
    """The state before and after one act, and the report."""
    setting = Setting(model, SGD, mean_cross_entropy)
    state = start_intervention(split_clones(), setting, init_state(variables, SGD))
    seen = observe(model, variables, batch, signals=False)
    after, report = act(setting, state, seen, numbers.get("tolerance", 0.01), numbers.get("loss_tolerance", 1e-3))
    return setting, state, after, report


def distance(model, state, multiples, batch=BATCH):
    tap = model.apply(state.variables, batch[0])[2]["hidden_0"]
    return float(jnp.min(nearest_units(activation_rows([tap]), multiples).distance))


@pytest.mark.parametrize(
    ("activation", "multiple", "multiples"),
    [
        ("tanh", -1.0, Multiples(False, True)),
        ("relu", 2.0, Multiples(True, False)),
    ],
)
def test_clones_part_at_the_next_gradient_and_no_logit_changes(x64, activation, multiple, multiples):
    """The control: without the push the same step of SGD leaves them clones."""
    model, variables = twins(activation, multiple)
    setting, state, after, report = run(model, variables)
    assert REASONS[int(report.reason)] == "it has changed the network"
    assert list(np.flatnonzero(report.touched["hidden_0"])) == [1, 2]
    logits = [model.apply(s.variables, BATCH[0])[0] for s in (state, after)]
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-12)
    changed = [
        np.any(a != b, axis=-1)
        for a, b in zip(
            *(jax.tree.leaves(s.variables["params"]["classes"]["kernel"]) for s in (state, after)), strict=True
        )
    ]
    np.testing.assert_array_equal(changed[0], [False, True, True])
    step = jax.jit(lambda state: train_step(model, setting.optimizer, state, BATCH)[0])
    assert distance(model, step(state), multiples) < 1e-14
    assert distance(model, step(after), multiples) > 1e-4


def test_clones_that_nobody_reads_part_too(x64):
    """The state after every reset: outgoing weights are zero; what parts them has the length of incoming ones."""
    model, variables = twins("tanh", 1.0)
    kernel = variables["params"]["classes"]["kernel"].at[1:].set(0.0)
    variables["params"]["classes"]["kernel"] = kernel
    setting, state, after, report = run(model, variables)
    assert REASONS[int(report.reason)] == "it has changed the network"
    logits = [model.apply(s.variables, BATCH[0]).logits for s in (state, after)]
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-12)
    step = jax.jit(lambda state: train_step(model, setting.optimizer, state, BATCH)[0])
    plain = Multiples(False, False)
    assert distance(model, step(state), plain) < 1e-14
    assert distance(model, step(after), plain) > 1e-4


@pytest.mark.slow
def test_the_push_is_the_outgoing_part_of_the_lowest_eigenvector(x64):
    """Against a dense Hessian on the directions that part the two units, eigenvectors by NumPy."""
    model, variables = twins("tanh", 1.0)
    *_, after, report = run(model, variables)
    assert bool(report.touched["hidden_0"].any())
    params = variables["params"]
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.hessian(lambda x: cross_entropy(model, {}, BATCH)(unravel(x)))(flat))
    columns = []
    for layer, name, index in [
        *(("hidden_0", "kernel", (i, ...)) for i in range(3)),
        ("hidden_0", "bias", ...),
        *(("classes", "kernel", (..., k)) for k in range(3)),
    ]:
        direction = jax.tree.map(np.zeros_like, jax.tree.map(np.asarray, params))
        direction[layer][name][index] = [0, 0.5**0.5, -(0.5**0.5)]
        columns.append(jax.flatten_util.ravel_pytree(direction)[0])
    basis = np.stack(columns, axis=1)
    values, vectors = np.linalg.eigh(basis.T @ hessian @ basis)
    assert values[0] < -1e-3
    expected = vectors[4:, 0] / np.linalg.norm(vectors[4:, 0])
    push = np.asarray(after.variables["params"]["classes"]["kernel"] - params["classes"]["kernel"])
    np.testing.assert_allclose(push[1], -push[2], atol=1e-14)
    length = np.linalg.norm(push)
    np.testing.assert_allclose(abs(push[1] @ expected) * 2**0.5 / length, 1, rtol=1e-8)
    np.testing.assert_allclose(length, 0.1 * np.linalg.norm(params["classes"]["kernel"][1]), rtol=1e-10)


@pytest.mark.parametrize(
    ("off", "numbers", "reason"),
    [
        (1e-3, {"tolerance": 0.05}, "it has changed the network"),
        (1e-3, {"tolerance": 1e-6}, "no unit met its condition"),
        (1e-3, {"tolerance": 0.05, "loss_tolerance": 0.0}, "it would have changed the function by more than"),
    ],
)
def test_near_clones_are_moved_to_equality_first_if_the_loss_bears_it(x64, off, numbers, reason):
    model, variables = twins("tanh", 1.0, off)
    _, state, after, report = run(model, variables, **numbers)
    assert REASONS[int(report.reason)].startswith(reason)
    kernel = after.variables["params"]["hidden_0"]["kernel"]
    acted = "changed the network" in reason
    assert bool(np.array_equal(kernel[:, 1], kernel[:, 2])) == acted
    if not acted:
        jax.tree.map(np.testing.assert_array_equal, after.variables, state.variables)


def test_nothing_is_done_where_no_direction_leads_down(x64):
    """Clones that nobody listens to and whose block is zero: a fitted or dead pair."""
    model, variables = twins("relu", 1.0)
    params = jax.tree.map(lambda leaf: leaf, variables["params"])
    params["hidden_0"]["bias"] = params["hidden_0"]["bias"].at[1:].set(-50.0).at[0].set(1.0)
    _, state, after, report = run(model, {"params": params})
    assert REASONS[int(report.reason)] == "no unit met its condition"  # dead units are no clones
    silent = jax.tree.map(jnp.asarray, variables["params"])
    silent["classes"]["kernel"] = jnp.zeros_like(silent["classes"]["kernel"])
    silent["classes"]["bias"] = jnp.zeros(3)
    even = BATCH[0], jnp.full((12, 3), 1 / 3)  # targets that are met: every backward signal is 0
    setting = Setting(model, optax.sgd(0.1), lambda z, t: jnp.mean(jnp.sum((jax.nn.softmax(z) - t) ** 2, axis=1)))
    intervention = split_clones(every=1)
    state = start_intervention(intervention, setting, init_state({"params": silent}, setting.optimizer))
    seen = observe(model, state.variables, even, loss=setting.loss, signals=False)
    after, report = jax.jit(lambda s, o: intervene(intervention, setting, s, o, jax.random.key(0), 0))(state, seen)
    assert REASONS[int(report.reason)] == "no direction of descent leads away from the clones"
    jax.tree.map(np.testing.assert_array_equal, after.variables, state.variables)


@pytest.mark.slow
def test_streams_and_heads_of_a_transformer_split(x64):
    """A network cloned everywhere; pairs of every space are candidates, layer norm or not."""
    base = vit((4, 4, 1), 3, patch=2, width=4, depth=1, heads=2, mlp_ratio=1.0)
    variables = clone_variables(normal_variables(base), base.wiring, 2)
    images = jnp.asarray(RANDOM.normal(size=(5, 4, 4, 1)))
    _, state, after, report = run(widen(base, 2), variables, (images, jnp.array([0, 1, 2, 0, 1])))
    touched = {space: int(mask.sum()) for space, mask in report.touched.items()}
    assert sorted(touched.values()) == [0, 0, 2]
    logits = [widen(base, 2).apply(s.variables, images)[0] for s in (state, after)]
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-12)
