"""Generalisation against plasticity: settings one at a time, losses by hand, correlations with known answers."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.generalisation.config import KNOBS, Config, Setting, settings
from experiments.generalisation.figures import figures
from experiments.generalisation.parts import parts
from experiments.generalisation.report import Relation, best, correlation, summarise, table, texts, with_interval
from experiments.generalisation.setup import build
from experiments.generalisation.training import smoothed_loss
from experiments.kit.coarse_digits import coarse
from lopjax.runs import RunData

SMALL = Config(
    activations=("relu",), widths=(4, 3), samples=40, steps=20, decays=(0.05,), lengths=(10,), scales=(3.0,),
    smoothings=(0.4,), next_steps=10, seeds=(0, 1, 2, 3),
)  # fmt: skip


def test_settings_turn_one_knob_at_a_time():
    swept = settings(SMALL)
    default = swept["decay", 0]
    assert default == Setting(0.0, 20, 1.0, 0.0)
    assert list(swept) == [("decay", 0), *((knob, 1) for knob in KNOBS)]
    for (knob, place), setting in swept.items():
        turned = [name for name in Setting._fields if getattr(setting, name) != getattr(default, name)]
        assert turned == ([knob] if place else [])


def test_coarse_digits_are_means_of_squares_on_the_scale_of_the_training_set():
    images = np.random.default_rng(0).integers(0, 17, size=(50, 8, 8, 1), dtype=np.uint8)
    features = coarse(images)
    np.testing.assert_allclose(features.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(features.std(0), 1, atol=1e-5)
    square = images[:, 2:4, 4:6, 0].astype(float).mean((1, 2))
    np.testing.assert_allclose(features[:, 4 + 2], (square - square.mean()) / square.std(), atol=1e-5)
    np.testing.assert_allclose(coarse(images[:7], images), features[:7], atol=1e-5)
    # The control: on its own scale it is another thing.
    assert np.abs(coarse(images[:7]) - features[:7]).max() > 0.1


def test_smoothing_mixes_the_labels_loss_with_that_of_all_classes():
    logits = np.random.default_rng(1).normal(size=(6, 10))
    labels = np.array([0, 3, 9, 9, 5, 1])
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -(0.7 * logs[np.arange(6), labels] + 0.3 * logs.mean(1)).mean()
    assert float(smoothed_loss(jnp.asarray(logits), jnp.asarray(labels), 0.3)) == pytest.approx(expected, rel=1e-5)


def test_partial_correlations_take_out_what_is_held_fixed():
    rng = np.random.default_rng(2)
    cause = rng.normal(size=(200, 6)) + 10 * np.arange(6)  # seeds lie far apart, which must not count
    effect = cause + 0.5 * rng.normal(size=cause.shape)
    other = -cause + 0.5 * rng.normal(size=cause.shape)
    values = {"distance": cause, "next_loss": effect, "test_accuracy": other}
    assert correlation(values, Relation("distance", "next_loss")) > 0.8
    assert correlation(values, Relation("test_accuracy", "next_loss")) < -0.6
    # Ranks are not quite linear in one another, so that a little is left.
    held = with_interval(values, Relation("test_accuracy", "next_loss", ("distance",)))
    assert abs(held.mean) < 0.1
    assert held.low < held.mean < held.high
    # The control: holding the effect fixed leaves the cause in place.
    assert correlation(values, Relation("distance", "test_accuracy", ("next_loss",))) < -0.3


def test_half_of_the_seeds_choose():
    accuracy = np.array([[0.5, 0.5, 0.5, 0.5], [0.6, 0.6, 0.0, 0.0], [0.1, 0.1, 0.9, 0.9]])
    assert best({"test_accuracy": accuracy}) == 1


@pytest.mark.parametrize(
    "changes",
    [{"samples": 10**6}, {"lengths": (0,)}, {"momentum": 1.0}, {"smoothing": 1.0}, {"scales": (-1.0,)},
     {"seeds": (0, 1)}, {"decays": (float("inf"),)}, {"learning_rate": 0.0}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        build(dataclasses.replace(SMALL, **changes))


@pytest.mark.slow
def test_every_lane_trains_as_its_setting_says():
    (part,) = parts(SMALL, build(SMALL))
    _, records = part.do(None)
    assert len(records) == part.num_records == 5 * 4
    data = RunData(Path(), dataclasses.asdict(SMALL), list(map(dict, records)), None, "generalisation")
    by_knob = {knob: data.column("norm", knob=knob, place=1) for knob in KNOBS}
    default = data.column("norm", knob="decay", place=0)
    assert (by_knob["scale"] > 1.5 * default).all()
    assert all((np.abs(by_knob[knob] / default - 1) > 1e-3).all() for knob in ("decay", "steps", "smoothing"))
    # Networks drawn anew do not depend on the setting.
    anew = np.array([[record["anew_next_loss"] for record in data.select(seed=seed)] for seed in SMALL.seeds])
    np.testing.assert_array_equal(anew, anew[:, :1].repeat(5, axis=1))
    rows = summarise(data)
    assert [row.get("knob") for row in rows] == [*KNOBS, None]
    assert len(table(data).rows) == 4
    assert set(texts(data)) == {"generalisation.md", "relations.md"}
    assert set(figures(data)) == {"generalisation"}
    assert jax.tree.map(np.shape, part.like()) == ()
