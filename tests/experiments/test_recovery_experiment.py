"""After the recovery: arms start as they say, the controller treats and says what it did, differences are paired."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.aftermath.parts import NEXT, SAME
from experiments.recovery.config import ARMS, SCRATCH, SCRATCH_SHORT, Config
from experiments.recovery.parts import parts
from experiments.recovery.report import figures, summarise, table, texts
from experiments.recovery.setup import build
from experiments.remedies.config import StreamConfig
from lopjax.runs import RunData

SMALL = Config(
    stream=StreamConfig(5, 20, 16, 0.003, (4,), 1, 160), task_steps=200, next_steps=20, chunks=2, seeds=(0, 1),
    probe_samples=40,
)  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{"task_steps": 201}, {"next_steps": 0}, {"chunks": 0}, {"seeds": (1, 1)}, {"recovery_setting": 4},
     {"noise_setting": -1}, {"probe_samples": 0}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        build(dataclasses.replace(SMALL, **changes))


def test_differences_are_paired_and_actions_counted():
    """Arms differ by known amounts, seeds by more; the controller acts in one step of ten, at 0.3 of the loss."""
    records = []
    for number, arm in enumerate(ARMS):
        for seed in SMALL.seeds:
            for phase, step in ((SAME, 100), (SAME, 200), (NEXT, 10), (NEXT, 20)):
                value = 10.0 * seed + number
                shared = {"method": arm, "seed": seed, "phase": phase, "step": step, "loss": value, "accuracy": -value}
                names = ("train_loss", "test_loss", "test_accuracy", "effective_rank", "distinct_units", "sharpness")
                did = {"own/kept": 0.1, "own/undone": 0.0, "own/change": 0.02, "own/rise": 0.03}
                records.append(shared | dict.fromkeys(names, value) | (did if arm == "recovery" else {}))
    data = RunData(Path(), dataclasses.asdict(SMALL), records, None, "recovery")
    rows = {row["arm"]: row for row in summarise(data)}
    place = {arm: number for number, arm in enumerate(ARMS)}
    for reference in (SCRATCH, SCRATCH_SHORT):
        expected = [float(place["recovery"] - place[reference])] * 3
        assert rows["recovery"][f"less_{reference}"]["train_loss"] == pytest.approx(expected)
    assert rows["recovery"]["treatment"] == pytest.approx({"kept": 20, "undone": 0, "change": 4, "rise": 0.3})
    assert rows["noise"]["treatment"] is None
    assert len(table(data).rows) == len(ARMS)
    assert "less drawn anew, total budget:" in texts(data)["table.md"]
    assert "kept 20" in texts(data)["table.md"]
    assert set(figures(data)) == {"recovery"}


@pytest.mark.slow
def test_old_arms_start_from_the_stream_and_the_others_do_not():
    planned, state, records = parts(SMALL, build(SMALL)), None, []
    for part in planned:
        state, new = part.do(state)
        assert len(new) == part.num_records
        assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, part.like())
        if part.name == "stream":
            kernels = {
                name: np.asarray(one.state[0].variables["params"]["hidden_0"]["kernel"]) for name, one in state.items()
            }
            untreated, long, short = kernels["plain"].reshape(3, 2, *kernels["plain"].shape[1:])
            for method in ("recovery", "noise", "redo"):
                np.testing.assert_array_equal(kernels[method], untreated)
            assert np.abs(long - untreated).max() > 0.1
            assert np.abs(short - long).max() > 0.1
        records += new
    data = RunData(Path(), dataclasses.asdict(SMALL), records, None, "recovery")
    for arm in ARMS:
        assert len(data.column("test_loss", method=arm, phase=SAME)) == 2
        assert len(data.column("test_loss", method=arm, phase=NEXT)) == 2
    # Only the network with the total budget has met the task before.
    first = {arm: data.column("accuracy", method=arm, phase=SAME, seed=0)[0] for arm in ARMS}
    assert first[SCRATCH] > first[SCRATCH_SHORT]
    # What watches for dead units may have had nothing to do by the first record; noise acts at every step.
    loss = {arm: float(data.column("loss", method=arm, phase=SAME, seed=0)[0]) for arm in ARMS}
    assert len({loss[arm] for arm in ("untreated", "noise", SCRATCH, SCRATCH_SHORT)}) == 4
