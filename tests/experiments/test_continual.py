"""The continual-learning experiment: fresh networks are fresh, records say what they claim, cuts change nothing."""

import gc
import weakref
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy import stats

from experiments.continual.__main__ import main
from experiments.continual.config import PRESETS, MLPConfig
from experiments.continual.figures import correlation, figures
from experiments.continual.lane import head_of, mixed_head, plasticity, with_head
from experiments.continual.methods import groups_of, lanes_of
from experiments.continual.parts import parts
from experiments.continual.problem import image_problem, make_problem
from experiments.continual.report import (
    backward_transfer,
    less_fresh,
    lost,
    over_tasks,
    summarise,
    table,
    verdict,
)
from experiments.continual.setup import build
from experiments.continual.sharpness import config_of, last_task, sharpness, sharpness_table
from experiments.kit.intervals import interval
from experiments.kit.networks import MLP
from lopjax import data
from lopjax.losses import mean_cross_entropy
from lopjax.runs import RunData, load, open_run
from lopjax.runs.schedule import expected_records, play
from lopjax.training import init_state, train_step

TINY = MLPConfig(
    tasks="gaussian_mixtures", num_tasks=3, steps=20, batch_size=100, methods=("adam", "l2_init"), seeds=(0, 1),
    net=MLP(widths=(4, 4), activation="tanh", norm="none", init="lecun"), adam_learning_rate=0.01, probe_samples=40,
    l2_init=1e-3, record_every=10, earlier=(1,), level=0.6,
)  # fmt: skip
DIGITS = replace(
    TINY, tasks="class_incremental", dataset="digits", classes_per_task=2, zero_head=True, batch_size=32, seeds=(0,),
    methods=("adam",), net=MLP(widths=(4, 4), norm="none"), record_every=0,
)  # fmt: skip


def played(config, folder, stop=None) -> RunData:
    """A run, or what there is of it after so many parts."""
    setup = build(config)
    all_parts = parts(config, setup)
    run = open_run(folder, config, resume=True, experiment="continual")
    play(all_parts if stop is None else all_parts[:stop], None, run)
    return load(folder)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> RunData:
    root = tmp_path_factory.mktemp("root")
    flags = ["--num-tasks", "3", "--steps", "20", "--methods", "adam", "l2_init", "--seeds", "0", "1"]
    flags += ["--net.widths", "4", "4", "--adam-learning-rate", "0.01", "--probe-samples", "40", "--earlier", "1"]
    main(["--root", str(root), "--name", "tiny", *flags, "--record-every", "10", "--level", "0.6"])
    return load(root / "continual" / "tiny")


# --- A run --------------------


def test_every_lane_has_a_record_at_every_length(recorded):
    lanes = [(method, seed) for method in ("fresh_adam", "adam", "l2_init") for seed in (0, 1)]
    for method, seed in lanes:
        np.testing.assert_array_equal(recorded.column("step", method=method, seed=seed), np.arange(10, 61, 10))
        np.testing.assert_array_equal(recorded.column("task", method=method, seed=seed), [0, 0, 1, 1, 2, 2])
    assert len(recorded.records) == 36
    names = set(recorded.records[-1])
    for place in ("probe", "stream"):
        assert {f"{place}/{name}/hidden_1" for name in ("effective_rank", "dead_fraction")} <= names
    assert {"online_accuracy", "plasticity", "test_accuracy", "earlier/1", "units/died", "weight_norm"} <= names
    files = {path.name for path in recorded.folder.iterdir()}
    assert {"continual.png", "rank_and_symptoms.pdf", "layers.png", "summary.json"} <= files
    assert len(recorded.summary) == 6


def test_in_the_first_task_the_fresh_network_is_the_network_itself_and_no_longer_after_it(recorded):
    for name in ("online_accuracy", "test_accuracy", "online_loss"):
        difference = less_fresh(recorded, name, "adam", 0)
        assert difference[0] == 0
        assert (difference[1:] != 0).all()
    assert less_fresh(recorded, "online_loss", "l2_init", 0)[0] != 0  # the control: another method


def test_a_fresh_network_is_one_that_was_trained_on_this_task_alone(recorded):
    """Another road: no lanes, no chunks, no parts; the network of the third task, on batches drawn one by one."""
    setup = build(TINY)
    init_key, _, data_key = jax.random.split(jax.random.key(1, impl="philox4x32"), 3)
    order_key, _ = jax.random.split(data_key)
    optimizer = optax.adam(0.01)
    state = init_state(jax.jit(setup.model.init)(jax.random.fold_in(init_key, 2)), optimizer)

    @jax.jit
    def step(state, index):
        state, seen = train_step(setup.model, optimizer, state, setup.stream.draw((), order_key, index).batch)
        return state, seen.loss

    losses = []
    for index in range(40, 60):
        state, loss = step(state, index)
        losses.append(float(loss))
    found = over_tasks(recorded, "online_loss", "fresh_adam", 1)
    np.testing.assert_allclose(found[2], np.mean(losses), rtol=1e-5)
    assert abs(found[1] / np.mean(losses) - 1) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("stop", [2, 5])
def test_neither_resuming_nor_the_number_of_records_changes_a_bit(recorded, tmp_path, stop):
    config = TINY if stop == 2 else replace(TINY, record_every=20)
    assert not played(config, tmp_path / "run", stop=min(stop, 2)).is_complete
    run = played(config, tmp_path / "run")
    for record in run.select(is_end=True):
        where = {name: record[name] for name in ("method", "seed", "step")}
        (same,) = recorded.select(**where)
        shared = {name for name in record if not name.startswith(("online", "plasticity", "units"))}
        assert {name: record[name] for name in shared} == {name: same[name] for name in shared}
    if config is TINY:
        assert run.records == recorded.records
    for method in ("fresh_adam", "l2_init"):
        jax.tree.map(np.testing.assert_array_equal, run.variables(method), recorded.variables(method))


@pytest.mark.slow
def test_fresh_networks_at_some_tasks_only_change_no_bit_and_are_the_same_ones(recorded, tmp_path):
    run = played(replace(TINY, fresh_every=3), tmp_path / "run")
    assert [record["task"] for record in run.select(method="fresh_adam", seed=0)] == [2, 2]
    assert len(run.records) == expected_records(run.folder) == len(recorded.records) - 8
    assert run.records == [r for r in recorded.records if r["method"] != "fresh_adam" or r["task"] == 2]
    difference = less_fresh(run, "online_accuracy", "adam", 1)
    assert np.isnan(difference[:2]).all()
    assert difference[2] == less_fresh(recorded, "online_accuracy", "adam", 1)[2]
    assert {"continual", "layers"} <= set(figures(run))


# --- Disjoint classes: the mask, the output layer --------------------


@pytest.mark.slow
def test_earlier_tasks_are_tested_with_the_output_layer_that_they_had(tmp_path):
    """By another road: the variables after every task, the slices of each task's classes put together by hand."""
    setup = build(DIGITS)
    lanes, states, records = None, [], []
    for part in parts(DIGITS, setup):
        lanes, found = part.do(lanes)
        states.append(jax.device_get(lanes.state.net.variables))
        records += [record for record in found if record["method"] == "adam"]
    key = jax.random.split(jax.random.split(jax.random.key(0, impl="philox4x32"), 3)[2])[0]
    classes = [np.flatnonzero(setup.problem.classes(setup.stream.data, key, task)) for task in range(3)]
    assert len(set(np.concatenate(classes))) == 6
    lane = 1  # the fresh network is lane 0
    last = jax.tree.map(lambda leaf: leaf[lane], states[2])
    before = jax.tree.map(lambda leaf: leaf[lane], states[1])
    # Set to zero at the start of the last task, and moved by no gradient since: Adam's old mean alone goes on.
    earlier = last["params"]["classes"]["kernel"][:, classes[1]]
    assert np.abs(earlier).max() < np.abs(before["params"]["classes"]["kernel"][:, classes[1]]).max() / 2
    assert (before["params"]["classes"]["kernel"][:, classes[1]] != 0).all()
    from lopjax import data

    digits = data.load("digits")
    chosen = np.isin(digits.test_labels, classes[1])
    counts = np.bincount(digits.test_labels, minlength=10)
    assert counts.min() == 35  # every class is cut to the smallest
    place = np.concatenate([np.flatnonzero(digits.test_labels == label)[:35] for label in classes[1]])
    images, labels = digits.test_images[place], digits.test_labels[place]
    inputs = ((images / 255 - digits.mean) / digits.std).reshape(70, -1)
    for name in ("hidden_0", "hidden_1"):
        layer = last["params"][name]
        inputs = np.maximum(inputs @ layer["kernel"].reshape(-1, 4) + layer["bias"], 0)
    head = before["params"]["classes"]
    logits = inputs @ head["kernel"][:, classes[1]] + head["bias"][classes[1]]
    expected = np.mean(classes[1][logits.argmax(axis=1)] == labels)
    assert chosen.sum() >= 70
    np.testing.assert_allclose(records[2]["earlier/1"], expected, atol=1e-6)
    assert np.isnan(records[0]["earlier/1"])


def test_output_layers_are_mixed_by_class():
    setup = build(DIGITS)
    variables = jax.eval_shape(setup.model.init, jax.random.key(0))
    old, new = (jax.tree.map(lambda leaf, value=value: jnp.full(leaf.shape, value), variables) for value in (1.0, 2.0))
    mask = np.arange(10) < 3
    mixed = with_head(setup, old, mixed_head(setup, head_of(setup, old), head_of(setup, new), mask))
    for name, leaf in mixed["params"]["classes"].items():
        np.testing.assert_array_equal(leaf[..., :3], 2, err_msg=name)
        np.testing.assert_array_equal(leaf[..., 3:], 1, err_msg=name)
    assert (np.asarray(mixed["params"]["hidden_0"]["kernel"]) == 1).all()


# --- Numbers --------------------


def test_plasticity_is_the_mean_over_samples_of_what_was_gained():
    before, after = np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 0.0]])
    losses = [-np.log(np.exp(logits[:, 0]) / np.exp(logits).sum(axis=1)) for logits in (before, after)]
    assert losses[1][1] > losses[0][1]  # the second sample has lost: it counts 0, not less
    expected = np.mean(np.maximum(1 - losses[1] / losses[0], 0))
    found = plasticity(mean_cross_entropy, jnp.asarray(before), jnp.asarray(after), jnp.zeros(2, int))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_intervals_are_students_and_verdicts_take_a_side_only_outside_them():
    values = [0.1, 0.3, -0.2, 0.4]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(interval([*values, np.nan], leave_out_missing=True), (np.mean(values), low, high))
    assert verdict(interval(values)) == "undecided"
    assert verdict(interval([-0.1, -0.11, -0.12])) == "lost"
    assert verdict(interval([0.1, 0.11, 0.12])) == "better"
    assert verdict(interval([-0.1])) == "-"


def synthetic(seeds=(0, 1, 2), **values) -> RunData:
    """A run whose accuracies are given: `{method: [accuracy after each task]}`, alike in all seeds up to 0.01."""
    records = [
        {
            "method": method, "seed": seed, "task": task, "step": task + 1, "is_end": True, "online_accuracy": value,
            "test_accuracy": value + 0.01 * seed, "earlier/1": None if task == 0 else value - 0.5, "plasticity": 0.1,
            "steps_to_level": None, "units/died": 1, "units/revived": 0,
            **{f"probe/{name}_fraction/mean": 0.0 for name in ("dead", "duplicate", "saturated")},
            "probe/effective_rank/mean": 3.0,
        }
        for method, accuracies in values.items() for seed in seeds for task, value in enumerate(accuracies)
    ]  # fmt: skip
    config = {
        "methods": ["adam"], "seeds": list(seeds), "fresh": True, "earlier": [1], "num_tasks": 4, "steps": 1,
        "level": 0.5, "tasks": "random_labels",
    }  # fmt: skip
    return RunData(None, config, records, None, "continual")  # pyright: ignore[reportArgumentType]


def test_what_is_lost_is_the_difference_in_the_last_half(unchecked):
    run = synthetic(fresh_adam=[0.9, 0.8, 0.9, 0.7], adam=[0.9, 0.9, 0.6, 0.5])
    np.testing.assert_allclose(less_fresh(run, "online_accuracy", "adam", 1), [0, 0.1, -0.3, -0.2])
    assert lost(run, "adam").mean == pytest.approx(-0.25)
    # Accuracy on the task before, less what it was at its end.
    assert backward_transfer(run, "adam", 0) == pytest.approx(np.mean([0.4 - 0.9, 0.1 - 0.9, 0.0 - 0.6]))
    (row,) = [row for row in summarise(run) if row["method"] == "adam" and row["seed"] == 0]
    assert (row["steps_to_level"], row["level_missed"], row["died"]) == (None, 4, 4)
    run = run._replace(records=[r for r in run.records if r["method"] != "fresh_adam" or r["task"] in (1, 3)])
    np.testing.assert_allclose(less_fresh(run, "online_accuracy", "adam", 1), [np.nan, 0.1, np.nan, -0.2])
    assert lost(run, "adam").mean == pytest.approx(-0.2)  # task 4 alone
    (_, adam) = table(run).rows
    assert adam[:3] == ("Adam", "lost", "-0.200 ± 0.000")
    assert table(synthetic(fresh_adam=[0.9, 0.8], adam=[])).rows[1][1] == "not started"


def test_deaths_are_summed_over_all_records_and_a_diverged_lane_has_no_results(recorded):
    records = [{**record, "units/died": 1.0} for record in recorded.records]
    run = recorded._replace(records=records, summary=None)
    assert {row["died"] for row in summarise(run)} == {6}  # two records in each of three tasks
    is_lost = lambda record: record["method"] in ("adam", "fresh_adam") and record["seed"] == 1  # noqa: E731
    marks = {"frozen_at": 25, "online_accuracy": None}
    diverged = [{**r, **marks} if is_lost(r) and r["step"] > 20 else r for r in records]
    run = run._replace(records=diverged)
    rows = {(row["method"], row["seed"]): row for row in summarise(run)}
    names = ("online_accuracy", "test_accuracy_less_fresh", "effective_rank_last", "backward_transfer")
    assert [rows["adam", 1][name] for name in names] == [None] * 4
    assert [rows["l2_init", 1][name] is None for name in names] == [False, True, False, False]  # its control diverged
    assert None not in [rows["adam", 0][name] for name in names]  # the control
    assert rows["adam", 1]["died"] == 2
    shown = {row[0]: row for row in table(run).rows}
    assert [shown[name][1] for name in ("fresh, Adam", "Adam", "L2-init")] == ["diverged at 25", "diverged at 25", "-"]
    assert shown["Adam"][2:4] == shown["L2-init"][2:4] == ("-", "-")
    assert figures(run)


def test_an_incomplete_run_is_drawn(recorded):
    part = recorded._replace(records=recorded.records[:14], summary=None)
    assert set(figures(part)) == {"continual", "dead_and_duplicate", "rank_and_symptoms", "layers"}
    assert len(table(part).rows) == 3


def test_symptoms_are_correlated_by_their_ranks():
    a, b = np.random.default_rng(0).integers(0, 8, (2, 40)) * 1.0  # with ties
    assert correlation(a, b) == pytest.approx(stats.spearmanr(a, b)[0])
    assert np.isnan(correlation(a, np.zeros(40)))


def test_sharpness_is_the_largest_eigenvalue_on_the_examples_of_the_last_task(recorded):
    """By another road: the dense Hessian of cross-entropies written out."""
    config = config_of(recorded)
    assert (config.steps, config.net) == (20, replace(TINY.net, widths=(4, 4)))
    setup = build(config)
    model, (inputs, labels) = recorded.model("network"), last_task(config, setup.problem, 1)
    variables = jax.tree.map(lambda leaf: leaf[1], recorded.variables("adam")["network"])
    flat, back = ravel_pytree(variables["params"])

    def loss(flat):
        logits = model.apply({"params": back(flat)}, inputs).logits
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - logits[jnp.arange(len(labels)), labels])

    expected = np.linalg.eigvalsh(jax.jit(jax.hessian(loss))(flat)).max()
    found, value = jax.jit(lambda *given: sharpness(model, setup.problem, *given))(variables, (inputs, labels))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    np.testing.assert_allclose(value, recorded.column("train_loss", method="adam", seed=1)[-1], rtol=1e-5)


def test_sharpness_of_one_seed_has_no_interval_and_of_a_diverged_one_no_value(recorded):
    one = recorded._replace(config={**recorded.config, "seeds": [0]})
    rows = {row[0]: row for row in sharpness_table(one).rows}
    assert float(rows["Adam"][3]) == pytest.approx(
        np.log(float(rows["Adam"][1]) / float(rows["fresh, Adam"][1])), abs=0.02
    )
    marked = [{**r, "frozen_at": 25} if r["method"] == "adam" and r["step"] > 20 else r for r in one.records]
    rows = {row[0]: row for row in sharpness_table(one._replace(records=marked)).rows}
    assert rows["Adam"][1:] == ("nan", "nan", "-")
    assert "nan" not in rows["L2-init"]  # the control
    with pytest.raises(ValueError, match=r"a run of experiments.cloning; must be one of experiments.continual"):
        sharpness_table(recorded._replace(experiment="cloning"))


def test_methods_with_one_optimizer_share_a_program_and_a_fresh_network():
    numbers = {"adam_learning_rate": 0.1, "l2_init": 0.5, "weight_decay": 0.2, "beta2": 0.9, "learning_rate": 1.0}
    methods = ("adam", "l2_init", "sgd")
    assert lanes_of(methods, True) == ["fresh_adam", "fresh_sgd", "adam", "l2_init", "sgd"]
    adam, sgd = groups_of(methods, (3, 4), numbers, True)
    assert adam.methods == ("fresh_adam", "adam", "l2_init")
    assert adam.traced == {"l2_init": (0.0,) * 4 + (0.5,) * 2}
    assert adam.constants == {"adam_learning_rate": 0.1, "weight_decay": 0.0, "beta2": 0.999, "learning_rate": 1.0}
    assert sgd.methods == ("fresh_sgd", "sgd")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tasks": 6}, "num_tasks=6, classes_per_task=2: need 12 different classes, there are 10"),
        ({"change": 5}, "fresh=True: must be False where tasks pass into each other"),
        ({"change": 5, "fresh": False}, "zero_head=True: must be False"),
        ({"change": 21, "fresh": False, "zero_head": False}, "change=21: must be in 0..20"),
        ({"fresh_every": 2}, "fresh_every=2: must be a divisor of num_tasks=3"),
        ({"record_every": 7}, "record_every=7: must be 0, or a divisor of steps=20"),
        ({"probe": "first"}, "probe='first': needs a class_order"),
        ({"probe_samples": 500}, "probe_samples=500: must be at most the 278 of a task"),
        ({"batch_size": 300}, "batch_size=300: must be between 1 and the 278 examples of a task"),
        ({"pixel_std": (0.0,)}, "pixel_std=\\(0.0,\\): must be \\(\\), or 1 numbers, deviations positive"),
        ({"earlier": (0,)}, "earlier=\\(0,\\): must be distinct and at least 1"),
        ({"seeds": (1, 1)}, "seeds=\\(1, 1\\): must be distinct"),
        ({"tasks": "random_labels", "num_images": 30}, "num_images=30: must be 0, or from probe_samples=40"),
        ({"l2_init": -1.0}, "l2_init=-1.0: must be non-negative"),
        ({"look_every": -1}, "look_every=-1: must be 0 or positive"),
        ({"threshold": 4.0}, "threshold=4.0: must be in \\(0, 3\\]"),
        ({"dataset": "tiny_imagenet"}, "prepare tiny_imagenet"),
    ],
)
def test_mistakes_are_refused_before_anything_is_compiled(changes, message, tmp_path):
    from experiments.kit.experiment import Resources

    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(replace(DIGITS, **changes), Resources(tmp_path))


@pytest.mark.parametrize("kind", ["permuted_pixels", "permuted_labels", "random_labels"])
def test_other_kinds_of_tasks_are_built(kind):
    setup = build(replace(DIGITS, tasks=kind, num_images=200, zero_head=False))
    assert setup.problem.train.num_examples == 200
    assert (setup.problem.test is None) == (kind == "random_labels")
    assert setup.problem.probe[0].shape == (40, 8, 8, 1)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["cnn", "resnet18", "vit"])
def test_every_architecture_learns_task_after_task(model, tmp_path):
    """A network without units that die of it: its accuracy on two classes of digits is far from a coin's."""
    quick = PRESETS[model]["quick"]
    run = played(replace(quick, num_tasks=2, methods=("adam",), probe_samples=40), tmp_path / "run")
    first, second = run.column("train_accuracy", method="adam")
    assert first > 0.8
    assert second > 0.6
    assert less_fresh(run, "online_loss", "adam", 0)[0] == 0


@pytest.mark.parametrize("tasks", ["class_incremental", "permuted_pixels", "permuted_labels", "random_labels"])
def test_images_are_in_memory_once(tasks, monkeypatch):
    config = MLPConfig(tasks=tasks, dataset="digits", probe_samples=10, num_tasks=5, classes_per_task=2)
    loaded = []

    def problem_of(make):
        dataset = data.load("digits")
        loaded[:] = [weakref.ref(images) for images in (dataset.train_images, dataset.test_images)]
        monkeypatch.setattr(data, "load", lambda *_: dataset)
        made = make(dataset)
        monkeypatch.undo()
        return made

    problem = problem_of(lambda dataset: make_problem(config, None))
    jax.block_until_ready(problem.train.data)
    gc.collect()
    assert [images() for images in loaded] == [None, None]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(problem.train.data))
    kept = problem_of(lambda dataset: image_problem(config, dataset))  # the control: the loaded arrays are its own
    gc.collect()
    assert loaded[0]() is not None
    del kept
