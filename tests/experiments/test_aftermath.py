"""What is left after an escape: arms start as they say, records say what is measured, differences are paired."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.aftermath.config import ARMS, BASE, Config
from experiments.aftermath.figures import figures
from experiments.aftermath.parts import NEXT, SAME, parts
from experiments.aftermath.report import summarise, table
from experiments.aftermath.setup import build, coarse, next_classes
from experiments.kit.networks import MLP
from lopjax import data
from lopjax.runs import RunData

SMALL = Config(
    net=MLP(widths=(4,), activation="tanh", norm="none"), base_steps=20, clone_steps=40, next_steps=20, chunks=2,
    split_every=10, kick_steps=10, seeds=(0, 1), probe_samples=60,
)  # fmt: skip


def test_no_class_keeps_its_name_in_the_next_task():
    for num in (2, 3, 10):
        names = next_classes(num)
        assert sorted(names) == list(range(num))
        assert (names != np.arange(num)).all()


@pytest.mark.parametrize(
    "changes",
    [{"factor": 1}, {"clone_steps": 41}, {"noise_scale": 0.0}, {"seeds": (1, 1)}, {"brief_decay": 1.0},
     {"probe_samples": 0}, {"coarseness": 3}, {"coarseness": 0}, {"net": MLP(widths=(3,), norm="batch")}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        build(dataclasses.replace(SMALL, **changes))


def test_coarse_images_are_means_over_squares():
    digits = data.load("digits")
    averaged = coarse(digits, 4)
    assert averaged.image_shape == (2, 2, 1)
    corner = digits.test_images[5, 4:, :4, 0].astype(float).mean()
    assert abs(averaged.test_images[5, 1, 0, 0] - corner) <= 0.5
    # What no average changes, and what every one does.
    assert averaged.mean[0] == pytest.approx(digits.mean[0], abs=1 / 255)
    assert averaged.std[0] < digits.std[0]
    assert coarse(digits, 1) is digits


def records_of(loss: dict[str, float]) -> RunData:
    """A finished run whose arms differ by known amounts; every seed has its own level."""
    records = []
    for arm in (BASE, *ARMS):
        for seed in SMALL.seeds:
            for phase, step in ((SAME, 20), (SAME, 40), (NEXT, 10), (NEXT, 20)):
                value = 10.0 * seed + loss.get(arm, 0.0) + (0.5 if step == 10 else 0.0)
                shared = {"method": arm, "seed": seed, "phase": phase, "step": step, "loss": value, "accuracy": -value}
                ends = ("train_loss", "test_loss", "test_accuracy", "effective_rank", "distinct_units", "sharpness")
                records.append(shared | ({name: value for name in ends} if step in (40, 20) else {}))
    return RunData(Path(), dataclasses.asdict(SMALL), records, None, "aftermath")


def test_differences_are_paired_by_seed():
    data = records_of({"noise": 1.0})
    rows = {row["arm"]: row for row in summarise(data)}
    # Seeds lie 10 apart, the arms 1, and in every seed alike: no width is left.
    assert rows["noise"]["less_trapped"]["train_loss"] == pytest.approx([1.0, 1.0, 1.0])
    assert rows["noise"]["less_trapped"]["next_loss"] == pytest.approx([1.0, 1.0, 1.0])
    assert rows["noise"]["next_loss"] == pytest.approx(5.0 + 1.0 + 0.25)
    assert rows["split"]["less_trapped"]["train_loss"] == pytest.approx([0.0, 0.0, 0.0])
    assert "less_trapped" not in rows["trapped"]
    assert len(table(data).rows) == len(ARMS) + 1
    assert set(figures(data)) == {"aftermath"}
    assert figures(RunData(Path(), dataclasses.asdict(SMALL), [], None, "aftermath")) == {}


@pytest.mark.slow
def test_arms_start_as_they_say_and_only_the_trapped_ones_stay():
    planned, state, records = parts(SMALL, build(SMALL)), None, []
    for part in planned:
        state, new = part.do(state)
        assert len(new) == part.num_records
        assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, part.like())
        assert jax.tree.map(lambda leaf: leaf.dtype, state) == jax.tree.map(lambda leaf: leaf.dtype, part.like())
        if part.name == "cloning":
            kernel = np.asarray(state.wide.state.network.variables["params"]["hidden_0"]["kernel"])
            base = np.asarray(state.narrow.state.variables["params"]["hidden_0"]["kernel"])
            of_arm = dict(zip(ARMS, kernel.reshape(len(ARMS), 2, *kernel.shape[1:]), strict=True))
            cloned = np.repeat(base, 2, axis=-1)
            for arm in ("trapped", "noise", "brief_noise", "split"):
                np.testing.assert_array_equal(of_arm[arm], cloned)
            # A kick across the manifold leaves every cluster's mean where it was.
            kicked = of_arm["critical_kick"]
            assert np.abs(kicked - cloned).max() > 1e-2
            np.testing.assert_allclose(kicked.reshape(*base.shape, 2).mean(-1), base, atol=1e-6)
            assert np.abs(of_arm["scratch"] - cloned).max() > 0.1
            assert np.abs(of_arm["scratch_short"] - of_arm["scratch"]).max() > 0.1
        records += new
    data = RunData(Path(), dataclasses.asdict(SMALL), records, None, "aftermath")
    r2 = {arm: data.column("r2", method=arm, phase=SAME)[-1] for arm in ARMS}
    assert r2["trapped"] == 1
    assert all(r2[arm] < 1 for arm in ("noise", "brief_noise", "critical_kick", "split"))
    # Drawn anew, units that are called clones have nothing in common.
    assert r2["scratch"] < 0.9
    # The next task is another one: what was learned is wrong there at first.
    first, last = data.column("accuracy", method=BASE, seed=0, phase=NEXT)[[0, -1]]
    assert first < 0.5
    assert last > first
