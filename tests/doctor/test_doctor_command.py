"""`python -m lopjax doctor` on a run of ours and on checkpoints of others: what it writes, and what it refuses."""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
import sick

from lopjax.__main__ import main
from lopjax.detection import Status
from lopjax.doctor import command, diagnosis
from lopjax.doctor.checkpoints import MismatchError, matched, read_arrays
from lopjax.runs import open_run


@dataclass(frozen=True)
class Config:
    seeds: tuple[int, ...] = (0, 1)


@pytest.fixture
def quick(monkeypatch):
    """The diagnosis that is made once, in the place of the one that the command makes; what was examined is kept."""
    seen = []

    def known(model, variables, batch, **settings):
        seen.append((model, jax.tree.map(np.asarray, variables), batch, settings))
        return sick.diagnosis()

    monkeypatch.setattr(diagnosis, "diagnose", known)
    return seen


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "batch.npz"
    np.savez(path, inputs=sick.INPUTS, labels=sick.LABELS)
    return path


def saved(kind: str, folder: Path) -> Path:
    tree = sick.variables()
    if kind == "npz":
        flat = {f"hidden_0.{name}": leaf for name, leaf in tree["params"]["hidden_0"].items()}
        flat |= {f"['classes']['{name}']": leaf for name, leaf in tree["params"]["classes"].items()}
        np.savez(folder / "net.npz", **flat)
        return folder / "net.npz"
    if kind == "msgpack":
        from flax import serialization

        (folder / "net.msgpack").write_bytes(serialization.msgpack_serialize({**tree, "opt_state": {"count": 3}}))
        return folder / "net.msgpack"
    ocp = pytest.importorskip("orbax.checkpoint", reason="orbax is not installed")
    with ocp.PyTreeCheckpointer() as writer:
        writer.save((folder / "net").resolve(), tree)
    return folder / "net"


@pytest.mark.parametrize("kind", ["npz", "msgpack", "orbax"])
@pytest.mark.filterwarnings("ignore")  # orbax's own
def test_a_checkpoint_of_any_kind_is_read_as_it_was_written(kind, tmp_path):
    shapes = jax.eval_shape(sick.make().init, jax.random.key(0))
    found = matched(read_arrays(saved(kind, tmp_path)), shapes, "net")
    jax.tree.map(np.testing.assert_array_equal, found, sick.variables())


@pytest.mark.parametrize("above", [(), ("params",), ("params", "params")])
def test_bare_parameters_are_found_where_a_network_of_linen_saves_them(above):
    """As `(apply, params, inputs)` has them; a `TrainState` puts variables below `params`, beside its optimizer's."""
    tree = sick.variables()["params"]
    arrays = {(*above, layer, name): leaf for layer, part in tree.items() for name, leaf in part.items()}
    if above:
        arrays |= {("opt_state", "0", "count"): np.array(3), ("step",): np.array(7)}
    jax.tree.map(np.testing.assert_array_equal, matched(arrays, tree, "net"), tree)
    with pytest.raises(MismatchError, match=r"(?s)missing: classes/bias.*it holds model/"):
        matched({("model", *path[len(above) :]): leaf for path, leaf in arrays.items()}, tree, "net")


def test_the_command_examines_a_checkpoint_and_writes_beside_it(quick, data, tmp_path, capsys):
    path = saved("npz", tmp_path)
    main(["doctor", str(path), "--data", str(data), "--network", "sick:make", "--learning-rate", "0.1"])
    said = capsys.readouterr().out
    assert "4 units within 1 % of a clone" in said
    assert said.endswith(f"{tmp_path / 'doctor.html'}\n{tmp_path / 'doctor.json'}\n")
    assert json.loads((tmp_path / "doctor.json").read_text())["name"] == str(path)
    assert "<svg id=lives" in (tmp_path / "doctor.html").read_text()
    (_, variables, batch, settings), *_ = quick
    np.testing.assert_array_equal(
        variables["params"]["hidden_0"]["kernel"], sick.variables()["params"]["hidden_0"]["kernel"]
    )
    np.testing.assert_array_equal(batch[1], sick.LABELS)
    assert settings["learning_rate"] == 0.1


def test_the_command_examines_a_run_of_ours_on_its_own_probe(quick, tmp_path, capsys):
    folder, model = tmp_path / "run", sick.make()
    run = open_run(folder, Config())
    run.record_network("network", model)
    run.record_probe(sick.INPUTS, sick.LABELS)
    run.keep("adam", {"network": jax.tree.map(lambda leaf: np.stack([0 * leaf, leaf]), sick.variables())})
    for step, units in ((10, "aaaaaaaa"), (20, "aaaaadaa"), (30, "ccaaaDaa")):
        run.append(*({"method": "adam", "seed": seed, "step": step, "lives/hidden_0": units} for seed in (0, 1)))
    run.finish({})
    main(["doctor", str(folder), "--seed", "1"])
    assert "adam/network, seed 1" in capsys.readouterr().out
    assert (folder / "doctor.html").exists()
    examined, variables, batch, settings = quick[0]
    lives = settings["lives"]
    assert lives.steps.tolist() == [10, 20, 30]
    assert lives.status["hidden_0"][:, 5].tolist() == [Status.ALIVE, Status.DEAD, Status.DEAD]
    assert lives.touched["hidden_0"].sum(axis=0).tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert lives.status["hidden_0"][2, 0] == Status.NEAR_CLONE
    assert examined.wiring == model.wiring
    np.testing.assert_array_equal(
        variables["params"]["classes"]["kernel"], sick.variables()["params"]["classes"]["kernel"]
    )
    np.testing.assert_array_equal(batch[0], sick.INPUTS)
    for flags, message in ((["--seed", "2"], "--seed=2: the run has 2"), (["--name", "x"], r"must be one of")):
        with pytest.raises(SystemExit):
            main(["doctor", str(folder), *flags])
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_plain_function_is_traced_and_its_traps_are_found(data, tmp_path, capsys, unchecked):
    main(["doctor", str(saved("npz", tmp_path)), "--data", str(data), "--network", "sick:plain"])
    said = capsys.readouterr().out
    for kind in ("clones (mild", "near-clones", "dead units"):
        assert kind in said
    assert "evidence:   certificate BLOCK_CONSTANT" in said
    # The tracer finds the layer in front of the dead unit, and with it the radius and that nothing below it moves.
    assert "evidence:   certificate FROZEN at tolerance" in said
    assert "gradients never wake it; incoming weights would have to change by" in said


def test_a_checkpoint_that_does_not_match_is_refused_array_by_array():
    shapes = jax.eval_shape(sick.make().init, jax.random.key(0))
    arrays = {
        ("hidden_0", "kernel"): np.zeros((4, 7)),
        ("hidden_0", "bias"): np.zeros(8),
        ("head", "kernel"): np.zeros(3),
    }
    with pytest.raises(MismatchError) as refused:
        matched(arrays, shapes, "net.npz")
    lines = str(refused.value).splitlines()
    assert lines[0] == "net.npz does not match the network: 3 of its 4 arrays are not there as they should be"
    assert sorted(line.strip() for line in lines[1:]) == [
        "missing: params/classes/bias (3,)",
        "missing: params/classes/kernel (8, 3)",
        "not in the network: params/head/kernel (3,)",
        "shape: params/hidden_0/kernel is (4, 7), the network has (4, 8)",
    ]
    whole = {("hidden_0", "kernel"): np.zeros((4, 8), int), ("hidden_0", "bias"): np.array(["x"] * 8)}
    with pytest.raises(MismatchError, match=r"(?s)kernel is int64, the network has float32.*bias is <U1, the"):
        matched(whole, shapes, "net.npz")
    with pytest.raises(MismatchError, match="it holds params/a"):
        matched({("params", "a"): np.zeros(1)}, {"variables": shapes}, "net.npz")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder; runs are under runs/<experiment>/<name>"),
        (["DATA"], "batch.npz: a checkpoint needs --network and --data"),
        (["FOLDER"], "no run folder (it has no config.json), and a checkpoint needs --network and --data"),
        (["nowhere.npz", "--network", "sick:make", "--data", "DATA"], "nowhere.npz: no such file or folder"),
        (["DATA", "--network", "sick:unmake", "--data", "DATA"], "sick has no unmake"),
        (["DATA", "--network", "sick", "--data", "DATA"], "must have the form 'package.module:function'"),
        (["DATA", "--network", "sick:variables", "--data", "DATA"], "must be a Model or (apply, params, inputs)"),
        (["DATA", "--network", "sick:make", "--data", "DATA"], "missing: params/hidden_0/kernel (4, 8)"),
        (["DATA", "--network", "sick:make", "--data", "no.npz"], "--data=no.npz: no such file"),
    ],
)
def test_bad_input_is_one_sentence_for_the_user(words, message, data, capsys):
    places = {"DATA": str(data), "FOLDER": str(data.parent)}
    with pytest.raises(SystemExit):
        main(["doctor", *(places.get(word, word) for word in words)])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"text", b"", None])
def test_what_is_no_archive_is_refused_by_its_name(content, data, tmp_path, capsys):
    path = tmp_path / "other.npz"
    whole = data.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    for words in ([path, "--network", "sick:make", "--data", data], [data, "--network", "sick:make", "--data", path]):
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *map(str, words)])
        assert ended.value.code == 2
        assert f"{path}: not an npz archive of arrays, or damaged" in capsys.readouterr().err


def test_there_is_one_command():
    with pytest.raises(SystemExit) as ended:
        main(["nurse"])
    assert ended.value.code == 2
    assert command.Arguments(Path("x")).clone_tolerance == 0.01
