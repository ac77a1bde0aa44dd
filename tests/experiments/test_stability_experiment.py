"""What `python -m experiments.stability` records agrees with the library, and mistakes are refused."""

import dataclasses

import numpy as np
import pytest

from experiments.kit.networks import MLP
from experiments.stability.__main__ import main
from experiments.stability.config import PRESETS
from experiments.stability.parts import build, parts
from experiments.stability.report import figure, measured, table
from lopjax import runs
from lopjax.runs.schedule import play

TINY = dataclasses.replace(
    PRESETS["quick"],
    net=MLP(widths=(3, 2), norm="none"),
    epochs=(0, 1),
    epochs_after=(0,),
    num_images=60,
    batch_size=200,
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = runs.open_run(tmp_path_factory.mktemp("runs") / "tiny", TINY)
    play(parts(TINY, build(TINY)), None, folder)
    return runs.load(folder.folder)


def test_every_asked_epoch_is_measured_and_counts_fill_the_normal_space(recorded):
    rows = measured(recorded)
    assert [(row["task"], row["epoch"], row["total_epoch"]) for row in rows] == [(0, 0, 0), (0, 1, 1), (1, 0, 1)]
    # Parameters of 64-6-4-10 less those of 64-3-2-10.
    normal_dimension = (65 * 6 + 7 * 4 + 5 * 10) - (65 * 3 + 4 * 2 + 3 * 10)
    for row in rows:
        report = row["report"]
        assert report["n_plus"] + report["n_minus"] + report["n_zero"] == normal_dimension
        assert report["min_eigenvalue"] == min(min(values) for values in row["min_eigenvalue"].values())
    assert rows[1]["report"] != rows[2]["report"]  # the same network under other labels


def test_table_and_figure_show_every_measurement(recorded):
    assert [row[:2] for row in table(recorded).rows] == [("1", "0"), ("1", "1"), ("2", "0")]
    drawn = figure(recorded)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in drawn.axes)
    lines = [line for line in drawn.axes[1].lines if len(line.get_xdata()) == 3]
    np.testing.assert_allclose(
        lines[0].get_ydata(),
        [np.median(-np.array(row["min_eigenvalue"]["hidden_0"])) for row in measured(recorded)],
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": (5, 1)}, r"epochs=\(5, 1\): must be epochs >= 0 in ascending order"),
        ({"epochs_after": ()}, r"epochs_after=\(\)"),
        ({"num_images": 0}, r"num_images=0: must be in 1\.\.1437"),
        ({"batch_size": 5000}, r"batch_size=5000: must be in 1\.\.1437"),
        ({"factor": 0}, r"factor=0: must be a positive integer"),
        ({"learning_rate": -1.0}, r"learning_rate=-1.0: must be positive and finite"),
    ],
)
def test_mistakes_are_refused_before_anything_is_compiled(change, message, unchecked):
    with pytest.raises(ValueError, match=message):
        build(dataclasses.replace(TINY, **change))


def test_a_run_killed_after_every_part_ends_with_the_same_bits(recorded, tmp_path):
    class Killed(BaseException):
        pass

    def dying(description, steps):
        calls.extend([steps] if steps else [])
        if len(calls) > len(lives):  # parts done in earlier lives are reported again
            raise Killed

    folder, lives = runs.open_run(tmp_path / "tiny", TINY), []
    for life in range(2):
        calls = []
        with pytest.raises(Killed):
            play(parts(TINY, build(TINY)), None, folder, progress=dying)
        lives.append(life)
    folder = runs.open_run(folder.folder, TINY, resume=True)
    assert len(runs.load(folder.folder).records) == 3  # two measurements and an epoch of training
    play(parts(TINY, build(TINY)), None, folder, say=lambda sentence: pytest.fail(sentence))
    assert folder.metrics_path.read_bytes() == (recorded.folder / "metrics.jsonl").read_bytes()


def test_the_number_of_checkpoints_is_checked(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        main(["--root", str(tmp_path), "--keep-checkpoints", "0"])
    assert stop.value.code == 2
    assert "--keep-checkpoints=0: must be at least 1" in capsys.readouterr().err
