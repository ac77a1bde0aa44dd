"""The table of remedies: its report on records whose answer is known, the choice of a setting, and bad input."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.remedies import EXPERIMENT
from experiments.remedies.config import PRESETS, StreamConfig
from experiments.remedies.figures import methods_and_streams
from experiments.remedies.lane import LAGS, keys_of, make_measure, make_program
from experiments.remedies.methods import CONTROLS, METHODS, NUM_SETTINGS, remedy_of
from experiments.remedies.parts import TUNE, Life, Phase
from experiments.remedies.report import BASES, summarise, table, texts
from experiments.remedies.streams import build, make_bench
from experiments.remedies.together import together
from lopjax.runs import RunData
from lopjax.training import train_step

SEEDS, RECORDS = (0, 1, 2, 3, 4), 10
# By method, online score at the first and at the last record; the fresh network's is 0.9 throughout.
SCORES = {"fresh": (0.9, 0.9), "plain": (0.9, 0.5), "l2_init": (0.8, 0.8), "cpr": (0.9, 0.7), "nap": (0.6, 0.9)}


def run_of(noise=0.002, diverged=()):
    """A run on one stream with these scores, a harder or easier task now and then, alike for all methods."""
    random, records = np.random.default_rng(0), []
    hard = random.normal(size=(len(SEEDS), RECORDS))
    for method, (first, last) in SCORES.items():
        for seed in SEEDS:
            for number, score in enumerate(np.linspace(first, last, RECORDS)):
                online = score + 0.2 * hard[seed, number] + noise * random.normal()
                where = {"stream": "mixtures", "method": method, "seed": seed, "phase": "evaluate", "record": number}
                frozen = {"frozen_at": 40, "online": None} if method in diverged and number > 3 else {"online": online}
                measured = {"transfer": -0.3 * len(LAGS), "transfers": len(LAGS), "touched": 0.0, "setting": 2}
                measured |= {"end": 2 * score + hard[seed, number]}
                records.append({**where, **measured, "task": number + 1, "cpu_ms_per_step": 1.0, **frozen})
    methods = [name for name in SCORES if name not in CONTROLS]
    config = {"streams": ["mixtures"], "methods": methods, "seeds": list(SEEDS), "tuning_seeds": [100]}
    return RunData(Path(), config, records, None, "remedies")


def test_the_report_names_what_was_lost_kept_and_gained():
    """Difficulty of the tasks, a hundred times the noise, cancels in every pair; forgetting stands beside it."""
    rows = {row["method"]: row for row in summarise(run_of())}
    found = {name: row["verdict"] for name, row in rows.items()}
    assert found == {"fresh": "reference", "plain": "lost", "l2_init": "kept", "cpr": "lost", "nap": "gained"}
    mean, low, high = rows["plain"]["late_less_fresh"]
    late = np.linspace(0.9, 0.5, RECORDS)[5:].mean() - 0.9
    assert low < late < high
    assert mean == pytest.approx(late, abs=0.005)
    assert rows["l2_init"]["late_less_plain"][0] == pytest.approx(0.9 - 0.1 - (0.9 + late), abs=0.005)
    assert rows["cpr"]["transfer"][0] == pytest.approx(-0.3)
    assert rows["plain"]["test_less_fresh"] == pytest.approx([2 * late] * 3)  # without noise: no width
    assert rows["plain"]["setting"] is None
    assert rows["cpr"]["setting"] == 2


def test_what_a_controller_did_is_counted_from_means_over_steps():
    """Two actions kept, one undone in each of ten records of 400 steps; the other methods have no such row."""
    did = {"own/kept": 2 / 400, "own/undone": 1 / 400, "own/change": 0.1 / 400, "own/rise": 0.5 / 400}
    run = run_of()
    records = [{**record, **did} if record["method"] == "cpr" else record for record in run.records]
    config = {**run.config, "mixtures": {"steps": 400, "tasks_per_record": 1}}
    run = run._replace(records=records, config=config)
    rows = {row["method"]: row["treatment"] for row in summarise(run)}
    assert rows["cpr"] == pytest.approx({"kept": 20, "undone": 10, "change": 1.0, "rise": 0.25})
    assert rows["nap"] is None
    assert "CPR: 20.0 actions kept and 10.0 undone per seed; in all they changed" in texts(run)["table.md"]


def test_noise_makes_it_undecided_and_a_diverged_seed_is_named():
    """With noise as large as what is lost nothing is said; a lane that is frozen is no mean over the others."""
    rows = {row["method"]: row for row in summarise(run_of(noise=3.0))}
    assert rows["l2_init"]["verdict"] == "undecided"
    rows = {row["method"]: row for row in summarise(run_of(diverged=("cpr",)))}
    assert rows["cpr"]["verdict"] == "diverged at 40"
    assert rows["cpr"]["late_less_plain"] == [None, None, None]
    plain_kept = run_of(diverged=("plain",))
    assert {row["method"]: row["verdict"] for row in summarise(plain_kept)}["l2_init"] != "kept"
    assert len(table(run_of(diverged=("cpr",))).rows) == len(SCORES)
    assert "| CPR | cpr strength 0.15, reset every 50 | lost |" in texts(run_of())["table.md"]


def test_all_settings_are_printed_with_what_they_scored_on_the_tuning_seeds():
    run, scores = run_of(), (0.25, 0.5, 0.75, 0.625)
    tried = [
        {**record, "phase": "tune", "seed": 100, "setting": number, "online": score, "transfer": -0.3, "transfers": 1.0}
        for record in run.select(method="cpr", seed=0)
        for number, score in enumerate(scores)
    ]
    text = texts(run._replace(records=[*run.records, *tried]))["table.md"]
    assert "| CPR | cpr strength 0.015, reset every 50: 0.250; -0.300 | " in text
    assert "reset every 200: 0.625; -0.300 |" in text
    assert "tuning seeds" not in texts(run)["table.md"].split("**mixtures**")[1]


def part_of(run, name, methods, cost):
    """What a run of some of the methods alone would have left, on a machine of another speed."""
    chosen = [*CONTROLS, *methods]
    records = [{**one, "cpu_ms_per_step": cost * (1 + (one["method"] == "nap"))} for one in run.records]
    stream = {"num_tasks": RECORDS, "tasks_per_record": 1}
    config = {**run.config, "methods": methods, "mixtures": stream}
    records = [one for one in records if one["method"] in chosen]
    return run._replace(folder=Path(name), config=config, records=records)


def test_runs_made_in_parts_make_one_table():
    """The rows of the whole; costs relative to each run's own plain; what is incomplete is taken from another run."""
    run = run_of()
    first, second = part_of(run, "a", ["l2_init", "nap"], 1.0), part_of(run, "b", ["nap", "cpr"], 3.0)
    half = first._replace(records=[r for r in first.records if r["method"] != "nap" or r["record"] < 5])
    merged = together([half, second])
    rows, whole = ({row["method"]: row for row in rows} for rows in (merged.summary, summarise(run)))
    assert rows == {name: {**row, "cost": 2.0 if name == "nap" else 1.0} for name, row in whole.items()}
    assert "| CPR | cpr strength 0.15, reset every 50 | lost |" in texts(merged)["table.md"]
    assert len(methods_and_streams(merged).axes) == 3
    other = second._replace(config={**second.config, "seeds": [1, 2]})
    with pytest.raises(ValueError, match=r"b: seeds=\[1, 2\], and a has \[0, 1, 2, 3, 4\]"):
        together([first, other])
    changed = [{**r, "online": r["online"] + 1e-3 * (r["method"] == "plain")} for r in second.records]
    with pytest.raises(ValueError, match="b: plain on mixtures has other scores than in a; the code is not the same"):
        together([first, second._replace(records=changed)])


def test_the_setting_with_the_best_mean_is_taken_and_one_that_diverged_is_not():
    totals = np.repeat([1.0, 3.0, 2.0, 9.0], 2) + np.tile([0.5, -0.5], 4)
    lanes = SimpleNamespace(read=np.asarray)
    life = SimpleNamespace(phases=[Phase(TUNE, lanes)], totals=lambda tuned: tuned.total)
    for frozen, best in ((-1, 3), (17, 1)):
        frozen_at = np.array([-1, -1, -1, -1, -1, -1, -1, frozen])
        assert Life.best(life, SimpleNamespace(total=totals, frozen_at=frozen_at)) == best


def test_all_methods_have_the_same_budget_and_say_what_they_look_at():
    assert {len(one) for remedy in METHODS.values() for one in remedy.settings.values()} == {NUM_SETTINGS}
    full = PRESETS["full"]
    streams = {one.name for one in dataclasses.fields(full) if isinstance(getattr(full, one.name), StreamConfig)}
    assert set(BASES) == streams


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": (0, 100)}, r"seeds=\(0, 100\): must not be tuning seeds; \[100\] are both"),
        ({"streams": ()}, r"streams=\(\): must be distinct, at least one"),
        ({"methods": ("cpr", "cpr")}, "must be distinct"),
        ({"upgd": StreamConfig(12, 200, 1, 0.02, (4,), 5)}, r"upgd\.tasks_per_record=5: must divide"),
        ({"upgd": StreamConfig(8, 200, 1, 0.02, (4,), 2)}, "at least five records"),
        (
            {"streams": ("bit_flipping",), "bit_flipping": StreamConfig(8, 9, 1, 0.01, (5, 5))},
            "must be one hidden layer",
        ),
        ({"upgd": StreamConfig(8, 0, 1, 0.02, (4,))}, r"upgd\.steps=0: must be at least 1"),
        ({"upgd": StreamConfig(8, 9, 1, float("nan"), (4,))}, r"upgd\.learning_rate=nan: must be positive"),
    ],
)
def test_bad_configs_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        build(dataclasses.replace(PRESETS["quick"], **{"streams": ("upgd",), **changed}))


def test_transfer_is_the_change_since_a_task_ended():
    """By hand: scores 1, 2 and 4 tasks back, those that are there; logs are means over the steps of a task."""
    bench = make_bench("upgd", StreamConfig(8, 5, 1, 0.1, (2,)))

    def test(data, key, task):
        return jnp.ones((3, 16)), jnp.full((3, 1), 0.5) * task

    linear = bench.model._replace(apply=lambda weight, inputs: SimpleNamespace(logits=weight * inputs[:, :1]))
    bench = bench._replace(test=test, model=linear)
    own = jnp.array([-0.1, -0.2, -0.3, -0.4])
    for task, lags in ((0, []), (2, [1, 2]), (7, [1, 2, 4])):
        found, logs = make_measure(bench)(jnp.float32(1.5), own, jax.random.key(0), jnp.int32(task))
        score = lambda at: -((1.5 - 0.5 * at) ** 2)  # noqa: E731
        changes = [score(task - lag) - float(own[lag - 1]) for lag in lags]
        assert float(logs["transfer"]) == pytest.approx(5 * sum(changes), rel=1e-5)
        assert float(logs["transfers"]) == 5 * len(lags)
        np.testing.assert_allclose(found, [score(task), *own[:3]], rtol=1e-5)


def test_bit_flipping_is_tested_on_what_a_task_can_show():
    """All 32 inputs of the task, and the targets that its stream gives for them; another task has others."""
    bench = make_bench("bit_flipping", StreamConfig(8, 9, 1, 0.01, (5,)))
    key = jax.random.key(3, impl="philox4x32")
    inputs, targets = jax.device_get(bench.test((), key, jnp.int32(2)))
    drawn = [jax.device_get(bench.stream.draw((), key, jnp.int32(18 + step)).batch) for step in range(2)]
    assert len(np.unique(inputs, axis=0)) == 32
    for seen, target in drawn:
        (place,) = np.flatnonzero((inputs == seen[0]).all(axis=1))
        assert targets[place] == target[0]
    assert not np.array_equal(inputs, bench.test((), key, jnp.int32(3))[0])
    assert bench.model.wiring.size("hidden_0") == 5


@pytest.mark.parametrize("method", ["fresh", "redo", "muon", "upgd", "recovery"])
def test_a_step_keeps_the_structure_of_its_lane(method):
    """Traced, not run: what is carried has the same shapes and types after a step, with traced settings."""
    bench = make_bench("upgd", StreamConfig(8, 5, 1, 0.1, (3,)))
    program = make_program(bench, remedy_of(method))
    keys = jax.eval_shape(keys_of, jnp.int32(0))
    lane = jax.eval_shape(program.start, keys, jnp.int32(0))
    drawn = jax.eval_shape(bench.stream.draw, bench.stream.data, keys.lane, jnp.int32(0))
    after, _ = jax.eval_shape(program.step, lane, drawn, keys.lane, jnp.int32(0))
    assert jax.tree.structure(after) == jax.tree.structure(lane)
    assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(lane)))


def pixels():
    return make_bench("permuted_pixels", StreamConfig(8, 5, 16, 0.01, (6, 4)))


def started(bench, method, number):
    lane = make_program(bench, remedy_of(method)).start(keys_of(jnp.int32(3)), jnp.int32(number))
    drawn = bench.stream.draw(bench.stream.data, lane.keys.lane, jnp.int32(0))
    return lane, drawn


@pytest.mark.parametrize(("method", "more"), [("plain", 0), ("dropout", 0), ("batch_norm", 20), ("layer_norm", 20)])
def test_a_norm_adds_its_scales_and_offsets_to_the_network(method, more):
    """Two numbers for each of the ten hidden units, by count; and the methods keep their lane's structure."""
    bench = pixels()
    lane, drawn = jax.eval_shape(lambda: started(bench, method, 0))
    size = sum(leaf.size for leaf in jax.tree.leaves(lane.net.variables["params"]))
    assert size == 64 * 6 + 6 + 6 * 4 + 4 + 4 * 10 + 10 + more
    step = make_program(bench, remedy_of(method)).step
    after, _ = jax.eval_shape(step, lane, drawn, lane.keys.lane, jnp.int32(0))
    assert jax.tree.structure(after) == jax.tree.structure(lane)


def test_dropout_trains_with_the_rate_of_its_setting():
    """By another road: a step of `train_step` itself at this rate; the control is another rate."""
    bench, number, key = pixels(), 3, jax.random.key(9, impl="philox4x32")
    (rate,) = METHODS["dropout"].settings["adam"][number].values()
    lane, drawn = started(bench, "dropout", number)
    after, _ = jax.jit(make_program(bench, remedy_of("dropout")).step)(lane, drawn, key, jnp.int32(0))
    batch = bench.inputs(drawn.batch[0]), drawn.batch[1]

    @jax.jit
    def trained(other):
        step_key = jax.random.split(key)[0]
        return train_step(
            bench.model, optax.adam(0.01), lane.net, batch, step_key, loss=bench.loss, dropout_rate=other
        )[0]

    for other, is_same in ((rate, True), (rate / 2, False)):
        pairs = zip(*map(jax.tree.leaves, (trained(other).variables, after.net.variables)))
        assert all(np.allclose(a, b, atol=1e-6) for a, b in pairs) == is_same


def test_the_experiment_is_found_by_its_name():
    assert EXPERIMENT.name == Path(__file__).stem.removeprefix("test_")
