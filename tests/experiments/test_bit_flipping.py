"""The bit-flipping experiment: the fast step is the library's and NumPy's, runs can be cut, tables are right."""

import itertools
import json
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import optax
import pytest

from experiments.bit_flipping.__main__ import main
from experiments.bit_flipping.compare import main as compare
from experiments.bit_flipping.compare import row_of, rows_of
from experiments.bit_flipping.config import PRESETS, Config
from experiments.bit_flipping.figures import figures
from experiments.bit_flipping.lane import plain_step
from experiments.bit_flipping.methods import METHODS, NUMBERS, curves_of, groups_of
from experiments.bit_flipping.parts import Life, keys_of
from experiments.bit_flipping.report import fall, rise, summarise, table, verdict
from experiments.bit_flipping.setup import build
from experiments.kit.grid import Axis
from experiments.kit.intervals import interval
from lopjax.runs import RunData, load, open_run
from lopjax.runs.schedule import play
from lopjax.training import make_chunk
from lopjax.training.bit_flipping import prepared_block

STEPS = 400
# Units are replaced often, and by the thousandth step of a task all has happened that can.
TINY = Config(
    steps=STEPS, record_every=100, seeds=(0, 1), step_sizes=(0.01, 0.003), flip_every=150, widths=(4,),
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


def assert_close(found, wanted) -> None:
    for (path, leaf), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        if not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-4, err_msg=jax.tree_util.keystr(path))


@pytest.fixture
def combined(monkeypatch):
    """Methods that are two at once, so that one program shows both."""
    rows = {
        "upgd_and_paper": METHODS["upgd"]._replace(rule="continual_backprop", reads=tuple(NUMBERS)),
        "adam_l2_and_official": METHODS["continual_backprop_official"]._replace(
            optimizer=lambda numbers, key: optax.chain(
                optax.add_decayed_weights(numbers["l2"]), optax.adam(numbers["step_size"])
            ),
            reads=tuple(NUMBERS),
        ),
    }
    for name, method in rows.items():
        monkeypatch.setitem(METHODS, name, method)


LANES = {
    # Two points each: lanes that differ in this alone must be told apart.
    "adam_l2_and_official": {"activations": ("relu",), "step_sizes": (0.01,), "grid": (Axis("l2", (0.0, 0.05)),)},
    "self_normalized_resets": {"activations": ("tanh",)},
    "upgd_and_paper": {"activations": ("swish",)},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", LANES)
@pytest.mark.usefixtures("combined")
def test_every_kind_of_fast_step_is_the_librarys(method):
    """SGD, Adam with L2 and UPGD, which draws noise; both variants of continual backprop and self-normalised resets."""
    life = life_of(method, **LANES[method])
    net, logs = fused(life)
    chunk = make_chunk(plain_step(life.program), life.setup.stream)
    lanes, expected = chunk(life._started(), life.lanes.of_seeds(life.data_keys), 0, STEPS, ())
    plain = jax.device_get(lanes.state.net)
    assert_close(net, plain)
    np.testing.assert_allclose(logs["error"], expected["error"], rtol=1e-4)
    np.testing.assert_allclose(logs["replaced"], expected["replaced"], rtol=1e-6)
    assert float(np.sum(logs["replaced"]) * STEPS) >= 8
    # Control: the same seeds at the other point, without L2 or at the other step size, are no match.
    with pytest.raises(AssertionError):
        assert_close(net.variables, jax.tree.map(lambda leaf: np.roll(leaf, 2, axis=0), plain.variables))


@pytest.mark.slow
@pytest.mark.usefixtures("combined")
def test_a_resumed_run_ends_with_the_same_bits(tmp_path):
    """Killed twice, between records: traces, noise, ages and the units that were dead all go on."""
    life = life_of("upgd_and_paper", **LANES["upgd_and_paper"])
    life.measure = lambda lanes, keys, step: {"dead": lanes.dead.sum(axis=1), "weights": lanes.net.opt_state.step}
    parts = life.parts()

    class Killed(BaseException):
        """Ends a run from inside."""

    def kill(lanes):
        raise Killed

    def left_by(name: str, deaths=()) -> list[bytes]:
        for part in deaths:
            broken = [*parts[:part], parts[part]._replace(do=kill), *parts[part + 1 :]]
            with pytest.raises(Killed):
                play(broken, None, open_run(tmp_path / name, life.setup.config, resume=True))
        folder = open_run(tmp_path / name, life.setup.config, resume=True)
        done = []
        play(parts, None, folder, progress=lambda part, steps: done.append(part))
        assert any("resumed" in part for part in done) == bool(deaths)
        kept = sorted((folder.folder / "variables").iterdir())
        return [path.read_bytes() for path in (folder.metrics_path, *kept)]

    whole = left_by("whole")
    assert len(parts) == 4
    assert len(whole) == 1 + 2  # records, and the networks of both points
    assert left_by("broken", (1, 3)) == whole


# --- What acts between blocks --------------------


def acted(method: str, axis: Axis):
    """Parameters after a thousand steps and what acts then, the inputs of each seed, and how many units were touched.

    At the first point of the grid nothing acts, so its lanes are what the others were before.
    """
    life = life_of(method, flip_every=10_000, act_every=1000, step_sizes=(0.01,), activations=("tanh",), grid=(axis,))
    lanes, keys, logs = life._started(), life.lanes.of_seeds(life.data_keys), {}
    lanes = lanes._replace(state=lanes.state._replace(net=with_near_clones(lanes.state.net)))
    for start, steps in ((0, 700), (700, 300)):
        lanes, logs = life.chunk(lanes, keys, start, steps)
    params = jax.device_get(lanes.state.net.variables["params"])
    orders = jax.vmap(jax.random.split)(life.data_keys)[:, 0]
    blocks = [prepared_block(life.setup.problem, key, 0) for key in orders]
    inputs = [np.asarray(block.inputs)[np.asarray(block.codes)] for block in blocks]
    return params, inputs, np.round(np.asarray(logs["replaced"]) * 300).astype(int)


def with_near_clones(net):
    """Units 0 and 1 of every lane almost equal."""
    kernel, outgoing = (np.array(net.variables["params"][name]["kernel"]) for name in ("hidden_0", "classes"))
    kernel[:, :, 1], outgoing[:, 1] = kernel[:, :, 0] * 1.001, outgoing[:, 0]
    params = {"hidden_0": {**net.variables["params"]["hidden_0"], "kernel": kernel}}
    params["classes"] = {**net.variables["params"]["classes"], "kernel": outgoing}
    return net._replace(variables={"params": jax.tree.map(jax.numpy.asarray, params)})


def forward(params, lane: int, inputs):
    hidden, out = params["hidden_0"], params["classes"]
    post = np.tanh(inputs @ hidden["kernel"][lane] + hidden["bias"][lane])
    return post, post @ out["kernel"][lane] + out["bias"][lane]


@pytest.mark.slow
def test_redo_acts_once_on_the_inputs_of_the_block():
    """The scores by hand: what is at most 0.8 of the mean is reset, nothing else is."""
    params, blocks, counts = acted("redo", Axis("redo_threshold", (0.0, 0.8)))
    kernel, outgoing = params["hidden_0"]["kernel"], params["classes"]["kernel"][:, :, 0]
    low = []
    for seed, inputs in enumerate(blocks):
        size = np.abs(forward(params, seed, inputs)[0]).mean(axis=0)
        low.append(size / size.mean() <= 0.8)
    assert np.array_equal(outgoing == 0, [[False] * 4] * 2 + low)
    assert np.array_equal((kernel[2:] != kernel[:2]).all(axis=1), low)
    assert np.array_equal(counts, [0, 0, *np.sum(low, axis=1)])
    assert 0 < counts.sum() < 8


@pytest.mark.slow
def test_clone_splitting_parts_near_clones_and_keeps_the_function():
    params, blocks, counts = acted("split_clones", Axis("clone_tolerance", (0.0, 0.05)))
    apart = np.abs(np.diff(params["classes"]["kernel"][:, :2, 0], axis=1))[:, 0]
    assert list(counts) == [0, 0, 2, 2]
    assert np.all(apart[2:] > 10 * apart[:2])
    for seed, inputs in enumerate(blocks):
        (_, before), (_, after) = forward(params, seed, inputs), forward(params, 2 + seed, inputs)
        assert np.abs(after - before).max() < 1e-3 * before.std()


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
    assert drawn.rows[0][0].startswith("fresh network per task*, relu, 4")
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


def test_a_program_that_ends_early_has_diverged():
    """All lanes of one method are frozen in the first bin, so it has no more records; of the other one seed is."""
    config = replace(TINY, methods=("sgd", "l2"), seeds=tuple(range(5)), step_sizes=(0.01,))
    early, late = (curve.fields() for curve in curves_of(("sgd", "l2"), ("relu",), (4,), (0.01,)))
    records = [{**early, "seed": seed, "step": 100, "error": None, "frozen_at": 7 + seed} for seed in range(5)]
    for step in (100, 200, 300, 400):
        records += [{**late, "seed": seed, "step": step, "error": 1.0 + seed} for seed in range(5)]
    records[-1] |= {"error": None, "frozen_at": 350}
    run = RunData(None, json.loads(json.dumps(vars(config))), records, None, "bit_flipping")  # pyright: ignore
    rows = summarise(run)
    assert [row["verdict"] for row in rows] == ["diverged", "diverged"]
    assert [(row["frozen"], row["frozen_at"]) for row in rows] == [(5, 7), (1, None)]
    assert rows[1]["last"] is None


def test_the_reference_lies_among_our_seeds_or_not(tmp_path, capsys):
    ours = np.exp(np.random.default_rng(1).normal(size=30))
    logs = np.log(ours)
    inside, outside = row_of("bp", "all", ours, float(np.exp(logs.mean()))), row_of("bp", "all", ours, 40.0)
    assert inside.p == pytest.approx(1)
    assert outside.p < 0.01
    half = 2.0452296 * logs.std(ddof=1) * np.sqrt(31 / 30)  # Student's law with 29 degrees of freedom
    assert np.log(inside.most / inside.least) == pytest.approx(2 * half, rel=1e-6)
    config = replace(PRESETS["reference_one"], methods=("linear",), seeds=(0, 1, 2), steps=800, record_every=100)
    fields = curves_of(("linear",), ("relu",), (4,), (0.01,))[0].fields()
    records = [{**fields, "seed": seed, "error": 1.0 + seed} for seed in range(3) for _ in range(8)]
    run = RunData(None, json.loads(json.dumps(vars(config))), records, None, "bit_flipping")  # pyright: ignore
    reference = [{"law": "one", "agent": "linear", "seed": 0, "bin": 100, "mse": [2.0] * 8}]
    assert all(row.measured == pytest.approx(2) and row.p > 0.5 for row in rows_of(run, reference))
    with pytest.raises(ValueError, match="the reference has 700"):
        rows_of(run, [{**reference[0], "mse": [2.0] * 7}])
    with pytest.raises(ValueError, match="no agent of the run"):
        rows_of(run, [{**reference[0], "law": "all"}])
    for changes, message in (
        ({"step_sizes": [0.01, 0.003]}, r"step_sizes=.*: must be \[0.01\], as in the reference"),
        ({"seeds": [0, 1]}, "must be at least 3"),
    ):
        with pytest.raises(ValueError, match=message):
            rows_of(run._replace(config=run.config | changes), reference)
    # Half a run is no run: its first half would be compared with the whole first half of the reference.
    for records in (run.records[:-1], [*run.records[:-1], {**run.records[-1], "error": None}]):
        with pytest.raises(ValueError, match="not complete, or a seed has diverged"):
            rows_of(run._replace(records=records), reference)
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
        ({"methods": ("l2",), "grid": (Axis("l2", (0.1, -1.0)),)}, "l2=-1.0: must be non-negative"),
        ({"methods": ("l2",), "grid": (Axis("maturity", (10.0,)),)}, "none of methods=.* would"),
        ({"maturity": 10.5}, "maturity=10.5: must be an integer"),
        ({"beta": float("nan")}, r"beta=nan: must be in \(0, 1\]"),
        ({"beta": 2.0}, r"beta=2.0: must be in \(0, 1\]"),
        ({"methods": ("split_clones",), "widths": (1,)}, "at least 2 with split_clones"),
        ({"steps": 2**31, "record_every": 2**31}, "steps=2147483648: must be in 1..2147483647"),
        ({"step_sizes": (1e-60,)}, "at least 1.2e-38"),
        ({"activations": ("gelu",)}, "activations=.*must be among"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_compiled(changes, message):
    with pytest.raises(ValueError, match=message):
        build(replace(TINY, **changes))
