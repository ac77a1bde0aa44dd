"""The bit-flipping experiment: the fast step is the library's and NumPy's, runs can be cut, tables are right."""

import itertools
import json
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest

from experiments.bit_flipping.__main__ import main
from experiments.bit_flipping.compare import main as compare
from experiments.bit_flipping.compare import row_of, rows_of
from experiments.bit_flipping.config import PRESETS, Config
from experiments.bit_flipping.figures import figures
from experiments.bit_flipping.lane import plain_step
from experiments.bit_flipping.methods import METHODS, NUMBERS, curves_of, groups_of
from experiments.bit_flipping.parts import Life, keys_of
from experiments.bit_flipping.report import fall, interval, rise, summarise, table, verdict
from experiments.bit_flipping.rules import act
from experiments.bit_flipping.setup import build
from lopjax.runs import RunData, load
from lopjax.training import make_chunk
from lopjax.training.bit_flipping import prepared_block

STEPS = 400
# Units are replaced often, and by the thousandth step of a task all has happened that can.
TINY = Config(
    steps=STEPS, record_every=200, seeds=(0, 1), step_sizes=(0.01, 0.003), flip_every=150, widths=(4,),
    maturity=10, replacement_rate=0.01, percentile=0.9,
)  # fmt: skip


@cache
def life_of(method: str, **changes) -> Life:
    config = replace(TINY, methods=(method,), **changes)
    setup = build(config)
    return Life(setup, setup.groups[0], keys_of(config), None)


def fused(life: Life, cuts=(0, STEPS)):
    lanes, keys = life._started(), life.lanes.of_seeds(life.data_keys)
    logs = {}
    for start, stop in itertools.pairwise(cuts):
        lanes, logs = life.chunk(lanes, keys, start, stop - start)
    return jax.device_get((lanes.state.net, logs))


def numpy_sgd(life: Life, width: int):
    """The same networks in float64, one after the other, an example at a time."""
    inputs, targets = drawn(life)
    start = jax.device_get(life._started().state)
    sizes, found = np.asarray(life.lanes.group.traced["step_size"], np.float64), []
    for lane, step_size in enumerate(sizes):
        params = jax.tree.map(lambda leaf, lane=lane: np.array(leaf[lane], np.float64), start.net.variables["params"])
        w, b = params["hidden_0"]["kernel"], params["hidden_0"]["bias"]
        v, c, errors = params["classes"]["kernel"][:, 0], params["classes"]["bias"], 0.0
        for x, y in zip(inputs[lane % 2], targets[lane % 2]):
            pre = x @ w + b
            post = np.maximum(pre, 0)
            off = float(post @ v + c[0] - y)
            errors += off**2
            signal = 2 * off * v * (pre > 0)
            v, c = v - step_size * 2 * off * post, c - step_size * 2 * off
            w, b = w - step_size * np.outer(x, signal), b - step_size * signal
        found.append((errors / len(inputs[0]), w, v))
    assert w.shape == (20, width)
    return found


def drawn(life: Life):
    """What the two seeds see, by the stream's own function, step by step."""
    stream, keys = life.setup.stream, jax.vmap(jax.random.split)(life.data_keys)[:, 0]
    batches = jax.jit(jax.vmap(jax.vmap(stream.draw, (None, None, 0)), (None, 0, None)))((), keys, np.arange(STEPS))
    inputs, targets = (np.asarray(array, np.float64) for array in batches.batch)
    return inputs[:, :, 0], targets[:, :, 0, 0]


def test_the_fast_step_is_gradient_descent_in_numpy_and_cuts_change_no_bit():
    life = life_of("sgd")
    net, logs = fused(life)
    for lane, (error, w, v) in enumerate(numpy_sgd(life, 4)):
        params = net.variables["params"]
        assert logs["error"][lane] == pytest.approx(error, rel=1e-4)
        np.testing.assert_allclose(params["hidden_0"]["kernel"][lane], w, atol=1e-4)
        np.testing.assert_allclose(params["classes"]["kernel"][lane, :, 0], v, atol=1e-4)
    # The seeds of one step size differ, and so do the step sizes of one seed: the lanes are told apart.
    assert len(np.unique(logs["error"])) == 4
    cut, _ = fused(life, (0, 130, 390, STEPS))
    jax.tree.map(np.testing.assert_array_equal, net, cut)


def assert_same_as_the_library(method: str, **changes) -> float:
    life = life_of(method, **changes)
    net, logs = fused(life)
    chunk = make_chunk(plain_step(life.program), life.setup.stream)
    lanes, expected = chunk(life._started(), life.lanes.of_seeds(life.data_keys), 0, STEPS, ())
    plain = jax.device_get(lanes.state.net)
    for (path, found), wanted in zip(jax.tree_util.tree_leaves_with_path(net), jax.tree.leaves(plain), strict=True):
        if jax.numpy.issubdtype(found.dtype, jax.dtypes.prng_key):
            continue
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4, err_msg=jax.tree_util.keystr(path))
    np.testing.assert_allclose(logs["error"], expected["error"], rtol=1e-4)
    np.testing.assert_allclose(logs["replaced"], expected["replaced"], rtol=1e-6)
    return float(np.sum(logs["replaced"]) * STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "activation"),
    [("continual_backprop_official", "relu"), ("self_normalized_resets", "tanh"), ("both", "swish")],
)
def test_every_kind_of_fast_step_is_the_librarys(method, activation, monkeypatch):
    """Both variants of continual backprop and self-normalised resets; SGD and an optimizer that draws noise."""
    both = METHODS["upgd"]._replace(rule="continual_backprop", reads=tuple(NUMBERS))
    monkeypatch.setitem(METHODS, "both", both)
    replaced = assert_same_as_the_library(method, activations=(activation,))
    assert replaced >= 8


@pytest.mark.slow
def test_what_acts_between_blocks_does_so_once_on_the_inputs_of_the_block():
    """A thousand steps and ReDo are a thousand steps of plain descent, and the library's ReDo by hand."""
    numbers = {"redo_threshold": 0.8, "flip_every": 10_000, "act_every": 1000, "step_sizes": (0.01,)}
    life, plain = life_of("redo", **numbers), life_of("sgd", **numbers)
    net, logs = fused(life, (0, 700, 1000))
    lanes, keys = plain._started(), plain.lanes.of_seeds(plain.data_keys)
    state = plain.chunk(lanes, keys, 0, 1000)[0].state.net
    assert np.sum(logs["replaced"]) > 0
    for lane in range(2):
        order_key, step_key = jax.random.split(plain.data_keys[lane])
        block = prepared_block(plain.setup.problem, order_key, 0)
        batch = block.inputs[block.codes], block.targets[block.codes]
        key = jax.random.fold_in(jax.random.fold_in(step_key, 1000), 1)
        setting = plain.program.setting({"step_size": 0.01}, key)
        one = jax.tree.map(lambda leaf, lane=lane: leaf[lane], state)
        expected, touched = act("redo", {"redo_threshold": 0.8}, setting, one, batch, key)
        assert int(touched) > 0
        jax.tree.map(
            lambda found, wanted, lane=lane: np.testing.assert_allclose(found[lane], wanted, atol=1e-5),
            net.variables,
            expected.variables,
        )


def test_a_diverged_lane_is_frozen_and_the_others_go_on():
    life = life_of("sgd")
    lanes = life._started()
    lanes = lanes._replace(state=lanes.state._replace(numbers={"step_size": jax.numpy.array([0.01, 0.01, 50, 50])}))
    lanes, logs = life.chunk(lanes, life.lanes.of_seeds(life.data_keys), 0, STEPS)
    frozen, error = np.asarray(lanes.frozen_at), np.asarray(logs["error"])
    assert np.all(frozen[:2] == -1)
    assert np.all(frozen[2:] > 0)
    assert np.all(np.isfinite(error[:2]))
    assert np.all(np.isnan(error[2:]))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(lanes.state.net.variables))


# --- A whole run --------------------


FLAGS = ["--methods", "fresh", "linear", "--steps", "3000", "--record-every", "1000", "--flip-every", "1000"]
FLAGS += ["--seeds", "0", "1", "--widths", "4", "--probe-samples", "20"]


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> RunData:
    root = tmp_path_factory.mktemp("root")
    main(["--root", str(root), "--name", "tiny", *FLAGS])
    return load(root / "bit_flipping" / "tiny")


@pytest.mark.slow
def test_a_run_records_tabulates_and_draws(played):
    assert len(played.records) == 2 * 2 * 3
    fresh = played.select(method="fresh", seed=0)
    # A fresh network before every task but the first: all four units each time.
    assert [record["replaced"] for record in fresh] == [0, 4, 4]
    assert all(1 <= record["probe/effective_rank"] <= 4 for record in fresh)
    assert [row["method"] for row in played.summary] == ["fresh", "linear"]
    drawn = table(played)
    assert "one of 15 slow bits flips" in drawn.title
    assert drawn.rows[0][0].startswith("fresh network a task*, relu, 4")
    assert set(figures(played)) == {"error", "symptoms"}


# --- What tables say --------------------


def test_noise_does_not_rise_but_its_smallest_tenth_does():
    """The least tenth of a seed is chosen by others: chosen by itself noise alone would seem to rise."""
    many = np.random.default_rng(0).normal(size=(400, 20, 10))
    assert np.mean([interval(rise(noise)).sign != 0 for noise in many]) < 0.1
    assert np.mean([interval(fall(noise)).sign != 0 for noise in many]) < 0.1
    assert np.mean([interval(noise[:, -1] - noise.min(axis=1)).sign == 1 for noise in many]) > 0.9
    noise = many[0]
    curve = noise + np.array([9, 5, 1, 0, 0, 0, 1, 2, 3, 4.0])
    assert verdict(interval(fall(curve)), interval(rise(curve))) == "falls, rises"
    assert interval(rise(curve)).mean == pytest.approx(4, abs=1)
    assert verdict(interval(fall(curve)), interval(-1 + 0 * rise(curve))) == "falls, holds"


def test_pairs_are_compared_seed_by_seed():
    """The difference to backprop is small and certain, though seeds differ much more."""
    config = replace(TINY, methods=("sgd", "l2"), seeds=tuple(range(5)), step_sizes=(0.01,))
    records = [
        {**curve.fields(), "seed": seed, "step": 200 * (bin + 1), "error": 10.0 * seed + less}
        for curve, less in zip(curves_of(("sgd", "l2"), ("relu",), (4,), (0.01,)), (0.0, -0.25))
        for seed in range(5)
        for bin in range(2)
    ]
    run = RunData(None, json.loads(json.dumps(vars(config))), records, None, "bit_flipping")  # pyright: ignore
    row = summarise(run)[1]
    assert row["less_backprop"] == pytest.approx(-0.25)
    assert row["less_backprop_half"] == pytest.approx(0, abs=1e-9)
    assert row["verdict"] == "holds or undecided"
    assert row["effective_rank_last"] is None


def test_the_reference_lies_among_our_seeds_or_not(tmp_path, capsys):
    ours = np.exp(np.random.default_rng(1).normal(size=30))
    logs = np.log(ours)
    inside, outside = row_of("bp", "all", ours, float(np.exp(logs.mean()))), row_of("bp", "all", ours, 40.0)
    assert inside.p == pytest.approx(1)
    assert outside.p < 0.01
    half = 2.0452296 * logs.std(ddof=1) * np.sqrt(31 / 30)  # Student's law with 29 degrees of freedom
    assert np.log(inside.most / inside.least) == pytest.approx(2 * half, rel=1e-6)
    config = replace(TINY, methods=("linear",), seeds=(0, 1, 2), step_sizes=(0.01,), steps=800, record_every=100)
    fields = curves_of(("linear",), ("relu",), (4,), (0.01,))[0].fields()
    records = [{**fields, "seed": seed, "error": 1.0 + seed} for seed in range(3) for _ in range(8)]
    run = RunData(None, json.loads(json.dumps(vars(config))), records, None, "bit_flipping")  # pyright: ignore
    reference = [{"law": "one", "agent": "linear", "seed": 0, "bin": 100, "mse": [2.0] * 8}]
    assert all(row.measured == pytest.approx(2) and row.p > 0.5 for row in rows_of(run, reference))
    with pytest.raises(ValueError, match="the reference has 700"):
        rows_of(run, [{**reference[0], "mse": [2.0] * 7}])
    with pytest.raises(ValueError, match="no agent of the run"):
        rows_of(run, [{**reference[0], "law": "all"}])
    with pytest.raises(SystemExit):
        compare(["--help"])
    assert "--output" in capsys.readouterr().out


def test_programs_and_presets():
    """Methods x points x seeds are lanes of one program a method and network; every preset can be built."""
    curves = curves_of(("sgd", "linear"), ("relu", "tanh"), (5, 10), (0.01, 0.001))
    groups = groups_of(curves, (0, 1, 2), {})
    assert len(curves) == 2 * 2 * 2 + 2
    assert [len(group.lanes) for group in groups] == [6] * 5
    assert groups[0].traced == {"step_size": (0.01,) * 3 + (0.001,) * 3}
    setups = {name: build(config) for name, config in PRESETS.items()}
    figure = setups["official_figure"]
    assert sum(len(group.lanes) for group in figure.groups) == 2 * 6 * 3 * 100
    assert figure.config.steps == 1_000_000
    assert len(setups["paper"].config.seeds) >= 30
    assert setups["paper"].config.steps == 5_000_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (0,)}, "widths"),
        ({"record_every": 300}, "record_every=300: must be a positive divisor of steps=400"),
        ({"act_every": 500}, "act_every=500: must be a positive multiple of 1000"),
        ({"num_slow": 3}, "num_slow=3"),
        ({"step_sizes": (0.1, 0.1)}, "step_sizes"),
        ({"replacement_rate": 2.0}, "replacement_rate"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_compiled(changes, message):
    with pytest.raises(ValueError, match=message):
        build(replace(TINY, **changes))
