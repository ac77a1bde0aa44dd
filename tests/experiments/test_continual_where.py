"""Where rank falls first, on made-up records whose falls are known."""

import numpy as np
import pytest
from scipy import stats

from experiments.continual import where
from experiments.continual.where import fall_of, row_of, table_of
from lopjax.runs import RunData

TASKS = 8


def run_of(tmp_path, falls, accuracy_at: int = TASKS, seeds=(0, 1, 2), noise: float = 0.1, **config) -> RunData:
    """Fresh networks have rank 10 and accuracy 0.9; layer `i` loses 3 from task `falls[i]` on; noise on all."""
    generator, records = np.random.default_rng(0), []
    for method in ("fresh_adam", "adam"):
        for seed in seeds:
            for task in range(TASKS):
                is_late = [method == "adam" and task + 1 >= fall for fall in falls]
                ranks = {
                    f"probe/effective_rank/hidden_{layer}": 10 - 3 * late + noise * generator.uniform(-1, 1)
                    for layer, late in enumerate(is_late)
                }
                is_lost = method == "adam" and task + 1 >= accuracy_at
                where = {"method": method, "seed": seed, "task": task, "step": task + 1, "is_end": True}
                accuracy = 0.9 - 0.3 * is_lost + 0.01 * generator.uniform(-1, 1)
                records.append({**where, **ranks, "probe/effective_rank/mean": 0.0, "online_accuracy": accuracy})
    config = {"methods": ["adam"], "seeds": list(seeds), "fresh": True, "fresh_every": 1, **config}
    return RunData(tmp_path, config, records, None, "continual")


@pytest.mark.parametrize(("falls", "accuracy_at"), [((5, 3, 3), 4), ((3, 99, 99), 7)])
def test_the_first_layer_and_task_are_found(tmp_path, falls, accuracy_at):
    run = run_of(tmp_path, falls, accuracy_at)
    found = [fall_of(run, f"probe/effective_rank/hidden_{layer}") for layer in range(3)]
    assert [fall.first for fall in found] == [fall if fall < TASKS else None for fall in falls]
    assert fall_of(run, "online_accuracy").first == accuracy_at
    earliest = ", ".join(str(layer + 1) for layer, fall in enumerate(falls) if fall == min(falls))
    assert f"| {accuracy_at} | {min(falls)} (layer {earliest}) |" in row_of(run, "made up")


def test_differences_are_those_of_numpy_over_the_last_half(tmp_path):
    run, name = run_of(tmp_path, (3, 99)), "probe/effective_rank/hidden_0"
    ranks = {(r["method"], r["seed"], r["task"]): r[name] for r in run.records}
    of_seeds = [
        np.mean([ranks["adam", seed, t] - ranks["fresh_adam", seed, t] for t in range(TASKS // 2, TASKS)])
        for seed in range(3)
    ]
    late = fall_of(run, name).late
    assert late.mean == pytest.approx(np.mean(of_seeds))
    assert late.half == pytest.approx(stats.t.ppf(0.975, 2) * np.std(of_seeds, ddof=1) / np.sqrt(3))


def test_nothing_has_fallen_where_nothing_is_lost_or_a_single_task_is_low(tmp_path):
    """The control: the same noise without a fall, and a fall at one task only."""
    run = run_of(tmp_path, (99, 99))
    assert "| - | - |" in row_of(run, "none")
    records = [
        {**r, "probe/effective_rank/hidden_0": 1.0} if r["method"] == "adam" and r["task"] == 4 else r
        for r in run.records
    ]
    assert fall_of(run._replace(records=records), "probe/effective_rank/hidden_0").first is None


def test_a_diverged_seed_is_not_overlooked(tmp_path):
    run = run_of(tmp_path, (3, 99))
    records = [
        {**r, "probe/effective_rank/hidden_1": None} if r["seed"] == 1 and r["method"] == "adam" else r
        for r in run.records
    ]
    assert "| 2: not finite |" in row_of(run._replace(records=records), "diverged")


def test_what_has_no_comparison_is_refused(tmp_path, capsys):
    for changes, message in (
        ({"fresh": False}, "must have a fresh network at every task"),
        ({"fresh_every": 2}, "must have a fresh network at every task"),
        ({"seeds": (0,)}, "has 1 seed; an interval needs at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            table_of([run_of(tmp_path, (3,), **changes)], ["run"])
    with pytest.raises(ValueError, match="records no probe/effective_rank"):
        row_of(run_of(tmp_path, ()), "run")
    with pytest.raises(SystemExit):
        where.main([str(tmp_path)])
    assert "not a run folder" in capsys.readouterr().err
