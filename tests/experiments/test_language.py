"""The language experiment from flags to figure, in miniature; its words about losses and clones."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.continual.methods import METHODS
from experiments.continual.report import less_fresh
from experiments.kit.intervals import Interval, interval
from experiments.language.__main__ import main
from experiments.language.clones import apart, clones_of, in_words
from experiments.language.config import BEST, GRID, PRESETS, TUNING_SEEDS
from experiments.language.report import in_a_word, summarise, table
from experiments.language.setup import build
from lopjax.certificates import certify_cloned
from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.data.text import joint_digest, python_text
from lopjax.model import Model
from lopjax.models import mlp
from lopjax.recovery import OFF, ON, SYMPTOMS
from lopjax.runs import RunData, load
from lopjax.tracing import trace_model, wiring_agrees

FLAGS = (
    *("--net.width", "4", "--net.depth", "1", "--net.heads", "2", "--net.mlp-ratio", "1", "--length", "4"),
    *("--num-windows", "8", "--test-windows", "4", "--batch-size", "4", "--probe-samples", "4", "--steps", "4"),
    *("--num-tasks", "2", "--methods", "adam", "--earlier", "1", "--num-words", "12", "--sources", "json", "html"),
)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> RunData:
    root = tmp_path_factory.mktemp("root")
    main(["--root", str(root), "--name", "tiny", *FLAGS])
    return load(root / "language" / "tiny")


@pytest.mark.slow
def test_a_run_in_miniature(recorded):
    assert {path.name for path in recorded.folder.iterdir()} >= {"language.png", "language.pdf", "summary.json"}
    assert len(recorded.records) == 4  # a network and a fresh one, two tasks
    assert recorded.records[0]["text"] == joint_digest([python_text(name) for name in ("json", "html")])
    for loss in ("online_loss", "test_loss"):
        difference = less_fresh(recorded, loss, "adam", 0)
        assert difference[0] == 0 != difference[1]  # the first fresh network is the network itself
    names = set(recorded.records[-1])
    assert {"probe/dead_fraction/mlp_0", "probe/effective_rank/attention_0", "units/died", "earlier/1"} <= names
    inputs, labels = recorded.probe()
    np.testing.assert_array_equal(inputs[:, 1:], labels[:, :-1])
    (fresh, own) = recorded.summary
    assert (fresh["online_less_fresh"], fresh["method"]) == (None, "fresh_adam")
    assert own["online_less_fresh"] == pytest.approx(less_fresh(recorded, "online_loss", "adam", 0)[1])
    assert set(own["clones"]["spaces"]) == {"width", "heads_0", "mlp_0"}
    rows = dict((row[0], row) for row in table(recorded).rows)
    assert rows["fresh, Adam"][1] == "reference"
    assert rows["Adam"][1] == "-"  # one seed has no interval
    assert not summarise(recorded._replace(records=[]))


def test_tasks_are_other_stretches_of_other_sources():
    config = replace(
        PRESETS["quick"], sources=("json", "html"), num_tasks=4, num_windows=8, test_windows=4, probe_samples=8
    )
    setup = build(config)
    windows = np.asarray(setup.run.problem.train.data)
    assert windows.shape == (4, 8, config.length + 1)
    read = bytes(setup.vocabulary[token] for token in windows[2].ravel()).decode()
    size = config.length + 1
    assert read == python_text("json").text[12 * size : 20 * size]  # after 8 windows for training and 4 for testing
    assert len({window.tobytes() for task in windows for window in task}) > 24


@pytest.mark.parametrize("preset", ["permuted_words", "tied"])
def test_the_program_of_the_network_says_what_its_labels_say(preset):
    run = build(PRESETS[preset]).run
    tokens = jax.ShapeDtypeStruct((2, *run.problem.input_shape), jnp.int32)
    assert wiring_agrees(run.model, tokens) == ()


@pytest.mark.slow
def test_clones_made_without_labels_keep_the_function_and_are_certified():
    run = build(PRESETS["permuted_words"]).run
    model, (inputs, labels) = run.model, (each[:4] for each in run.problem.probe)
    variables = model.init(jax.random.key(0))
    traced = trace_model(lambda variables, x: model.apply(variables, x).logits, variables, inputs, check=False)
    wide, clones = traced.clone(variables, 2)
    # The stream, two heads, the width of their values, the MLP.
    assert sorted(wide.wiring.size(space) for space in wide.wiring.cloneable) == [4, 32, 64, 512]
    np.testing.assert_allclose(wide.apply(clones, inputs).logits, model.apply(variables, inputs).logits, atol=1e-5)
    partition = uniform_partition(wide.wiring, 2)
    assert "BLOCK_CONSTANT" in str(certify_cloned(wide, clones, (inputs, labels), partition))
    others = wide.init(jax.random.key(1))
    assert "BLOCK_CONSTANT" not in str(certify_cloned(wide, others, (inputs, labels), partition))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("digest", "abc", "digest=abc: must be that of the text of this Python"),
        ("sources", ("nowhere",), "must be among"),
        ("sources", (), "sources=.*must be distinct, at least one"),
        ("num_windows", 10**6, "the text must have at least"),
        ("num_words", 1, "num_words=1: must be 0 for bytes, or a number of words, at least 2"),
    ],
)
def test_what_is_refused(unchecked, field, value, message):
    with pytest.raises(ValueError, match=message):
        build(replace(PRESETS["quick"], **{"sources": ("json",), field: value}))


def test_the_first_digits_of_the_digest_name_the_text():
    config = replace(PRESETS["quick"], sources=("json",))
    digest = joint_digest([python_text("json")])
    assert build(replace(config, digest=digest[:12])).digest == digest
    with pytest.raises(ValueError, match="at least its first 12 digits"):
        build(replace(config, digest=digest[:11]))


def test_every_method_has_as_many_settings_and_the_best_is_run_on_other_seeds():
    evaluated, tuning = PRESETS["tuned"], [PRESETS[f"tuning_{number}"] for number in (1, 2, 3, 4)]
    assert not set(TUNING_SEEDS) & set(evaluated.seeds)
    assert set(GRID) | {"adam"} == set(evaluated.methods)
    names = [name for settings in GRID.values() for name in settings[0]]
    assert len(set(names)) == len(names)  # no two methods share a number, so that a preset has a setting of each
    for method, settings in GRID.items():
        assert len({tuple(setting.values()) for setting in settings}) == len(tuning) == 4
        assert set(settings[0]) <= set(METHODS[method].reads)
        assert {name: getattr(evaluated, name) for name in settings[0]} == settings[BEST[method] - 1]
        for config, setting in zip(tuning, settings, strict=True):
            assert {name: getattr(config, name) for name in setting} == setting
            same = {
                name: getattr(config, name) for name in ("tasks", "num_tasks", "steps", "net", "adam_learning_rate")
            }
            assert same == {name: getattr(evaluated, name) for name in same}
            assert config.seeds == TUNING_SEEDS


def test_the_controller_looks_and_treats_as_it_is_told():
    make = METHODS["recovery"].intervention
    assert make is not None

    def options(**settings: Any) -> Any:
        chosen: Any = make({"reset_every": 200, "look_every": 0, "threshold": 1.0, **settings})
        return chosen.apply.args[0]

    usual, early = options(), options(look_every=50, threshold=0.5)
    assert (usual.every, usual.cool_down, early.every, early.cool_down) == (200, 400, 50, 100)
    for ours, theirs in ((usual.on, ON), (usual.off, OFF)):
        np.testing.assert_array_equal(ours, np.array([theirs[name] for name in SYMPTOMS], np.float32))
    np.testing.assert_allclose(early.on, usual.on / 2)
    np.testing.assert_allclose(early.off, usual.off / 2)


def test_silent_units_are_nobodys_clones():
    """Not even of a unit that is almost silent, and so in their cluster."""
    assert apart((0, 0, 1, 1, 0), np.array([True, True, False, False, False])) == (0, 1, 2, 2, 3)


def test_lost_means_that_the_loss_grows():
    assert in_a_word(Interval(0.3, 0.1, 0.5)) == "lost"
    assert in_a_word(Interval(-0.3, -0.5, -0.1)) == "gained"
    assert in_a_word(Interval(0.3, -0.1, 0.7)) == "undecided"
    assert in_a_word(interval([0.3])) == "-"
    assert np.isnan(interval([0.3, np.nan]).mean)  # a diverged seed is not left out


class Kept(NamedTuple):
    """As much of a run as `clones_of` reads."""

    networks: dict[str, Any]
    network: Model
    batch: tuple[Any, Any]

    def variables(self, name):
        return {"network": jax.tree.map(lambda leaf: leaf[None], self.networks[name])}

    def model(self, name):
        return self.network

    def probe(self):
        return self.batch


def test_clones_at_the_end_are_found_and_certified_and_dead_units_are_none():
    base = mlp((3,), (4,), 2)
    variables = jax.tree.map(np.asarray, base.init(jax.random.key(0)))
    wide, batch = widen(base, 2), (jax.random.normal(jax.random.key(1), (6, 3)), jnp.arange(6) % 2)
    cloned = jax.tree.map(np.array, clone_variables(variables, base.wiring, 2))
    dead = jax.tree.map(np.array, wide.init(jax.random.key(2)))
    dead["params"]["hidden_0"]["bias"][:3] = -100.0
    run: Any = Kept({"cloned": cloned, "dead": dead}, wide, batch)
    found = clones_of(run, "cloned", 0)
    assert found is not None
    assert (found["spaces"]["hidden_0"]["trapped"], found["verdict"]) == (8, "BLOCK_CONSTANT")
    assert in_words(found) == "8, block constant"
    found = clones_of(run, "dead", 0)
    assert found is not None
    assert found["spaces"]["hidden_0"]["silent"] >= 3
    assert (found["spaces"]["hidden_0"]["alike"], found["verdict"], in_words(found)) == (0, None, "none")
