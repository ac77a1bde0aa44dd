"""Runs of the continual-learning experiment beside other curves, and beside each other, on made-up records."""

import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.continual.compare import main, rows_of, table_of
from experiments.continual.config import MLPConfig
from experiments.continual.joined import joined, load_joined
from experiments.continual.norms import cut_alike, late_of_seeds, norms_figure
from experiments.continual.norms import table_of as norms_table
from experiments.continual.problem import make_problem
from experiments.continual.running_averages import averages_table, both_ways
from lopjax.data.tasks import class_order
from lopjax.models import mlp
from lopjax.runs import RunData, open_run
from lopjax.training import task_examples


@dataclass(frozen=True)
class Pretraining:
    """The config of another experiment."""

    seeds: tuple[int, ...] = (0,)


def run_of(folder, num_tasks: int = 4, shift: float = 0.0) -> RunData:
    records = [
        {
            "method": method, "seed": seed, "task": task, "step": task + 1, "is_end": True,
            "online_accuracy": 0.5 + 0.1 * task + shift, "test_accuracy": 0.4, "train_loss": 1.0,
            "stream/dead_fraction/mean": 0.25, "stream/duplicate_fraction/mean": 0.0,
            "stream/effective_rank/mean": 50.0 + seed, "probe/dead_fraction/mean": 0.1 * task,
            "probe/duplicate_fraction/mean": 0.0, "probe/saturated_fraction/mean": 0.0,
            "probe/effective_rank/mean": 40.0,
        }
        for method in ("fresh_adam", "adam") for seed in (0, 1) for task in range(num_tasks)
    ]  # fmt: skip
    config = {"methods": ["adam"], "seeds": [0, 1], "fresh": True, "net": {"norm": "none"}, "steps": 300}
    config |= {"class_order": 3, "earlier": [1]}
    return RunData(folder, config, records, None, "continual")


def reference(num_tasks: int = 5) -> dict:
    rows = [
        {"online_acc": 0.5 + 0.1 * task, "train_loss": 1.2, "val_acc": 0.4, "dead_fraction": 0.2 + 0.02 * (task % 2)}
        for task in range(num_tasks)
    ]
    same = {"norm": "none", "fresh": False, "steps": 300, "order": class_order(6, 3).tolist()}
    unlike = ({"norm": "batch"}, {"steps": 9}, {"order": class_order(6, 4).tolist()})
    others = [{**same, **other, "rows": [{**row, "train_loss": 9.0} for row in rows]} for other in unlike]
    return {"runs": [*others, {**same, "rows": rows}]}


def test_only_tasks_that_both_have_are_compared_half_by_half(tmp_path):
    rows = {(row.quantity, row.tasks): row for row in rows_of(run_of(tmp_path), reference())}
    assert {row.network for row in rows.values()} == {"continual"}  # the reference has no fresh network
    assert {quantity for quantity, _ in rows} == {
        *("online accuracy", "training loss after the task"),
        *("validation accuracy after the task", "dead units, on the task"),
    }
    first, last = (rows["online accuracy", tasks] for tasks in ("1–2", "3–4"))
    np.testing.assert_allclose((first.ours, last.ours), [[0.55] * 2, [0.75] * 2])
    np.testing.assert_allclose((first.theirs, last.theirs), [[0.55], [0.75]])
    assert first.difference.mean == pytest.approx(0)
    dead = rows["dead units, on the task", "3–4"].difference
    # 0.25 - (0.20, 0.22): mean 0.04, deviation 0.02 / sqrt(2), t of one degree of freedom 12.706.
    assert (dead.mean, dead.half) == (pytest.approx(0.04), pytest.approx(12.706 * 0.01, rel=1e-3))
    text = table_of(list(rows.values()))
    assert (
        "| continual | training loss after the task | 1–2 | 1.000 (1.000–1.000) | 1.200 | **-0.200 ± 0.000** |" in text
    )
    assert "| 0.210 | +0.040 ± 0.127 |" in text


def test_fresh_networks_at_some_tasks_are_compared_at_these(tmp_path):
    run, other = run_of(tmp_path), reference()
    other["runs"].append({**other["runs"][-1], "fresh": True})
    run = run._replace(records=[r for r in run.records if r["method"] == "adam" or r["task"] in (1, 2, 3)])
    rows = {(row.network, row.quantity, row.tasks): row for row in rows_of(run, other)}
    dead = [rows["fresh", "dead units, on the task", tasks] for tasks in ("1–2", "3–4")]
    np.testing.assert_allclose([row.theirs[0] for row in dead], [0.22, 0.21])  # task 2 alone; tasks 3 and 4
    assert dead[1].difference.mean == pytest.approx(0.04)
    assert "| +0.030 |" in table_of(list(rows.values()))  # one task has no interval


def test_what_cannot_be_compared_is_refused(tmp_path, capsys, monkeypatch):
    with pytest.raises(ValueError, match="has no runs with norm='none', 300 steps per task and class_order=3"):
        rows_of(run_of(tmp_path), {"runs": reference()["runs"][:3]})
    with pytest.raises(ValueError, match="no task is done by all networks yet"):
        rows_of(run_of(tmp_path, num_tasks=1), reference())
    (tmp_path / "reference.json").write_text(json.dumps(reference()))
    monkeypatch.setattr("sys.argv", ["compare", str(tmp_path), str(tmp_path / "reference.json")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "not a run folder" in capsys.readouterr().err
    for content, message in (("[]", 'must be {"runs"'), ("{", "Expecting"), (None, "No such file")):
        file = tmp_path / "reference.json"
        file.unlink() if content is None else file.write_text(content)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


def test_runs_side_by_side_are_cut_to_the_tasks_that_all_have(tmp_path):
    whole, part = run_of(tmp_path / "none"), run_of(tmp_path / "batch", num_tasks=2)
    lines = norms_table(cut_alike([whole, part]), ("none", "batch")).splitlines()
    assert lines[2] == "| online accuracy | 0.600 ± 0.000 | 0.600 ± 0.000 | +0.000 ± 0.000 |"  # of task 2, in both
    uneven = run_of(tmp_path / "uneven")
    uneven = uneven._replace(records=[r for r in uneven.records if r["seed"] == 0 or r["task"] < 2])
    assert {record["task"] for record in cut_alike([uneven])[0].records} == {0, 1}
    assert cut_alike([whole, whole])[1].records == whole.records  # the control
    other = run_of(tmp_path / "other")
    with pytest.raises(ValueError, match=r"other: steps=9, and .*none has 300; .* must have the same tasks"):
        cut_alike([whole, other._replace(config={**other.config, "steps": 9})])
    with pytest.raises(ValueError, match=r"empty: no task of seed 0 is finished"):
        cut_alike([whole, run_of(tmp_path / "empty", num_tasks=0)])


def test_several_runs_are_drawn_as_curves_and_bars(tmp_path):
    figure = norms_figure([run_of(tmp_path / "none"), run_of(tmp_path / "batch", shift=0.1)])
    upper, lower = figure.axes[0], figure.axes[5]
    assert [text.get_text() for text in lower.get_xticklabels()] == ["none", "batch"]
    np.testing.assert_allclose(upper.lines[0].get_ydata(), 0, atol=1e-12)  # as good as the fresh network
    dead = figure.axes[7]
    np.testing.assert_allclose([bar.get_height() for bar in dead.patches], 0.25)  # tasks 3 and 4: 0.2, 0.3


def test_without_fresh_networks_accuracy_and_loss_are_drawn_themselves(tmp_path):
    run = run_of(tmp_path / "none")
    bare = run._replace(config={**run.config, "fresh": False})
    figure = norms_figure([run, bare])  # one without is enough
    accuracy, loss = figure.axes[:2]
    assert [axes.get_ylabel() for axes in (accuracy, loss)] == ["online accuracy", "training loss\nafter the task"]
    np.testing.assert_allclose(accuracy.lines[1].get_ydata(), [0.5, 0.6, 0.7, 0.8])


def seed_of(run: RunData, seed: int, **changes) -> RunData:
    """One seed of a run, as a run."""
    config = {**run.config, "seeds": [seed], **changes}
    return run._replace(config=config, records=run.select(seed=seed))


def test_runs_of_one_seed_each_are_one_run(tmp_path):
    run = run_of(tmp_path)
    parts = [seed_of(run, 1), seed_of(run, 0, fresh_every=2)]
    whole = joined(parts)
    assert whole.config["seeds"] == [1, 0]
    assert not whole.config["fresh"]  # not at the same tasks
    assert joined([parts[0], seed_of(run, 0)]).config["fresh"]
    rank = late_of_seeds(whole, "stream/effective_rank/mean")
    np.testing.assert_allclose(rank, [51, 50])
    with pytest.raises(ValueError, match=r"have seeds \[1, 1\]; must be distinct"):
        joined([parts[0], parts[0]])
    with pytest.raises(ValueError, match=r"steps=9, and .* has 300; only seeds may differ"):
        joined([parts[0], seed_of(run, 0, steps=9)])
    # A run from before a field existed did what the field's default does.
    assert joined([parts[0], seed_of(run, 0, look_every=0)]).config["seeds"] == [1, 0]
    with pytest.raises(ValueError, match=r"look_every=5, and .* has 0; only seeds may differ"):
        joined([parts[0], seed_of(run, 0, look_every=5)])


def test_a_run_of_another_experiment_is_refused(tmp_path):
    open_run(tmp_path / "run", Pretraining(), experiment="cloning")
    with pytest.raises(ValueError, match=r"run: a run of experiments.cloning, without [a-z]+; must be of continual"):
        load_joined(str(tmp_path / "run"))


def test_the_table_of_runs_has_means_of_the_last_half_and_differences_paired_by_seed(tmp_path):
    first, other = run_of(tmp_path), run_of(tmp_path, shift=0.1)
    for record in other.records:  # by 0.1 in one seed and by 0.3 in the other
        record["online_accuracy"] += 0.2 * record["seed"]
    lines = norms_table([first, joined([seed_of(other, 1), seed_of(other, 0)])], ("none", "batch")).splitlines()
    assert lines[0] == "| last half of the tasks | none | batch | batch − none |"
    # The mean of 0.7 and 0.8; differences 0.1 and 0.3: mean 0.2, t of one degree of freedom 12.706 times 0.1.
    assert lines[2] == "| online accuracy | 0.750 ± 0.000 | 0.950 ± 1.271 | +0.200 ± 1.271 |"
    ranks = next(line for line in lines if line.startswith("| rank, on the task"))
    assert ranks.endswith("| 50.5 ± 6.4 | 50.5 ± 6.4 | +0.000 ± 0.000 |")


def test_a_network_with_batch_norm_is_tested_with_its_running_averages_and_with_those_of_the_test_set():
    """By another road: one hidden layer written out, with running means and variances that are far from the task's."""
    problem = make_problem(MLPConfig(tasks="permuted_pixels", dataset="digits", probe_samples=10), None)
    model, key = mlp((8, 8, 1), (6,), 10, norm="batch"), jax.random.key(5, impl="philox4x32")
    variables = model.init(jax.random.key(0))
    averages = [leaf + 0.7 for leaf in jax.tree.leaves(variables["batch_stats"])]
    variables["batch_stats"] = jax.tree.unflatten(jax.tree.structure(variables["batch_stats"]), averages)
    stored, labels = task_examples(problem.test, problem.test.data, key, 2)
    (b0, w0), (b1, w1) = ((p["bias"], p["kernel"]) for p in (variables["params"][n] for n in ("hidden_0", "classes")))
    z = np.asarray(problem.inputs(stored, None)).reshape(len(labels), -1) @ w0 + b0

    def accuracy(mean, variance):
        hidden = np.maximum((z - mean) / np.sqrt(variance + 1e-5), 0)
        return np.mean((hidden @ w1 + b1).argmax(axis=1) == labels)

    expected = accuracy(0.7, 1.7), accuracy(z.mean(axis=0), z.var(axis=0))
    assert expected[0] != expected[1]
    np.testing.assert_allclose(both_ways(model, problem, variables, key, jnp.int32(2)), expected, atol=1e-6)


def test_only_runs_with_running_averages_have_a_table_of_them(tmp_path):
    run = run_of(tmp_path)
    run = run._replace(config={**MLPConfig().__dict__, "net": {"norm": "layer"}})
    with pytest.raises(ValueError, match="norm='layer'; only batch norm has running averages"):
        averages_table(run)
