"""E1's companion: what `python -m experiments.stability` records agrees with the library, and mistakes are refused."""

import dataclasses

import numpy as np
import pytest

from experiments import stability
from experiments.networks import MLP
from lopjax import runs

TINY = dataclasses.replace(
    stability.PRESETS["quick"],
    net=MLP(widths=(3, 2), norm="none"),
    epochs=(0, 1),
    epochs_after=(0,),
    num_images=60,
    batch_size=200,
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = runs.open_run(tmp_path_factory.mktemp("runs") / "tiny", TINY)
    dataset, model = stability.build(TINY)
    stability.run(TINY, dataset, model, folder, lambda description, steps: None)
    return runs.load(folder.folder)


def test_every_asked_epoch_is_measured_and_counts_fill_the_normal_space(recorded):
    rows = stability.measured(recorded)
    assert [(row["task"], row["epoch"], row["total_epoch"]) for row in rows] == [(0, 0, 0), (0, 1, 1), (1, 0, 1)]
    # Parameters of 64-6-4-10 less those of 64-3-2-10.
    normal_dimension = (65 * 6 + 7 * 4 + 5 * 10) - (65 * 3 + 4 * 2 + 3 * 10)
    for row in rows:
        report = row["report"]
        assert report["n_plus"] + report["n_minus"] + report["n_zero"] == normal_dimension
        assert report["min_eigenvalue"] == min(min(values) for values in row["min_eigenvalue"].values())
    assert rows[1]["report"] != rows[2]["report"]  # the same network under other labels


def test_table_and_figure_show_every_measurement(recorded):
    table = stability.table(recorded)
    assert [row[:2] for row in table.rows] == [("1", "0"), ("1", "1"), ("2", "0")]
    figure = stability.figure(recorded)
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    lines = [line for line in figure.axes[1].lines if len(line.get_xdata()) == 3]
    np.testing.assert_allclose(
        lines[0].get_ydata(),
        [np.median(-np.array(row["min_eigenvalue"]["hidden_0"])) for row in stability.measured(recorded)],
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
        stability.build(dataclasses.replace(TINY, **change))


def test_a_run_killed_after_every_part_ends_with_the_same_bits(recorded, tmp_path):
    class Killed(BaseException):
        pass

    def dying(description, steps):
        calls.append(steps)
        if len(calls) > len(lives):  # parts done in earlier lives are reported again
            raise Killed

    dataset, model = stability.build(TINY)
    folder, lives = runs.open_run(tmp_path / "tiny", TINY), []
    for life in range(2):
        calls = []
        with pytest.raises(Killed):
            stability.run(TINY, dataset, model, folder, dying)
        lives.append(life)
    folder = runs.open_run(folder.folder, TINY, resume=True)
    assert len(runs.load(folder.folder).records) == 3  # two measurements and an epoch of training
    assert stability.run(TINY, dataset, model, folder, lambda description, steps: None) == ()
    assert folder.metrics_path.read_bytes() == (recorded.folder / "metrics.jsonl").read_bytes()


def test_the_number_of_checkpoints_is_checked(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["stability", "--root", str(tmp_path), "--keep-checkpoints", "0"])
    with pytest.raises(SystemExit) as stop:
        stability.main()
    assert stop.value.code == 2
    assert "--keep-checkpoints=0: must be at least 1" in capsys.readouterr().err
