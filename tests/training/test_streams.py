"""Streams against plain NumPy and against their own laws: a batch is a function of data, key and number alone."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax import training
from lopjax.losses import mean_squared_error
from lopjax.models import mlp
from lopjax.training import (
    Drawn,
    Stream,
    epochs,
    init_state,
    logs_of,
    make_chunk,
    no_stream,
    online,
    start_lanes,
    tasks,
    train_step,
    windows,
)
from lopjax.training.streams import block_of

NUM, BATCH = 10, 3
KEY = jax.random.key(3)


def examples(offset: int = 0, num: int = NUM) -> tuple[np.ndarray, np.ndarray]:
    """Examples whose label says which one they are."""
    return np.arange(num, dtype=np.float32)[:, None] + offset, np.arange(num, dtype=np.int32) + offset


def gaussian(key, index):
    inputs = jax.random.normal(key, (4, 2))
    return inputs, jnp.sum(inputs, axis=1) + index


STREAMS = {
    "epochs": epochs(*examples(), BATCH),
    "online": online(gaussian),
    "windows": windows(np.arange(40, dtype=np.int32), 5, 2),
    "tasks": tasks([epochs(*examples(100 * task), BATCH) for task in range(3)], 7),
    "tasks of unlike streams": tasks([epochs(*examples(100 * task, 10 + task), BATCH) for task in range(3)], 7),
    "tasks of tasks": tasks([tasks([epochs(*examples(10 * t), BATCH) for t in range(2)], 2)] * 2, 5),
    "no_stream": no_stream(),
}
ELSEWHERE = {"task_stream", "upgd_toy", "bit_flipping"}
"""Streams with a file of tests of their own."""


def test_every_stream_is_in_the_table():
    functions = filter(inspect.isfunction, vars(training).values())
    streams = {each.__name__ for each in functions if each.__annotations__["return"] is Stream}
    assert len(streams) > 6  # or this test has stopped looking
    assert streams - {*STREAMS} == ELSEWHERE


@pytest.mark.parametrize("name", STREAMS)
def test_the_block_form_draws_what_the_plain_form_draws(name):
    stream = STREAMS[name]
    block, prepared, end = block_of(stream), None, 0

    @jax.jit
    def both(prepared, index):
        return block.draw(stream.data, prepared, KEY, index), stream.draw(stream.data, KEY, index)

    for index in map(jnp.int32, range(22)):
        if index >= end:
            prepared, end = block.prepare(stream.data, KEY, index), int(block.end(index))
            assert end > index
        jax.tree.map(np.testing.assert_array_equal, *both(prepared, index))


def drawn(stream: Stream, index: int, key=KEY) -> Drawn:
    return stream.draw(stream.data, key, jnp.int32(index))


def test_tasks_follow_each_other_and_come_again():
    stream = STREAMS["tasks"]
    for step in (0, 6, 7, 13, 20, 21, 28):
        found, task = drawn(stream, step), step // 7
        assert int(found.task.index) == task
        assert bool(found.task.is_start) == (step % 7 == 0)
        labels = np.asarray(found.batch[1])
        assert (labels // 100 == task % 3).all()
        # A task draws by a key of its own, counting its own steps.
        alone = drawn(epochs(*examples(), BATCH), step % 7, jax.random.fold_in(KEY, task))
        np.testing.assert_array_equal(labels % 100, alone.batch[1])
    # The control: the same data as another task come in another order.
    assert (drawn(stream, 0).batch[1] != drawn(stream, 21).batch[1]).any()


def test_forty_alike_tasks_compile_like_one():
    """The number of equations does not grow; that of unlike streams does: they are branches."""

    def equations(streams):
        stream = tasks(streams, 4)
        return len(str(jax.make_jaxpr(stream.draw)(stream.data, KEY, jnp.int32(0))).splitlines())

    alike = [equations([epochs(*examples(task), BATCH) for task in range(num)]) for num in (2, 40)]
    unlike = [equations([epochs(*examples(task, 10 + task), BATCH) for task in range(num)]) for num in (2, 8)]
    assert alike[0] == alike[1]
    assert unlike[1] > 2 * unlike[0]


def test_streams_of_unequal_batches_are_not_taken_for_alike():
    """The same constructor and data, other static arguments: the program of one would be wrong for the other."""
    mixed = tasks([epochs(*examples(), 2), epochs(examples()[0][::-1].copy(), examples()[1], 2)], 3)
    assert isinstance(mixed.data[0], jax.Array)  # stacked: alike
    with pytest.raises(TypeError, match="branch"):
        drawn(tasks([epochs(*examples(), 2), epochs(*examples(), 3)], 3), 0)


def test_windows_are_pieces_of_the_text_and_labels_are_the_next_tokens():
    text = np.random.default_rng(0).integers(0, 50, 30).astype(np.int32)
    stream, starts = windows(text, 4, 6), set()
    for step in range(40):
        inputs, labels = map(np.asarray, drawn(stream, step).batch)
        assert inputs.shape == labels.shape == (6, 4)
        for read, following in zip(inputs, labels):
            (places,) = [[p for p in range(26) if (text[p : p + 4] == read).all() and text[p + 4] == following[-1]]]
            assert places
            starts.update(places)
            np.testing.assert_array_equal(read[1:], following[:-1])
    assert {0, 25} <= starts  # both ends of the text are seen


def test_online_batches_are_those_of_the_steps_key():
    for step in (0, 5):
        inputs, targets = drawn(STREAMS["online"], step).batch
        expected = gaussian(jax.random.fold_in(KEY, step), step)
        np.testing.assert_array_equal(inputs, expected[0])
        np.testing.assert_allclose(targets, expected[1])
    assert (drawn(STREAMS["online"], 0).batch[0] != drawn(STREAMS["online"], 1).batch[0]).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: epochs(np.zeros((4, 1)), np.zeros(3), 2), "4 images, labels of shape \\(3,\\)"),
        (lambda: epochs(*examples(), 11), "batch_size=11: must be between 1 and the 10"),
        (lambda: windows(np.zeros(5, int), 5, 1), "length=5, batch_size=1, 5 tokens"),
        (lambda: windows(np.zeros(9, int), 0, 1), "length=0"),
        (lambda: tasks([], 3), "0 streams, steps=3"),
        (lambda: tasks([no_stream()], 0), "1 streams, steps=0"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- In chunks --------------------

MODEL, OPTIMIZER = mlp((2,), (3,), 1, activation="tanh"), optax.adam(0.01)


def regression(state, given, key, index):
    """A loss without classes, and logs of the caller's own."""
    inputs, targets = given.batch
    loss = lambda outputs, targets: mean_squared_error(outputs, targets[:, None])  # noqa: E731
    state, seen = train_step(MODEL, OPTIMIZER, state, (inputs, targets), loss=loss)
    return state, logs_of(seen, "loss", "gradient_norm", largest=lambda seen: jnp.max(jnp.abs(seen.logits)))


@pytest.mark.parametrize("cuts", [(1,) * 12, (5, 7)])
def test_any_stream_trains_to_the_same_bits_however_it_is_cut(cuts):
    stream = tasks([online(gaussian)] * 2, 5)
    chunk = make_chunk(regression, stream)

    def train(*lengths):
        lanes = start_lanes(jax.tree.map(lambda leaf: leaf[None], init_state(MODEL.init(KEY), OPTIMIZER)))
        start = 0
        for length in lengths:
            lanes, logs = chunk(lanes, KEY[None], start, length, stream.data)
            start += length
        assert set(logs) == {"loss", "gradient_norm", "largest"}
        return jax.tree.map(np.asarray, lanes.state)

    jax.tree.map(np.testing.assert_array_equal, train(*cuts), train(12))
    kernels = [train(length).variables["params"]["classes"]["kernel"] for length in (11, 12)]
    assert (kernels[0] != kernels[1]).any()


def test_a_step_may_ignore_the_stream_and_keep_its_world_in_its_state():
    def step(state, given, key, index):
        position, velocity = state
        velocity = velocity - 0.1 * position
        return (position + 0.1 * velocity, velocity), {"energy": position**2 + velocity**2}

    stream = no_stream()
    lanes = start_lanes((jnp.array([1.0, 2.0]), jnp.zeros(2)))
    lanes, logs = make_chunk(step, stream)(lanes, jnp.stack([KEY, KEY]), 0, 50, stream.data)
    x, v = np.array([1.0, 2.0]), np.zeros(2)
    for _ in range(50):
        v = v - 0.1 * x
        x = x + 0.1 * v
    np.testing.assert_allclose(lanes.state[0], x, rtol=1e-5)
    assert logs["energy"].shape == (2,)
