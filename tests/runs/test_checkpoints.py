"""Checkpoints come back bit by bit or not at all; every refusal names its reason, and older good ones are used."""

import errno
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.runs import checkpoints
from lopjax.runs.checkpoints import CheckpointError, read, restore, save

HEADER = {"config": "abc", "versions": {"jax": "1"}, "metrics_bytes": 7}
EXPECTED = {"config": "abc", "versions": {"jax": "1"}}


def state(seed: int = 0, width: int = 3):
    generator = np.random.default_rng(seed)
    return {
        "params": {"kernel": jnp.asarray(generator.normal(size=(2, width)), jnp.float32), "none": None},
        "half": jnp.asarray(generator.normal(size=4), jnp.bfloat16),
        "special": jnp.array([np.nan, -0.0, np.inf, 1e-45], jnp.float32),
        "count": (jnp.asarray(3, jnp.int32), jnp.zeros((0, 2))),
        "keys": jax.random.split(jax.random.key(seed, impl="philox4x32"), 2),
        "key": jax.random.key(seed),
    }


def like(step):
    return jax.eval_shape(state)


def bits(tree) -> list[tuple[str, tuple[int, ...], bytes]]:
    def raw(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf).tobytes()

    return [(str(leaf.dtype), leaf.shape, raw(leaf)) for leaf in jax.tree.leaves(tree)]


def test_a_tree_comes_back_with_the_same_bits(tmp_path):
    save(tmp_path, 5, state(), HEADER)
    found = restore(tmp_path, like, EXPECTED)
    assert (found.step, found.header, found.refused) == (5, HEADER, ())
    assert jax.tree.structure(found.tree) == jax.tree.structure(state())
    assert bits(found.tree) == bits(state())
    # Keys draw what they would have drawn.
    assert jax.random.bits(found.tree["keys"][1]) == jax.random.bits(state()["keys"][1])
    # The control: another state has other bits.
    assert bits(found.tree) != bits(state(seed=1))


HOST = {
    "examples_seen": np.int64(3_000_000_000),
    "running_mean": np.float64(1 / 3),
    "histogram": np.array([2**40, -(2**40)]),
    "mask": np.array([2**63 + 1], np.uint64),
    "waves": np.array([1 / 3 + 1j / 7]),
    "epoch": 2**40,
    "rate": 0.1,
    "done": True,
    "phase": 1j / 3,
}


@pytest.mark.parametrize("is_x64", [False, True])
def test_state_of_64_bits_and_numbers_of_python_come_back_exactly(tmp_path, is_x64):
    with jax.enable_x64(is_x64):
        save(tmp_path, 1, HOST, HEADER)
        found = restore(tmp_path, lambda step: HOST, EXPECTED).tree
        kept = read(tmp_path / "step_1.npz")[0]
    for name, value in HOST.items():
        for back in (found[name], kept[name]):
            assert np.asarray(back).dtype == np.asarray(value).dtype
            np.testing.assert_array_equal(back, value)
        if isinstance(value, (bool, int, float, complex)) and not isinstance(value, np.generic):
            assert type(found[name]) is type(value)
    # The control: what JAX would have made of it.
    assert jnp.asarray(np.array(3_000_000_000).astype(np.int32)) == -1_294_967_296


def test_what_was_saved_with_x64_is_not_cut_without(tmp_path):
    with jax.enable_x64(True):
        save(tmp_path, 1, {"a": jnp.array([1 / 3])}, HEADER)
    kept = read(tmp_path / "step_1.npz")[0]["a"]
    assert kept.dtype == np.float64
    assert kept[0] == 1 / 3
    with pytest.raises(CheckpointError, match=r"\['a'\].*float64.*float32"):
        restore(tmp_path, lambda step: {"a": jnp.zeros(1)}, EXPECTED)


@pytest.mark.parametrize(
    "leaf",
    [
        "x", b"x", object(), 2**70, np.array(["a"]), np.array([None]), np.datetime64("2020-01-01"), jnp.zeros,
        np.ma.array([1.0], mask=[True]), np.zeros(2, [("a", "i4")]), np.zeros(2, ">f4"), np.zeros(2, np.longdouble),
    ],
    ids=lambda leaf: type(leaf).__name__,
)  # fmt: skip
def test_what_cannot_be_saved_is_named_before_anything_is_written(tmp_path, leaf):
    with pytest.raises(CheckpointError, match=r"\['b'\]\['name'\]: .* cannot be saved; allowed are numbers"):
        save(tmp_path / "checkpoints", 1, {"a": jnp.ones(2), "b": {"name": leaf}}, {})
    assert not list(tmp_path.iterdir())


def test_a_header_is_compared_as_json_has_it(tmp_path):
    save(tmp_path, 1, {}, {"sizes": (1, 2), "rate": np.float32(0.5)})
    assert restore(tmp_path, lambda step: {}, {"sizes": (1, 2), "rate": 0.5}).step == 1
    with pytest.raises(ValueError, match=r"header\.names: \{'a'\} of type set"):
        save(tmp_path, 2, {}, {"names": {"a"}})


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert restore(tmp_path, like, EXPECTED) is None
    assert restore(tmp_path / "absent", like, EXPECTED) is None
    (tmp_path / "step_3.npz.partial").write_bytes(b"cut short")
    assert restore(tmp_path, like, EXPECTED) is None


def test_the_newest_is_used_and_only_the_last_stay(tmp_path):
    for step in (1, 2, 9, 10):
        save(tmp_path, step, state(step), HEADER, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10.npz", "step_9.npz"]
    assert bits(restore(tmp_path, like, EXPECTED).tree) == bits(state(10))


def test_every_flipped_bit_is_refused_and_the_older_one_used(tmp_path):
    """A bit of every tenth byte or so: headers, names and contents of the archive alike."""
    save(tmp_path, 1, state(1), HEADER)
    good = bits(state(1))
    path = save(tmp_path, 2, state(2), HEADER)
    content, newest = path.read_bytes(), bits(state(2))
    generator, refusals = np.random.default_rng(0), 0
    for position in generator.choice(len(content), len(content) // 10, replace=False):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        found = restore(tmp_path, like, EXPECTED)
        if found.step == 1:
            refusals += 1
            assert bits(found.tree) == good
            assert "step_2.npz" in found.refused[0]
        else:  # a bit that means nothing, such as a time stamp of the archive
            assert bits(found.tree) == newest
            assert found.header == HEADER
    assert refusals > len(content) // 10 // 3


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = save(tmp_path, 2, state(), HEADER)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used: .*step_2\.npz: damaged"):
        restore(tmp_path, like, EXPECTED)


def test_what_belongs_to_something_else_is_refused_with_the_reason(tmp_path):
    path = save(tmp_path, 2, state(), HEADER)
    with pytest.raises(CheckpointError, match="belongs to config 'abc', not to config 'xyz'"):
        restore(tmp_path, like, {**EXPECTED, "config": "xyz"})
    with pytest.raises(CheckpointError, match=r"belongs to versions \{'jax': '1'\}, not to versions \{'jax': '2'\}"):
        restore(tmp_path, like, {**EXPECTED, "versions": {"jax": "2"}})
    with pytest.raises(CheckpointError, match=r"of another model.*\[2, 3\].*\[2, 4\]"):
        restore(tmp_path, lambda step: jax.eval_shape(lambda: state(width=4)), EXPECTED)
    with pytest.raises(CheckpointError, match=r"holds 7 arrays for 8 wanted, of another model.*one has more arrays"):
        restore(tmp_path, lambda step: {**like(step), "zeros": jnp.zeros(1)}, EXPECTED)
    path.rename(tmp_path / "step_3.npz")
    with pytest.raises(CheckpointError, match="is the checkpoint of step 2 under another name"):
        restore(tmp_path, like, EXPECTED)


def test_another_precision_is_another_model(tmp_path):
    save(tmp_path, 2, {"a": jnp.zeros(2, jnp.float32)}, HEADER)
    with pytest.raises(CheckpointError, match=r"float32.*float16"):
        restore(tmp_path, lambda step: {"a": jax.ShapeDtypeStruct((2,), jnp.float16)}, EXPECTED)


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1, state(1), HEADER)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, state(2), HEADER)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1.npz"]
    assert bits(restore(tmp_path, like, EXPECTED).tree) == bits(state(1))


@pytest.mark.parametrize(("step", "keep"), [(-1, 2), (0, 0)])
def test_bad_numbers_are_refused(tmp_path, step, keep):
    with pytest.raises(ValueError, match=rf"step={step}, keep={keep}: step must be at least 0, keep at least 1"):
        save(tmp_path, step, state(), HEADER, keep)
    assert not list(tmp_path.iterdir())


def test_removing_leaves_what_is_not_a_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    checkpoints.remove(folder)
    save(folder, 1, state(), HEADER)
    (folder / "notes.txt").write_text("mine")
    checkpoints.remove(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    checkpoints.remove(folder)
    assert not folder.exists()
