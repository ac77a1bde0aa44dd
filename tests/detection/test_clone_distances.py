"""Graded distances to clones against loops over pairs in NumPy, on networks with twins made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.detection import activation_rows, clone_distances, multiples_by_parameters, near_clones
from lopjax.model import Tap
from lopjax.models import mlp, vit
from lopjax.wiring import In, Label, Out, Site, build_wiring

INPUTS = np.random.default_rng(0).normal(size=(40, 3))


def twins(activation, norm="none", last=-1.0):
    """Seven units: 1 copies 0, 2 is 0 times 2.5, 3 is 0 times `last`, 4 is 1 % off 0, 5 is generic, 6 is dead."""
    random = np.random.default_rng(1)
    model = mlp((3,), (7,), 2, activation=activation, norm=norm)
    variables = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), jax.eval_shape(model.init, jax.random.key(0)))
    kernel, bias = variables["params"]["hidden_0"]["kernel"], variables["params"]["hidden_0"]["bias"]
    for array in (kernel, bias):
        array[..., 1], array[..., 2], array[..., 3] = array[..., 0], 2.5 * array[..., 0], last * array[..., 0]
        array[..., 4] = array[..., 0] + 0.01 * random.normal(size=array.shape[:-1])
    kernel[:, 6], bias[6] = 0, -1 if activation == "relu" else 0
    return model, jax.tree.map(jnp.asarray, variables)


def slow_distance(rows, unit, multiples):
    """Over all other units and the multiples that count; `multiples` gets the ratio of the lengths."""
    lengths = np.linalg.norm(rows, axis=1)
    found = [np.inf]
    for other in range(len(rows)):
        if other != unit and lengths[unit] > 0 and lengths[other] > 0:
            for c in multiples(lengths[unit] / lengths[other]):
                size = max(lengths[unit], abs(c) * lengths[other])
                found.append(np.linalg.norm(rows[unit] - c * rows[other]) / size)
    return min(found)


@pytest.mark.parametrize(
    ("activation", "multiples", "clones"),
    [
        ("tanh", lambda ratio: (1, -1), [0, 1, 3]),  # mirror twins, no multiples
        ("relu", lambda ratio: (ratio,), [0, 1, 2]),  # multiples, no mirror twins
        ("identity", lambda ratio: (ratio, -ratio), [0, 1, 2, 3]),
        ("sigmoid", lambda ratio: (1,), [0, 1]),
    ],
)
def test_distances_are_those_of_a_loop_over_pairs(x64, activation, multiples, clones):
    model, variables = twins(activation)
    found = jax.jit(clone_distances, static_argnums=0)(model, variables, (INPUTS, None))["hidden_0"]
    tap = model.apply(variables, jnp.asarray(INPUTS))[2]["hidden_0"]
    params = variables["params"]["hidden_0"]
    rows = np.concatenate([params["kernel"], params["bias"][None]]).T
    for nearest, table in ((found.activations, np.asarray(tap.post).T), (found.parameters, rows)):
        slow = [slow_distance(table, unit, multiples) for unit in range(7)]
        np.testing.assert_allclose(nearest.distance, slow, rtol=1e-8, atol=1e-14)
    for nearest in found:
        assert list(np.flatnonzero(np.asarray(nearest.distance) < 1e-12)) == clones
    assert 1e-3 < found.activations.distance[4] < 0.05
    if activation == "relu":
        assert np.isinf(found.activations.distance[6])
    near = near_clones({"hidden_0": found}, 0.05)["hidden_0"]
    assert list(np.flatnonzero(near)) == [*clones, 4]


def test_a_norm_leaves_no_multiples_of_parameters():
    """Behind a batch norm a kernel has no scale; nor may weights be mirrored, whose norms have offsets of their own."""
    model, variables = twins("tanh", "batch")
    for part in (variables["params"]["hidden_0_norm"], variables["batch_stats"]["hidden_0_norm"]):
        for name, array in part.items():
            part[name] = jnp.ones_like(array)
    found = jax.jit(clone_distances, static_argnums=0)(model, variables, INPUTS)["hidden_0"].parameters.distance
    assert list(np.flatnonzero(np.asarray(found) < 1e-6)) == [0, 1]


def test_a_gain_leaves_no_multiples_of_parameters():
    """A multiple of kernel and bias is one of the unit; of kernel, bias and gain it is not."""
    labels = {"kernel": Label((In("x"), Out("a"))), "bias": Label((Out("a"),)), "head": Label((In("a"), Out("y")))}
    shapes = {"kernel": (3, 4), "bias": (4,), "gain": (4,), "head": (4, 2)}
    found = []
    for gains in ({}, {"gain": Label((Out("a"),))}):
        own = {("params", name): label for name, label in (labels | gains).items()}
        wiring = build_wiring(own, {path: shapes[path[1]] for path in own}, {"a": Site("a", "relu")})
        found.append(multiples_by_parameters(wiring, "a"))
    assert found == [(True, False), (False, False)]


def test_heads_and_streams_are_units_and_layer_norm_knows_no_multiples():
    model = vit((4, 4, 1), 2, patch=2, width=4, depth=1, heads=2, norm="layer")
    random = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), jax.eval_shape(model.init, jax.random.key(0)))
    for projection in ("query", "key", "value"):
        for array in variables["params"]["heads_0"][projection].values():
            array[..., 1, :] = array[..., 0, :]
    for array in variables["params"]["embedding"]["patches"].values():
        array[..., 1] = -array[..., 0]
    variables = jax.tree.map(jnp.asarray, variables)
    found = jax.jit(clone_distances, static_argnums=0)(model, variables, jnp.asarray(random.normal(size=(3, 4, 4, 1))))
    np.testing.assert_allclose(found["heads_0"].activations.distance, 0, atol=1e-6)
    np.testing.assert_allclose(found["heads_0"].parameters.distance, 0, atol=1e-6)
    assert np.all(np.asarray(found["width"].activations.multiple) == 1)
    assert np.min(found["width"].activations.distance) > 0.1


def test_a_loud_site_counts_no_more_than_a_quiet_one():
    """Units that are equal at the loud site and unlike at the quiet one are as far apart as the other way round."""
    same, other = np.random.default_rng(2).normal(size=(2, 8))
    alike, unlike = np.stack([same, same], axis=1), np.stack([same, other], axis=1)
    taps = [[Tap("s", None, jnp.asarray(1e3 * one)), Tap("s", None, jnp.asarray(two))] for one, two in
            ((alike, unlike), (unlike, alike))]  # fmt: skip
    rows = [np.asarray(activation_rows(each)) for each in taps]
    expected = np.concatenate([each.T / np.sqrt(np.mean(each**2)) for each in (alike, unlike)], axis=1)
    np.testing.assert_allclose(rows[0], expected, rtol=1e-6)
    far = [np.linalg.norm(each[0] - each[1]) for each in rows]
    np.testing.assert_allclose(far[0], far[1], rtol=1e-6)
