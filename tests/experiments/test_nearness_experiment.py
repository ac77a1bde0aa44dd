"""Distances to traps: 0 on the manifold, by hand off it, and not 0 for the controls."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.nearness.config import Config, distances_of
from experiments.nearness.distances import distance_named, nearest, shuffled, unit_vectors
from experiments.nearness.figures import figures
from experiments.nearness.parts import parts
from experiments.nearness.report import summarise, table, texts
from experiments.nearness.setup import build
from lopjax.runs import RunData

SMALL = Config(width=4, samples=30, tasks=2, steps=5, seeds=(0, 1))
KEY = jax.random.key(0)


def random_mlp(seed: int = 0, width: int = 6):
    rng, sizes = np.random.default_rng(seed), (5, width, width, 3)
    return {
        name: {"kernel": jnp.asarray(rng.normal(size=shape), jnp.float32),
               "bias": jnp.asarray(rng.normal(size=shape[1]), jnp.float32)}
        for name, shape in zip(("hidden_0", "hidden_1", "classes"), pairwise(sizes))
    }  # fmt: skip


def with_twin(params, multiple):
    """Unit 1 of the first layer is a multiple of unit 0."""
    first, second = params["hidden_0"], params["hidden_1"]
    return params | {
        "hidden_0": {"kernel": first["kernel"].at[:, 1].set(multiple * first["kernel"][:, 0]),
                     "bias": first["bias"].at[1].set(multiple * first["bias"][0])},
        "hidden_1": second | {"kernel": second["kernel"].at[1].set(multiple * second["kernel"][0])},
    }  # fmt: skip


@pytest.mark.parametrize(("name", "multiple", "others"), [
    ("equal", 1.0, ()), ("signed", -1.0, ("equal", "weighted")), ("weighted", 0.3, ("equal", "signed")),
])  # fmt: skip
def test_clones_are_at_distance_0_from_one_another_by_their_own_measure_alone(name, multiple, others):
    params = with_twin(random_mlp(), multiple)
    assert np.asarray(distance_named(name, False)(params, params, KEY))[:2].max() < 1e-3
    for other in others:
        assert np.asarray(distance_named(other, False)(params, params, KEY))[:2].min() > 0.3
    # Shuffled, they are no clones any more.
    assert np.asarray(distance_named(name, True)(params, params, KEY))[:2].min() > 0.1


def test_nearest_is_the_least_over_all_pairs():
    rows = np.random.default_rng(3).normal(size=(5, 4))
    pairs = {(i, k): (rows[i], rows[k]) for i in range(5) for k in range(5) if i != k}
    scale = {pair: max(np.linalg.norm(v), np.linalg.norm(w)) for pair, (v, w) in pairs.items()}
    by_hand = {
        "equal": {pair: np.linalg.norm(v - w) / scale[pair] for pair, (v, w) in pairs.items()},
        "signed": {pair: min(np.linalg.norm(v - w), np.linalg.norm(v + w)) / scale[pair]
                   for pair, (v, w) in pairs.items()},
        # The nearest point of the ray of w to v, over |v|.
        "weighted": {pair: np.linalg.norm(v - max(v @ w, 0) / (w @ w) * w) / np.linalg.norm(v)
                     for pair, (v, w) in pairs.items()},
    }  # fmt: skip
    for name, gaps in by_hand.items():
        expected = [min(gap for (i, _), gap in gaps.items() if i == unit) for unit in range(5)]
        np.testing.assert_allclose(nearest(jnp.asarray(rows), name), expected, rtol=1e-4)


def test_units_that_vanish_have_size_0_and_shuffling_keeps_all_weights():
    params = with_twin(random_mlp(), 0.0)
    sizes = np.asarray(distance_named("size", False)(params, params, KEY))
    assert sizes[1] == 0
    assert sizes[0] > 0.5
    rows = unit_vectors(random_mlp())[0]
    mixed = shuffled(KEY, rows)
    np.testing.assert_array_equal(np.sort(mixed, axis=0), np.sort(rows, axis=0))
    assert np.abs(np.asarray(mixed - rows)).max() > 0.1


def test_level_sets_are_kept_by_rescaling_units_and_by_nothing_else():
    start = random_mlp()
    # The flow of an orthogonal rotation of (w, b) keeps |w|² + b², and so does what keeps |w|² + b² - |a|².
    kernel, bias = start["hidden_0"]["kernel"], start["hidden_0"]["bias"]
    turned = {**start, "hidden_0": {"kernel": kernel[::-1], "bias": -bias}}
    assert np.asarray(distance_named("level", False)(turned, start, KEY)).max() < 1e-5
    grown = {**start, "hidden_0": {"kernel": 1.5 * kernel, "bias": 1.5 * bias}}
    assert np.asarray(distance_named("level", False)(grown, start, KEY))[:6].min() > 0.05


def test_heads_equal_up_to_invertible_maps_are_at_distance_0():
    rng, (width, size, heads) = np.random.default_rng(4), (6, 3, 4)
    names = {"query": (width, size, heads), "key": (width, size, heads), "value": (width, size, heads)}
    own = {
        name: {"kernel": rng.normal(size=shape), "bias": rng.normal(size=(size, heads))}
        for name, shape in names.items()
    }
    own["out"] = {"kernel": rng.normal(size=(size, heads, width)), "bias": rng.normal(size=width)}
    maps = rng.normal(size=(size, size))
    inverse = np.linalg.inv(maps)
    for name, change in (("query", maps), ("key", inverse.T), ("value", maps)):
        own[name]["kernel"][:, :, 1] = own[name]["kernel"][:, :, 0] @ change
        own[name]["bias"][:, 1] = own[name]["bias"][:, 0] @ change
    own["out"]["kernel"][:, 1] = inverse @ own["out"]["kernel"][:, 0]
    params = {"heads_0": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), own)}
    distances = np.asarray(distance_named("heads", False)(params, params, KEY))
    assert distances[:2].max() < 1e-4
    assert distances[2:].min() > 0.3
    assert np.asarray(distance_named("heads", True)(params, params, KEY)).min() > 0.1


@pytest.mark.parametrize("changes", [{"width": 6}, {"seeds": (0,)}, {"learning_rates": (0.1,)}, {"samples": 10**6}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        build(dataclasses.replace(SMALL, **changes))


@pytest.mark.slow
def test_small_steps_of_gradient_descent_stay_near_level_sets_and_adam_leaves_them():
    config = dataclasses.replace(SMALL, learning_rates=(0.003, 0.003), steps=100)
    records = []
    for part in parts(config, build(config)):
        _, new = part.do(None)
        assert len(new) == part.num_records
        records += new
    data = RunData(Path(), dataclasses.asdict(config), list(map(dict, records)), None, "nearness")
    rows = {(row["network"], row["rule"], row["distance"]): row for row in summarise(data)}
    assert len(rows) == 2 * sum(len(distances_of(name)) for name in ("mlp tanh", "mlp relu", "vit gelu"))
    descent, adam = (rows["mlp relu", rule, "level"] for rule in ("sgd", "adam"))
    assert descent["median"] < 1e-3 < adam["median"]
    assert descent["median_less_control"][0] < 0
    assert len(table(data).rows) == len(rows)
    assert set(texts(data)) == {"nearness.md"}
    assert set(figures(data)) == {"nearness"}
