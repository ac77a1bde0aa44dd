"""Lanes against plain loops; over 8 devices of one process, and over two processes, against a single device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from oracles.training_step import STEP

from lopjax.random.philox import high_word
from lopjax.training.lanes import BATCH, SEED, check_lanes, cut_batch, gathered, lane_mesh, over_lanes, place

EIGHT = "--xla_force_host_platform_device_count=8"


def test_many_lanes_are_one_after_the_other():
    def function(x, key, shared):
        return {"sum": jnp.sum(x * shared), "drawn": jax.random.normal(key, (2,))}

    xs, keys = np.arange(6.0).reshape(3, 2), jax.random.split(jax.random.key(0), 3)
    found = over_lanes(function, 2)(xs, keys, jnp.array([1.0, 10.0]))
    np.testing.assert_allclose(found["sum"], xs @ [1.0, 10.0])
    for lane in range(3):
        np.testing.assert_array_equal(found["drawn"][lane], jax.random.normal(keys[lane], (2,)))


def test_one_device_needs_no_mesh():
    assert lane_mesh() is None
    tree = {"a": jnp.ones(3)}
    assert place(tree, None, is_per_lane=True) is gathered(tree, None) is cut_batch(tree, None) is tree
    check_lanes(7, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "seed_devices=0: must be at least 1"),
        ((1, -2), "batch_devices=-2: must be at least 1"),
        ((4, 2), r"need 8 devices, there are \d+ \(cpu\).*device_count=8"),
    ],
)
def test_too_few_devices_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        lane_mesh(*arguments)


def test_the_upper_word_of_a_product():
    words = np.random.default_rng(0).integers(0, 2**32, (2, 1000), dtype=np.uint32)
    words[:, :4] = [[0, 2**32 - 1, 2**32 - 1, 1], [5, 2**32 - 1, 1, 2**31]]
    expected = (words[0].astype(np.uint64) * words[1].astype(np.uint64)) >> np.uint64(32)
    np.testing.assert_array_equal(high_word(*map(jnp.asarray, words)), expected)
    np.testing.assert_array_equal(jax.lax.mulhi(*map(jnp.asarray, words)), expected)


def test_gathering_compiles_once(compiled):
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), (SEED, BATCH))
    tree = place({"a": np.arange(13.0)}, mesh, is_per_lane=True)
    for _ in range(3):
        np.testing.assert_array_equal(gathered(tree, mesh)["a"], np.arange(13.0))
    assert len(compiled) == 1
    gathered({"a": tree["a"], "b": tree["a"]}, mesh)  # the control: another structure is another program
    assert len(compiled) == 2


ON_EIGHT_DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from lopjax.training.lanes import check_lanes, gathered, lane_mesh, over_lanes, place
from lopjax.models import mlp
from lopjax.optim import noisy_sgd
from lopjax.training import Preprocess, epochs, init_state, logs_of, make_chunk, start_lanes, train_step

generator = np.random.default_rng(0)
images, labels = generator.integers(0, 256, (96, 4, 4, 1), np.uint8), np.arange(96, dtype=np.int32) % 5
model = mlp((4, 4, 1), (6, 6), 5, norm="batch", dropout=0.2)
optimizer = lambda key: noisy_sgd(0.1, 0.05, 0.999, seed=key)
STEP
def train(mesh):
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl="philox4x32"))(jnp.arange(8))
    lanes = lanes_of(keys)
    lanes, keys = place((lanes, keys), mesh, is_per_lane=True)
    data = place((jnp.asarray(images), jnp.asarray(labels)), mesh, is_per_lane=False)
    chunk = make_chunk(step, epochs(*data, 16), mesh)
    lanes, _ = chunk(lanes, keys, 0, 7, data)
    lanes, logs = chunk(lanes, keys, 7, 9, data)
    if mesh is not None:
        shares = {len(shard.data) for shard in jax.tree.leaves(lanes.state[0])[0].addressable_shards}
        assert shares == {8 // mesh.shape["seed"]}, shares
    return jax.device_get(gathered((lanes.state[0].variables, logs), mesh))

alone = train(None)
assert len({kernel.tobytes() for kernel in alone[0]["params"]["hidden_0"]["kernel"]}) == 8
for shape in ((8, 1), (2, 4)):
    spread = train(lane_mesh(*shape))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), alone, spread)
try:
    check_lanes(6, lane_mesh(4, 1))
except ValueError as error:
    assert str(error) == "seed_devices=4: must divide the 6 seeds", error
else:
    raise AssertionError
print("equal")
""".replace("STEP", STEP)


def python(*arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def output_of(process: subprocess.Popen) -> str:
    output, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return output


@pytest.mark.slow
def test_eight_devices_train_what_one_trains():
    """Seeds over devices, batches over devices, and both, in one process."""
    assert output_of(python("-c", ON_EIGHT_DEVICES, XLA_FLAGS=f"{os.environ['XLA_FLAGS']} {EIGHT}")).strip() == "equal"


FLAGS = [
    *("-m", "experiments.cloning", "--net.widths", "4", "--net.norm", "none", "--batch-size", "16"),
    *("--methods", "noisy_sgd", "adam", "--noise-scale", "0.1", "--base-length", "8", "--clone-length", "16"),
    *("--record-every", "8", "--probe-samples", "40", "--seeds", "0", "1"),
]


def assert_close(found: object, expected: object, where: str) -> None:
    """Numbers to 1e-3, all else exactly; the manifold by its verdict, as Lanczos amplifies rounding."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert found["verdict"] == expected["verdict"], where
    elif expected is None or isinstance(expected, str):
        assert found == expected, where
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3, err_msg=where)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_command_over_devices_and_over_processes_records_what_it_records_on_one(tmp_path):
    """Two devices, two columns of the batch, and two processes that speak over loopback, one of which writes."""

    def start(name: str, *flags: str, **environment: str) -> subprocess.Popen:
        return python(*FLAGS, "--root", str(tmp_path / name), *flags, **environment)

    output_of(start("one"))
    output_of(start("devices", "--seed-devices", "2", "--batch-devices", "4", XLA_FLAGS=EIGHT))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = ("--seed-devices", "2", "--coordinator", address, "--num-processes", "2", "--process-id")
    processes = [start("processes", *together, str(number)) for number in range(2)]
    first, second = (output_of(process) for process in processes)
    assert "noisy_sgd" in first
    assert "noisy_sgd" not in second  # only one process speaks
    expected = records(tmp_path / "one" / "cloning" / "quick")
    assert len(expected) == 2 * 2 * (1 + 1 + 2)
    for name in ("devices", "processes"):
        found = records(tmp_path / name / "cloning" / "quick")
        assert len(found) == len(expected)
        for one, other in zip(expected, found, strict=True):
            assert one.keys() == other.keys()
            for key, value in one.items():
                assert_close(other[key], value, f"{name}: {key}")
    # The process that does not write is told when the run is complete, and a mistake is answered once, by the other.
    processes = [start("processes", *together, str(number)) for number in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "this config has been run" in outputs[0][1]
    assert "noisy_sgd" in outputs[0][0]
    assert "noisy_sgd" not in outputs[1][0]
    processes = [start("processes", *together, str(number), "--learning-rate", "0.2") for number in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert "belongs to another config" in errors[0]
    assert "belongs to another config" not in errors[1]
