"""A run folder makes its networks again, and keeps the batch they are measured on."""

import json
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.architectures import ARCHITECTURES, build
from oracles.folders import Config

from lopjax.activations import Activation
from lopjax.cloning import widen
from lopjax.models import mlp, recorded
from lopjax.runs import RunFolderError, follow_run, load, open_run


def bump(z):
    return z * jnp.exp(-(z**2))


NETWORKS = {
    "mlp_list": lambda: mlp((4,), [6, 4], 3),
    "mlp_options": lambda: mlp(
        (2, 2),
        (6, 4),
        3,
        "tanh",
        norm="batch",
        affine=False,
        dropout=0.25,
        init="he",
        compute_dtype="bfloat16",
    ),
    "mlp_own_activation": lambda: mlp((4,), (6,), 3, activation=bump),
    "mlp_known_function": lambda: mlp((4,), (6,), 3, activation=jax.nn.relu),
    "mlp_facts": lambda: mlp((4,), (6,), 3, activation=Activation("bump", bump, kinks=(), lower_bound=-np.inf)),
    "cnn_options": lambda: build("cnn", norm="layer", pooling="average", dropout=0.5),
    "resnet_options": lambda: build("resnet", affine=False, dropout=0.1),
    "vit_options": lambda: build("vit", mlp_ratio=1.5, dropout=0.1, attention_dropout=0.2),
    **{name: partial(build, name) for name in ARCHITECTURES},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_and_its_wide_ones_are_made_again(tmp_path, name):
    base = NETWORKS[name]()
    assert NETWORKS[name]() is base  # still the same object for the same arguments
    space = base.wiring.cloneable[0]
    networks = {"base": base, "wide": widen(base, 2), "one": widen(base, {space: 3}), "twice": widen(widen(base, 2), 3)}
    run = open_run(tmp_path, Config())
    for key, model in networks.items():
        run.record_network(key, model)
        run.record_network(key, model)  # a run that goes on records it again
    for key, model in networks.items():
        again = load(tmp_path).model(key)
        assert again is model
        assert again.wiring == model.wiring
    assert len({model.wiring for model in networks.values()}) == 4  # the control
    recipe = json.loads((tmp_path / "networks" / "base.json").read_text())
    assert recipe["make"].startswith(f"lopjax.models:{name.split('_')[0]}")


OWN = """
import jax, flax.linen as nn
from lopjax.models import from_linen, mlp, recorded

def plain(width, names=("a",), activation="relu"):
    assert isinstance(names, tuple)
    return mlp((4,), (width,), 2, activation=activation)

@recorded
def known(width, *, scale=float("inf"), **others):
    return mlp((4,), (width,), 2, **others)

"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "code" / "package").mkdir(parents=True)
    (tmp_path / "code" / "package" / "__init__.py").write_text("")
    (tmp_path / "code" / "package" / "module.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "code")
    for name in [name for name in sys.modules if name.split(".")[0] == "package"]:
        monkeypatch.delitem(sys.modules, name)
    import package.module  # pyright: ignore[reportMissingImports]

    return package.module


def test_networks_of_ones_own_functions_are_made_again(tmp_path, own):
    run = open_run(tmp_path / "run", Config())
    arguments = {"width": 5, "names": ["b", "c"], "activation": "tanh"}
    run.record_network("by_name", widen(own.plain(5, activation="tanh"), 2), "package.module:plain", arguments)
    run.record_network("by_function", own.plain(7), own.plain, {"width": 7})
    run.record_network("decorated", widen(own.known(5, norm="layer"), 2))
    data = load(tmp_path / "run")
    assert data.model("by_name").wiring == widen(mlp((4,), (5,), 2, activation="tanh"), 2).wiring
    assert data.model("by_function").wiring == mlp((4,), (7,), 2).wiring
    assert data.model("decorated").wiring == widen(mlp((4,), (5,), 2, norm="layer"), 2).wiring
    json.loads((tmp_path / "run" / "networks" / "decorated.json").read_text(), parse_constant=pytest.fail)
    assert dict(data.model("decorated").constructor.arguments)["scale"] == np.inf
    assert own.known(5, scale={"a": 1}).constructor is None


def test_what_cannot_be_made_again_is_refused_when_it_is_recorded(tmp_path, own):
    run = open_run(tmp_path / "run", Config())

    @recorded
    def local(width):
        return mlp((4,), (width,), 2)

    refused = [
        (mlp((4,), (3,), 2)._replace(constructor=None), None, {}, r"does not say how it was made; give make="),
        (local(3), None, {}, r"<locals>|cannot be imported by name|cannot make|has no"),
        (mlp((4,), (3,), 2), own.plain, {"width": 3, "activation": "tanh"}, r"makes another network"),
        (mlp((4,), (3,), 2), "package.module:absent", {}, r"package.module has no absent"),
        (mlp((4,), (3,), 2), "package.module", {}, r"must have the form 'package.module:function'"),
        (mlp((4,), (3,), 2), "no_such_package:f", {}, r"no_such_package"),
        (
            mlp((4,), (3,), 2),
            own.plain,
            {"hight": 3},
            r"package.module:plain: cannot make the network again \(TypeError",
        ),
        (mlp((4,), (3,), 2), own.plain, {"width": {3}}, r"width: \{3\} of type set has no form in JSON"),
        (mlp((4,), (3,), 2, activation=lambda z: z * 2), None, {}, r"cannot be imported by name"),
    ]
    for model, make, arguments, message in refused:
        with pytest.raises((ValueError, ImportError), match=message):
            run.record_network("network", model, make, arguments)
    assert not (run.folder / "networks").exists()
    with pytest.raises(ValueError, match="every argument must have a name"):
        recorded(lambda *widths: mlp((4,), widths, 2))


def test_a_name_records_one_network_and_bad_names_are_refused(tmp_path):
    run = open_run(tmp_path, Config())
    run.record_network("base", mlp((4,), (3,), 2))
    with pytest.raises(RunFolderError, match="another network of this name"):
        run.record_network("base", mlp((4,), (5,), 2))
    for name in ("", "../base", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="must be letters, digits"):
            run.record_network(name, mlp((4,), (3,), 2))
    with pytest.raises(FileNotFoundError, match=r"wide\.json: no such file; names are \['base'\]"):
        load(tmp_path).model("wide")
    path = tmp_path / "networks" / "base.json"
    for content in ("{", "[]", '{"make": 3}'):
        path.write_text(content)
        with pytest.raises(RunFolderError, match=r"base\.json: cannot be read"):
            load(tmp_path).model("base")
    path.write_text('{"make": "lopjax.models:gone", "arguments": {}, "sizes": {}}')
    with pytest.raises(RunFolderError, match=r"lopjax.models:gone: cannot make the network again \(ImportError"):
        load(tmp_path).model("base")


@pytest.mark.parametrize(
    ("inputs", "labels"),
    [
        (np.full((3, 4), np.nan, np.float32), np.array([0, 2**40, -1])),
        (np.arange(12, dtype=np.uint8).reshape(3, 4), jnp.array([0, 1, 2])),
        (jnp.ones((3, 4), jnp.bfloat16), np.full((3, 2), 0.5)),
    ],
)
def test_the_probe_batch_comes_back_with_its_bits(tmp_path, inputs, labels):
    run = open_run(tmp_path, Config())
    with pytest.raises(FileNotFoundError, match="records no probe batch"):
        load(tmp_path).probe()
    run.record_probe(inputs, labels)
    run.record_probe(inputs, labels)
    for back, array in zip(load(tmp_path).probe(), (inputs, labels)):
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        assert np.asarray(back).tobytes() == np.asarray(array).tobytes()
    with pytest.raises(RunFolderError, match="holds another probe batch"):
        run.record_probe(np.asarray(inputs).astype(np.float64) + 1, labels)


def test_a_probe_that_is_no_batch_is_refused_and_another_process_records_nothing(tmp_path):
    run = open_run(tmp_path, Config())
    for inputs, labels in ((np.ones((3, 2)), np.ones(2)), (np.ones((0, 2)), np.ones(0)), (1.0, 1)):
        with pytest.raises(ValueError, match="must have as many rows, at least one"):
            run.record_probe(inputs, labels)
    follower = follow_run(tmp_path, Config(), is_complete=False)
    follower.record_probe(np.ones((3, 2)), np.ones(3))
    follower.record_network("base", mlp((4,), (3,), 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "run.lock"]


@pytest.mark.slow
def test_another_process_computes_the_same_logits(tmp_path):
    model = widen(build("vit"), 2)
    inputs = np.random.default_rng(0).normal(size=(5, *ARCHITECTURES["vit"].shape)).astype(np.float32)
    variables = model.init(jax.random.key(0))
    run = open_run(tmp_path / "run", Config())
    run.record_network("wide", model)
    run.record_probe(inputs, np.zeros(5, np.int32))
    run.keep("end", variables)
    program = (
        "import sys, numpy as np\n"
        "from lopjax import runs\n"
        "run = runs.load(sys.argv[1])\n"
        "logits = run.model('wide').apply(run.variables('end'), run.probe()[0]).logits\n"
        "sys.stdout.buffer.write(np.asarray(logits).tobytes())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(run.folder)], env=os.environ.copy(), capture_output=True, check=True
    )
    assert done.stdout == np.asarray(model.apply(variables, jnp.asarray(inputs)).logits).tobytes()
