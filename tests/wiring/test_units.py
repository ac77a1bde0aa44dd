"""Slices of units against a loop over every entry of every array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.architectures import ARCHITECTURES, build, draw

from lopjax.wiring import In, Out, tree_paths, unit_masks, unit_norms, where


@pytest.fixture(scope="module", params=ARCHITECTURES)
def network(request):
    model = build(request.param)
    return model, jax.tree.map(np.asarray, draw(model))


def entries(model, tree, side, chosen):
    """By path, which entries have an index of a chosen unit on an axis of that side: entry by entry."""
    labels = dict(model.wiring.labels)
    for path, array in zip(tree_paths(tree), jax.tree.leaves(tree)):
        found = np.zeros(array.shape, bool)
        for index in np.ndindex(array.shape):
            found[index] = any(
                isinstance(axis, side) and axis.space in chosen and chosen[axis.space][i]
                for axis, i in zip(labels[path].axes, index)
            )
        yield found


def test_masks_mark_exactly_the_slices_of_chosen_units(network):
    model, variables = network
    rng = np.random.default_rng(0)
    chosen = {space: rng.random(model.wiring.size(space)) < 0.4 for space in model.wiring.cloneable}
    masks = unit_masks(model.wiring, variables, chosen)
    for side, tree in ((Out, masks.incoming), (In, masks.outgoing)):
        for found, expected in zip(jax.tree.leaves(tree), entries(model, variables, side, chosen), strict=True):
            np.testing.assert_array_equal(found, expected)
    assert any(leaf.any() and not leaf.all() for leaf in jax.tree.leaves(masks.outgoing))


def test_masks_may_be_traced(network):
    model, variables = network
    space = model.wiring.cloneable[-1]
    chosen = np.arange(model.wiring.size(space)) == 1
    traced = jax.jit(lambda units: unit_masks(model.wiring, variables, {space: units}))(chosen)
    jax.tree.map(np.testing.assert_array_equal, traced, unit_masks(model.wiring, variables, {space: chosen}))


def test_norms_are_those_of_the_slices(network):
    model, variables = network
    params = variables["params"]
    for space in model.wiring.cloneable:
        incoming, outgoing = unit_norms(model.wiring, params, space)
        for unit in range(model.wiring.size(space)):
            chosen = {space: np.arange(model.wiring.size(space)) == unit}
            for norm, side in ((incoming, Out), (outgoing, In)):
                marked = entries(model, {"params": params}, side, chosen)
                squares = sum(np.sum(a[m] ** 2) for a, m in zip(jax.tree.leaves(params), marked, strict=True))
                assert norm[unit] == pytest.approx(np.sqrt(squares), rel=1e-6)


def test_where_takes_marked_entries_and_keeps_types():
    tree = {"a": jnp.arange(3), "b": jnp.ones(2, jnp.float16)}
    mask = {"a": jnp.array([True, False, True]), "b": jnp.array([False, True])}
    mixed = where(mask, {"a": -jnp.ones(3), "b": jnp.zeros(2)}, tree)
    np.testing.assert_array_equal(mixed["a"], [-1, 1, -1])
    np.testing.assert_array_equal(mixed["b"], [1, 0])
    assert mixed["a"].dtype == jnp.int32
    assert mixed["b"].dtype == jnp.float16


@pytest.mark.parametrize(
    ("units", "message"),
    [({"no": np.zeros(4, bool)}, "its spaces are"), ({"hidden_0": np.zeros(3, bool)}, r"must be \(4,\)")],
)
def test_bad_masks_are_refused(units, message, unchecked):
    model = build("mlp")
    with pytest.raises(ValueError, match=message):
        unit_masks(model.wiring, draw(model), units)
