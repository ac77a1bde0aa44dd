"""Radii, slopes and time scales of units against NumPy, on a network with units made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.detection import (
    LifeTable,
    Status,
    describe_units,
    lives_as_text,
    lives_of_records,
    load_lives,
    save_lives,
    start_lives,
    unit_nearness,
    unit_status,
    update_lives,
)
from lopjax.detection.nearness import status_from
from lopjax.models import mlp

RANDOM = np.random.default_rng(3)
INPUTS, TARGETS = RANDOM.normal(size=(30, 3)), RANDOM.normal(size=(30, 2))


def network(activation):
    """Six units: 1 is 2.5 times 0, 2 is far below zero, the others are generic; in the second layer 0 is dead."""
    model = mlp((3,), (6, 4), 2, activation=activation, norm="none")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).normal(size=leaf.shape), shapes)["params"]
    first, second = params["hidden_0"], params["hidden_1"]
    first["kernel"][:, 1], first["bias"][1] = 2.5 * first["kernel"][:, 0], 2.5 * first["bias"][0]
    first["bias"][2] = -20.0
    second["bias"][0] = -40.0
    return model, {"params": params}


def forward(params, function):
    """Pre-activations and activations of both layers, and the loss, in NumPy."""
    pre_0 = INPUTS @ params["hidden_0"]["kernel"] + params["hidden_0"]["bias"]
    pre_1 = function(pre_0) @ params["hidden_1"]["kernel"] + params["hidden_1"]["bias"]
    out = function(pre_1) @ params["logits"]["kernel"] + params["logits"]["bias"]
    return pre_0, function(pre_0), pre_1, float(np.mean(np.sum((out - TARGETS) ** 2, axis=1)))


def head(params):
    """The output layer, under the name that the oracle gives it."""
    (name,) = set(params) - {"hidden_0", "hidden_1"}
    return {**params, "logits": params[name]}


def measured(activation):
    model, variables = network(activation)
    step = jax.tree.map(lambda leaf: np.full_like(leaf, 1e-3), variables["params"])
    found = jax.jit(
        lambda v, s: unit_nearness(
            model, v, (INPUTS, TARGETS), step=s, loss=lambda a, b: jnp.mean(jnp.sum((a - b) ** 2, axis=1))
        )
    )(variables, step)
    return model, head(variables["params"]), jax.device_get(found)


def test_no_change_shorter_than_the_radius_kills_or_wakes_and_one_as_long_wakes(x64):
    _, params, found = measured("relu")
    pre, h, pre_1, _ = forward(params, lambda z: np.maximum(z, 0))
    features = np.concatenate([INPUTS, np.ones((30, 1))], axis=1)
    weights = np.concatenate([params["hidden_0"]["kernel"], params["hidden_0"]["bias"][None]])
    radius = found["hidden_0"].death_radius
    np.testing.assert_array_equal(radius > 0, [False, False, True, False, False, False])
    for unit in range(6):
        for _ in range(200):
            change = RANDOM.normal(size=4)
            change *= 0.999 * abs(radius[unit]) / np.linalg.norm(change)
            assert np.any(features @ (weights[:, unit] + change) > 0) == (radius[unit] < 0)
    closest = features[np.argmin(-(features @ weights[:, 2]) / np.linalg.norm(features, axis=1))]
    change = 1.001 * radius[2] * closest / np.linalg.norm(closest)
    assert np.any(features @ (weights[:, 2] + change) > 0)
    # The second layer reads activations, and steps are counted in the length of a unit's own slices.
    read = np.concatenate([h, np.ones((30, 1))], axis=1)
    np.testing.assert_allclose(
        found["hidden_1"].death_radius, np.min(-pre_1 / np.linalg.norm(read, axis=1)[:, None], axis=0), rtol=1e-10
    )
    np.testing.assert_allclose(found["hidden_1"].death_steps, found["hidden_1"].death_radius / (1e-3 * 7**0.5))
    np.testing.assert_array_equal(found["hidden_0"].is_dead, np.all(pre <= 0, axis=0))
    text = describe_units(found)
    assert text.splitlines()[0] == "2 units within 1 % of a clone, 2 dead, 0 saturated, of 10"
    assert "1 (= 2.5 x unit 0" in text
    assert "dead 2 (wakes beyond" in text


@pytest.mark.parametrize("excess", [0.0, 1e-3])
def test_a_limit_belongs_to_what_it_limits(excess):
    """Units at the limits, and just beyond them; what a unit is worst at is its status."""
    slope, distance, is_dead = np.ones(4), np.ones(4), np.zeros(4, bool)
    slope[[0, 3]], distance[[1, 2, 3]], is_dead[2] = 0.25 + excess, 0.5 + excess, excess == 0
    expected = [Status.SATURATED, Status.NEAR_CLONE, Status.DEAD, Status.NEAR_CLONE] if excess == 0 else [Status.ALIVE]
    np.testing.assert_array_equal(status_from(slope, distance, is_dead, 0.5, 0.25), expected * (4 // len(expected)))


def test_slopes_and_time_scales_of_a_saturated_unit_are_those_of_differences(x64):
    _, params, found = measured("tanh")
    pre, _, _, _ = forward(params, np.tanh)
    np.testing.assert_allclose(found["hidden_0"].slope, np.max(1 - np.tanh(pre) ** 2, axis=0), rtol=1e-6, atol=1e-15)
    assert np.all(np.isnan(found["hidden_0"].death_radius))  # a tanh has no border of life and death
    status = np.asarray(unit_status(found["hidden_0"]))
    assert status[2] in (Status.SATURATED, Status.DEAD)
    assert status[3] == Status.ALIVE

    def loss(array, place, change):
        moved = {name: {k: v.copy() for k, v in part.items()} for name, part in params.items()}
        moved["hidden_0"][array][place] += change
        return forward(moved, np.tanh)[3]

    places = [("kernel", (row, 3)) for row in range(3)] + [("bias", (3,))]
    slopes = [(loss(*place, 1e-6) - loss(*place, -1e-6)) / 2e-6 for place in places]
    weights = [params["hidden_0"][array][place] for array, place in places]
    expected = np.linalg.norm(weights) / np.linalg.norm(slopes)
    np.testing.assert_allclose(found["hidden_0"].time_scale[3], expected, rtol=1e-5)


def test_lives_count_what_happens_between_measurements_and_are_read_back(tmp_path):
    alive, dead, clone = int(Status.ALIVE), int(Status.DEAD), int(Status.NEAR_CLONE)
    table = np.array([[alive, dead, alive, clone], [dead, alive, clone, clone], [dead, alive, alive, clone]], np.int8)
    lives = start_lives({"a": jnp.asarray(table[0])})
    seen = []
    for step, row in ((5, table[1]), (9, table[2])):
        touched = {"a": jnp.asarray([False, step == 5, False, False])}
        lives, counts = update_lives(lives, {"a": jnp.asarray(row)}, step, touched)
        seen.append({event: int(number) for event, number in counts.items() if number})
    assert seen == [{"died": 1, "revived": 1, "cloned": 1, "reset": 1}, {"freed": 1}]
    assert lives.since["a"].tolist() == [5, 5, 9, 0]
    # A unit that is reset begins a life of its own, though it is what it was.
    again, _ = update_lives(lives, {"a": jnp.asarray(table[2])}, 12, {"a": jnp.asarray([True, False, False, False])})
    assert again.since["a"].tolist() == [12, 5, 9, 0]
    assert {event: int(number) for event, number in lives.totals.items()}["freed"] == 1
    path = save_lives(LifeTable(np.array([0, 5, 9]), {"a": table}, {"a": table == 9}), tmp_path / "lives.npz")
    np.testing.assert_array_equal(load_lives(path).status["a"], table)


def test_lives_in_the_records_of_a_run_are_read_back():
    status = np.array([[0, 1, 2, 3, -1], [3, 3, 2, 0, 0]], np.int8)
    touched = np.array([[False] * 5, [False, True, False, False, True]])
    texts = [lives_as_text(*row) for row in zip(status, touched)]
    assert texts == ["ascdu", "dDcaA"]
    records = [{"step": step, "loss": 1.0, "lives/a": text} for step, text in zip((10, 20), texts)]
    table = lives_of_records([records[0], {"step": 15, "loss": 1.0}, records[1]])
    assert table.steps.tolist() == [10, 20]
    np.testing.assert_array_equal(table.status["a"], status)
    np.testing.assert_array_equal(table.touched["a"], touched)
    assert lives_of_records([{"step": 1, "loss": 1.0}]) is None
    for bad in ("ascd", "asxdu"):
        with pytest.raises(ValueError, match="lives/a"):
            lives_of_records([records[0], {"step": 20, "lives/a": bad}])
