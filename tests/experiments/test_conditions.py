"""The table of conditions: points are what they are called, verdicts are those of another road."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.conditions.config import CONDITIONS, Condition, Config
from experiments.conditions.networks import LOSSES, build, decayed, place
from experiments.conditions.parts import measure
from experiments.conditions.report import figures, summarise, table, texts
from lopjax.losses import mean_cross_entropy
from lopjax.runs import RunData
from lopjax.stability import decayed_clones

SMALL = Config(seeds=(0,), samples=8)
SETUP = build(SMALL)


def condition(network: str, outputs: int, point: str, decay: float = 0.0, loss: str = "cross-entropy") -> Condition:
    """The one that the table has."""
    (found,) = [
        each for each in CONDITIONS
        if (each.network, each.loss, each.outputs, each.point, each.decay) == (network, loss, outputs, point, decay)
    ]  # fmt: skip
    return found


def test_names_of_conditions_differ():
    assert len({each.name for each in CONDITIONS}) == len(CONDITIONS)


@pytest.mark.parametrize("changes", [{"seeds": ()}, {"seeds": (0, 0)}, {"factor": 1}, {"samples": 3}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        build(dataclasses.replace(SMALL, **changes))


def test_summary_counts_verdicts_beside_the_prediction():
    predicted, silent = CONDITIONS[0], condition("mlp tanh", 3, "critical", 0.1)
    reached = condition("mlp tanh", 3, "critical")
    records = [
        {"condition": predicted.name, "seed": 0, "verdict": "SADDLE"},
        {"condition": predicted.name, "seed": 1, "verdict": "UNDECIDED"},
        {"condition": silent.name, "seed": 0, "verdict": "ATTRACTS"},
        {"condition": reached.name, "seed": 0, "verdict": "NOT_REACHED"},
        {"condition": reached.name, "seed": 1, "verdict": "SADDLE"},
    ]
    data = RunData(Path(), dataclasses.asdict(Config(seeds=(0, 1))), records, None, "conditions")
    first, third, second = summarise(data)
    assert (first["agrees"], first["verdicts"]) == (False, {"SADDLE": 1, "UNDECIDED": 1})
    assert second["agrees"] is None
    assert third["agrees"] is True
    assert len(table(data).rows) == 3
    assert "1 of 2" in texts(data)["conditions.md"]
    # Searches that did not arrive are no evidence.
    assert "1 of 1" in texts(data)["conditions.md"]
    assert set(figures(data)) == {"conditions"}


@pytest.mark.slow
def test_under_decay_the_verdict_is_that_of_the_library_at_its_own_stationary_point(x64):
    chosen = condition("mlp tanh", 3, "critical", 0.1)
    record = measure(SETUP, chosen, 0)
    variables, batch = place(SETUP, chosen, 0)
    point = decayed_clones(SETUP.models[chosen.name], variables, batch, 2, 0.1, loss=mean_cross_entropy)
    assert record["verdict"] == point.verdict.name
    assert record["rate"] == pytest.approx(point.rate, abs=1e-6)
    # The control: the gradient of the loss alone is not 0 there.
    vector = ravel_pytree(variables["params"])[0]
    plain = decayed(SETUP, condition("mlp tanh", 3, "critical"), variables)
    assert float(jnp.linalg.norm(plain.gradient(vector, batch))) > 1e-3
    assert float(jnp.linalg.norm(decayed(SETUP, chosen, variables).gradient(vector, batch))) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet gelu layer norm", "vit gelu layer norm"])
def test_clones_in_residual_streams_and_attention_are_saddles(network, x64):
    chosen = condition(network, 3, "random")
    record = measure(SETUP, chosen, 0)
    assert record["verdict"] == "SADDLE"
    low, high = record["extremes"]
    assert low < 0 < high
    variables, batch = place(SETUP, chosen, 0)
    logits = SETUP.models[chosen.name].apply(variables, batch[0]).logits
    assert np.isfinite(float(LOSSES[chosen.loss](logits, batch[1])))


@pytest.mark.slow
def test_relu_clones_never_attract(x64):
    chosen, setup = condition("mlp relu", 3, "critical", 0.1), build(Config())
    reached = [each for each in (measure(setup, chosen, seed) for seed in (1, 2)) if each["verdict"] != "NOT_REACHED"]
    assert reached
    # Where decay has driven all weights to 0 the units are at their kinks, and nothing is said.
    assert measure(setup, chosen, 4)["verdict"] == "AT_A_KINK"
    # A unit's own weights are an eigenvector of its block, of eigenvalue minus the decay.
    assert all(record["rate"] < 1e-9 for record in reached)
    # The control: tanh clones do attract at that decay.
    assert measure(setup, condition("mlp tanh", 3, "critical", 0.1), 1)["rate"] > 1e-3
