"""Clones that form by themselves: which units count as one, kicks that change nothing, verdicts with controls."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.formation.clusters import Units, merged, outgoing_kick, units_of
from experiments.formation.config import ARMS, STREAMS, Config
from experiments.formation.figures import figures
from experiments.formation.parts import formed_networks, judge, parts
from experiments.formation.report import predictions, summarise, table
from experiments.formation.setup import build, network
from experiments.formation.training import HIDDEN, OUTGOING
from experiments.kit.coarse_digits import hidden
from lopjax.activations import activation
from lopjax.runs import RunData

SMALL = Config(
    activations=("tanh",), width=4, samples=40, decays=(0.0, 0.1), steps=40, period=20, next_steps=10, seeds=(0, 1)
)

# Units 0 and 2 are equal, 1 is minus them, 3 a third of them, 4 is another, 5 does next to nothing.
ONE, OTHER = np.random.default_rng(0).normal(size=(2, 30))
COLUMNS = np.stack([ONE, -ONE, ONE, ONE / 3, OTHER, 1e-3 * OTHER], axis=1)


@pytest.mark.parametrize(
    ("name", "clusters", "multiples"),
    [
        ("gelu", [0, 1, 0, 2, 3, -1], [1, 1, 1, 1, 1, 0]),
        ("tanh", [0, 0, 0, 1, 2, -1], [1, -1, 1, 1, 1, 0]),
        ("relu", [0, 1, 0, 0, 2, -1], [1, 1, 1, 1 / 3, 1, 0]),
    ],
)
def test_units_are_one_by_what_their_activation_allows(name, clusters, multiples):
    units = units_of(COLUMNS, activation(name), 0.05)
    assert units.cluster.tolist() == clusters
    np.testing.assert_allclose(units.multiple, multiples, atol=1e-12)
    assert (units.num_distinct, units.num_vanished) == (max(clusters) + 1, 1)


def test_dead_layers_have_no_units():
    units = units_of(np.zeros((5, 3)), activation("relu"), 0.05)
    assert (units.num_distinct, units.num_vanished) == (0, 3)


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_a_free_kick_and_a_merger_change_no_output(name):
    rng, count = np.random.default_rng(1), 6
    multiple = np.array([1, 1, -1 if name == "tanh" else 2.5, 1, 1, 0])
    base = rng.normal(size=(17, count))
    base[:, 1], base[:, 2] = base[:, 0], base[:, 0] * multiple[2]
    base[:, 5] = 0
    units = Units(np.array([0, 0, 0, 1, 2, -1]), multiple)
    params = {
        HIDDEN: {"kernel": base[:16], "bias": base[16]},
        OUTGOING: {"kernel": rng.normal(size=(count, 10)), "bias": rng.normal(size=10)},
    }
    inputs = rng.normal(size=(20, 16))

    def outputs(params, width):
        return np.asarray(network(name, width).apply({"params": params}, jnp.asarray(inputs)).logits)

    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, params)
        found = units_of(
            np.asarray(hidden(network(name, count), params, jnp.asarray(inputs))[HIDDEN]), activation(name), 1e-6
        )
        assert found.cluster.tolist() == units.cluster.tolist()
        before = outputs(params, count)
        noise = rng.normal(size=(count, 10))
        kick = outgoing_kick(found, noise)
        kicked = {**params, OUTGOING: {**params[OUTGOING], "kernel": params[OUTGOING]["kernel"] + kick}}
        np.testing.assert_allclose(outputs(kicked, count), before, atol=1e-12)
        assert np.abs(kick[0]).max() > 0.1
        np.testing.assert_allclose(kick[[3, 4]], 0, atol=1e-12)
        np.testing.assert_array_equal(kick[5], noise[5])
        kernel, bias, outgoing = merged(
            np.asarray(params[HIDDEN]["kernel"]), np.asarray(params[HIDDEN]["bias"]),
            np.asarray(params[OUTGOING]["kernel"]), found,
        )  # fmt: skip
        few = {HIDDEN: {"kernel": kernel, "bias": bias}, OUTGOING: {**params[OUTGOING], "kernel": outgoing}}
        np.testing.assert_allclose(outputs(jax.tree.map(jnp.asarray, few), 3), before, atol=1e-12)
        # The control: noise that is not projected is seen.
        loud = {**params, OUTGOING: {**params[OUTGOING], "kernel": params[OUTGOING]["kernel"] + noise}}
        assert np.abs(outputs(loud, count) - before).max() > 0.1


@pytest.mark.parametrize(
    "changes",
    [{"width": 1}, {"steps": 41}, {"decays": (0.1, 0.1)}, {"decays": (-0.1,)}, {"momentum": 1.0}, {"samples": 10**6},
     {"tolerance": 0.5}, {"seeds": ()}, {"predicted_seeds": 3}, {"kick": 0.0}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        build(dataclasses.replace(SMALL, **changes))


def test_differences_are_paired_by_seed_and_verdicts_counted():
    losses = {"as_it_is": 0.3, "free_kick": 0.1, "drawn_anew": 0.2}
    records = [
        {
            "activation": "tanh", "stream": stream, "decay": decay, "seed": seed, "arm": arm, "distinct": 2 + seed,
            "vanished": 0, "rank": 2.0, "jump": 0.0, "next_mean_loss": 10 * seed + losses[arm], "next_rank": 3.0,
        }
        for stream in STREAMS for decay in SMALL.decays for seed in SMALL.seeds for arm in ARMS
    ]  # fmt: skip
    verdict = {"activation": "tanh", "decay": 0.1, "arm": "prediction"}
    records += [
        verdict | {"seed": 0, "at_own": {"verdict": "ATTRACTS"}, "at_smallest": {"verdict": "REPELS"}},
        verdict | {"seed": 1, "at_own": {"verdict": "REPELS"}, "at_smallest": None},
    ]
    data = RunData(Path(), dataclasses.asdict(SMALL), records, None, "formation")
    (row, *others) = summarise(data)
    assert len(others) == 3
    assert row["distinct"] == [2.5, 2, 3]
    assert row["cost"] == pytest.approx([0.1, 0.1, 0.1])
    assert row["kick"] == pytest.approx([-0.2, -0.2, -0.2])
    (sentence,) = predictions(data)
    assert "own decay: 1 attracts, 1 repels;" in sentence
    assert sentence.endswith("smallest decay: 1 repels")
    assert len(table(data).rows) == 4
    assert set(figures(data)) == {"formation"}
    assert figures(RunData(Path(), dataclasses.asdict(SMALL), [], None, "formation")) == {}


@pytest.mark.slow
def test_decay_makes_clones_of_which_the_blocks_say_that_they_attract():
    config = dataclasses.replace(
        SMALL, width=5, samples=64, decays=(0.0, 0.2, 0.3), steps=4000, period=1000, seeds=(0,)
    )
    setup, records = build(config), []
    for part in parts(config, setup):
        _, new = part.do(None)
        assert len(new) == part.num_records
        records += new
    data = RunData(Path(), dataclasses.asdict(config), records, None, "formation")
    counts = [row["distinct"][0] for row in summarise(data)[:3]]
    assert counts[0] == 5
    assert counts[-1] < 5
    kicked = data.select(arm="free_kick", stream=STREAMS[0], decay=0.3)[0]
    assert abs(kicked["jump"]) < 1e-2
    assert kicked["next_distinct"] > kicked["distinct"]
    # What formed attracts at its decay; without decay the same clusters repel.
    formed, _ = formed_networks(setup, "tanh", STREAMS[0], (0,))
    params, activations = jax.tree.map(lambda leaf: leaf[-1], jax.device_get((formed.params, formed.activations)))
    units = units_of(activations, activation("tanh"), config.tolerance)
    judged: Any = {decay: judge(setup, "tanh", params, units, decay) for decay in (0.3, 0.02)}
    assert judged[0.3]["verdict"] == "ATTRACTS"
    assert judged[0.02]["verdict"] == "REPELS"
