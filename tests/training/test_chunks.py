"""The training engine against plain loops: numpy for the order and the gradients, Python for the scan."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax.data import augment
from lopjax.models import mlp
from lopjax.training import (
    Drawn,
    Preprocess,
    Task,
    epochs,
    evaluate,
    init_state,
    logs_of,
    make_chunk,
    start_lanes,
    train_step,
)

NUM, BATCH = 11, 3  # an epoch has 3 steps and drops 2 examples
MODEL = mlp((2, 2, 1), (4,), 3, activation="tanh", dropout=0.3)
PREPROCESS = Preprocess(mean=(0.4,), std=(0.25,))
MOMENTUM, RATE = 0.9, 0.5


def data(num: int = NUM) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (num, 2, 2, 1), dtype=np.uint8), np.arange(num, dtype=np.int32) % 3


def inputs_of(images: np.ndarray) -> np.ndarray:
    return ((images.astype(np.float64) / 255 - 0.4) / 0.25).reshape(len(images), -1)


# --- Order of the examples --------------------


def recording_step(state, drawn, key, index):
    """Writes down which examples each step saw: their labels are their numbers."""
    return state.at[index].set(drawn.batch[1]), {"loss": jnp.float32(0)}


NUMBERS = (data()[0], np.arange(NUM, dtype=np.int32))
RECORDING = make_chunk(recording_step, epochs(*NUMBERS, BATCH))


def seen(seed: int, *cuts: int) -> np.ndarray:
    """Examples of every step, `(steps, batch)`, when training is cut into calls of the given lengths."""
    order_key = jax.random.key(seed)
    lanes, start = start_lanes(jnp.full((1, sum(cuts), BATCH), -1, jnp.int32)), 0
    for length in cuts:
        lanes, _ = RECORDING(lanes, order_key[None], start, length, NUMBERS)
        start += length
    return np.asarray(lanes.state[0])


def test_every_epoch_is_a_fresh_shuffle_without_repetition():
    epochs = seen(0, 30).reshape(10, 9)
    assert epochs.min() == 0
    assert epochs.max() == NUM - 1
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10
    # Which examples an epoch drops changes too: otherwise two would never be seen.
    assert set(epochs.ravel()) == set(range(NUM))
    # The control: nine steps from the middle of an epoch see some example twice.
    assert len(set(epochs.ravel()[3:12])) < 9


def test_an_epoch_is_the_permutation_of_its_own_key():
    order_key, _ = jax.random.split(jax.random.key(5))
    epochs = seen(5, 30).reshape(10, 3, 3)
    for epoch in (0, 1, 7):
        expected = np.asarray(jax.random.permutation(jax.random.fold_in(order_key, epoch), NUM))[:9].reshape(3, 3)
        np.testing.assert_array_equal(epochs[epoch], expected)


@pytest.mark.parametrize("cuts", [(1,) * 30, (2, 5, 3, 1, 12, 7), (29, 1)])
def test_the_order_does_not_depend_on_how_the_steps_are_cut(cuts):
    np.testing.assert_array_equal(seen(1, *cuts), seen(1, 30))


def test_keys_decide_the_order():
    assert (seen(0, 30) != seen(1, 30)).any()
    np.testing.assert_array_equal(seen(0, 30), seen(0, 30))


@pytest.mark.parametrize("batch_size", [0, -1, 12])
def test_a_batch_larger_than_the_data_is_refused(batch_size):
    with pytest.raises(ValueError, match=rf"batch_size={batch_size}: must be between 1 and the 11"):
        epochs(*data(), batch_size)


def test_a_chunk_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="num_steps=0: must be at least 1"):
        RECORDING(start_lanes(jnp.zeros(1)), jax.random.key(0)[None], 0, 0, data())


# --- Chunks --------------------


def noisy_step(state, drawn, key, index):
    """Everything at once: augmentation, dropout, momentum, and a log of the step's own number."""
    augment_key, dropout_key = jax.random.split(key)
    images, labels = drawn.batch
    inputs = Preprocess((0.4,), (0.25,), crop_padding=1, flip=True).inputs(images, augment_key)
    state, seen = train_step(MODEL, OPTIMIZER, state, (inputs, labels), dropout_key)
    return state, logs_of(seen, "loss", "accuracy", index=lambda seen: index)


OPTIMIZER = optax.sgd(RATE, MOMENTUM)
CHUNK = make_chunk(noisy_step, epochs(*data(), BATCH))


def train(seeds: list[int], *cuts: int):
    """States, and logs of every call, after calls of the given lengths."""
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    lanes = start_lanes(jax.vmap(lambda key: init_state(MODEL.init(key), OPTIMIZER))(keys))
    logs, start = [], 0
    for length in cuts:
        lanes, measured = CHUNK(lanes, keys, start, length, data())
        logs.append(measured)
        start += length
    assert (lanes.frozen_at == -1).all()
    return lanes.state, jax.tree.map(lambda *values: np.stack(values), *logs)


def assert_bitwise_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def whole():
    return train([0, 1, 2], 12)


@pytest.mark.parametrize("cuts", [(1, 2, 4, 5), (4, 4, 4)])
def test_the_chunk_length_changes_no_bit(whole, cuts):
    states, logs = train([0, 1, 2], *cuts)
    assert_bitwise_equal(states, whole[0])
    weights = np.array(cuts)[:, None] / 12
    np.testing.assert_allclose((weights * logs["loss"]).sum(axis=0), whole[1]["loss"][0], rtol=1e-6)
    np.testing.assert_allclose((weights * logs["index"]).sum(axis=0), 5.5, rtol=1e-6)


@pytest.mark.parametrize("seeds", [[1], [3, 1, 4, 0, 6]])
def test_the_seeds_beside_one_change_no_bit(whole, seeds):
    states, logs = train(seeds, 12)
    assert_bitwise_equal(jax.tree.map(lambda a: a[seeds.index(1)], states), jax.tree.map(lambda a: a[1], whole[0]))
    assert_bitwise_equal(logs["loss"][:, seeds.index(1)], whole[1]["loss"][:, 1])
    # The control: another seed is another run.
    assert not np.array_equal(*(whole[0].variables["params"]["hidden_0"]["kernel"][i] for i in (0, 1)))


def test_a_chunk_is_a_plain_loop_over_the_step(whole):
    """The same keys, one step after the other, outside any scan or vmap."""
    key = jax.random.key(2)
    order_key, step_key = jax.random.split(key)
    images, labels = map(jnp.asarray, data())
    state, losses = init_state(MODEL.init(key), OPTIMIZER), []
    step = jax.jit(noisy_step)
    for index in range(12):
        epoch, within = divmod(index, NUM // BATCH)
        order = jax.random.permutation(jax.random.fold_in(order_key, epoch), NUM)
        chosen = order[within * BATCH : (within + 1) * BATCH]
        drawn = Drawn((images[chosen], labels[chosen]), Task(0, index == 0))
        state, logs = step(state, drawn, jax.random.fold_in(step_key, index), index)
        losses.append(logs["loss"])
    ours = jax.tree.map(lambda a: a[2], whole[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), ours, state)
    np.testing.assert_allclose(whole[1]["loss"][0, 2], np.mean(losses), rtol=1e-5)
    assert abs(np.mean(losses) - losses[-1]) > 1e-3  # logs are means over the chunk, not the last step


# --- Lanes that are not finite --------------------


def exploding_step(state, drawn, key, index):
    """Plain SGD, and a log that is not finite from a step on that differs from lane to lane."""
    state, ends = state
    images, labels = drawn.batch
    state, seen = train_step(MODEL, optax.sgd(RATE), state, (PREPROCESS.inputs(images), labels), key)
    return (state, ends), logs_of(seen, "accuracy", loss=lambda seen: jnp.where(index >= ends, jnp.nan, seen.loss))


EXPLODING = make_chunk(exploding_step, epochs(*data(), BATCH))


def explode(ends: list[int], *cuts: int):
    keys = jax.vmap(jax.random.key)(jnp.arange(len(ends)))
    states = jax.vmap(lambda key: init_state(MODEL.init(key), optax.sgd(RATE)))(keys)
    lanes, start, logs = start_lanes((states, jnp.array(ends))), 0, []
    for length in cuts:
        lanes, measured = EXPLODING(lanes, keys, start, length, data())
        logs.append(jax.device_get(measured))
        start += length
    return jax.device_get(lanes), logs


def test_a_lane_that_is_not_finite_is_frozen_where_it_was_and_the_others_go_on():
    lanes, logs = explode([100, 5, 0, 100], 4, 4)
    assert lanes.frozen_at.tolist() == [-1, 5, 0, -1]
    healthy, _ = explode([100] * 4, 8)
    stopped, _ = explode([100] * 4, 5)
    start, _ = explode([0] * 4, 1)
    for lane, expected in ((0, healthy), (1, stopped), (2, start), (3, healthy)):
        take = lambda tree, lane=lane: jax.tree.map(lambda a: a[lane], tree.state[0])  # noqa: E731
        assert_bitwise_equal(take(lanes), take(expected))
    # The control: it would have gone on.
    kernels = [run.state[0].variables["params"]["classes"]["kernel"][1] for run in (lanes, healthy)]
    assert not np.array_equal(*kernels)
    # Marked in every log of the chunk that it happened in, and of all that follow.
    assert np.isfinite(logs[0]["loss"]).tolist() == [True, True, False, True]
    for name in ("loss", "accuracy"):
        assert np.isfinite(logs[1][name]).tolist() == [True, False, False, True]


def test_where_a_lane_freezes_does_not_depend_on_how_the_steps_are_cut():
    whole, _ = explode([100, 5, 0, 100], 8)
    pieces, _ = explode([100, 5, 0, 100], 1, 5, 2)
    assert_bitwise_equal(whole, pieces)


def test_parameters_that_overflow_freeze_the_lane():
    """No made-up log: a learning rate of 1e30 does it within three steps, and the lane beside it does not notice."""
    model = mlp((2, 2, 1), (4,), 3)

    def step(state, drawn, key, index):
        state, rate = state
        images, labels = drawn.batch
        state, seen = train_step(model, optax.sgd(rate), state, (PREPROCESS.inputs(images), labels))
        return (state, rate), logs_of(seen, "loss")

    variables = model.init(jax.random.key(0))
    chunk, trained = make_chunk(step, epochs(*data(), BATCH)), {}
    for rates in ((0.1, 1e30), (0.1, 0.1)):
        states = jax.vmap(lambda rate: (init_state(variables, optax.sgd(rate)), rate))(jnp.array(rates))
        trained[rates], _ = chunk(start_lanes(states), jnp.stack([jax.random.key(1)] * 2), 0, 9, data())
    frozen = trained[0.1, 1e30].frozen_at
    assert frozen[0] == -1
    assert 1 <= frozen[1] <= 3
    kernels = [np.asarray(run.state[0].variables["params"]["hidden_0"]["kernel"]) for run in trained.values()]
    np.testing.assert_array_equal(kernels[0][0], kernels[1][0])
    assert np.isfinite(kernels[0][0]).all()


# --- One step --------------------


def test_steps_follow_the_gradient_written_out_in_numpy(x64):
    """Momentum SGD on the mean cross-entropy of a tanh network, by hand in float64."""
    optimizer = optax.sgd(RATE, MOMENTUM)
    images, labels = data()
    x, targets = inputs_of(images), np.eye(3)[labels]
    state = init_state(MODEL.init(jax.random.key(0)), optimizer)
    layers = {name: dict(layer) for name, layer in jax.tree.map(np.array, state.variables["params"]).items()}
    velocity = jax.tree.map(np.zeros_like, layers)

    @jax.jit
    def step(state):
        batch = jnp.asarray(x), jnp.asarray(labels)
        state, seen = train_step(MODEL, optimizer, state, batch, dropout_rate=0.0)
        return state, logs_of(seen, "loss", "accuracy")

    for _ in range(5):
        hidden = np.tanh(x @ layers["hidden_0"]["kernel"] + layers["hidden_0"]["bias"])
        logits = hidden @ layers["classes"]["kernel"] + layers["classes"]["bias"]
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        delta = (shares - targets) / NUM
        back = (delta @ layers["classes"]["kernel"].T) * (1 - hidden**2)
        gradient = {
            "hidden_0": {"kernel": x.T @ back, "bias": back.sum(axis=0)},
            "classes": {"kernel": hidden.T @ delta, "bias": delta.sum(axis=0)},
        }
        for layer, arrays in gradient.items():
            for name, array in arrays.items():
                velocity[layer][name] = array + MOMENTUM * velocity[layer][name]
                layers[layer][name] = layers[layer][name] - RATE * velocity[layer][name]
        state, logs = step(state)
        # Loss and accuracy are those before the step.
        np.testing.assert_allclose(logs["loss"], -np.log(shares[np.arange(NUM), labels]).mean(), rtol=1e-12)
        np.testing.assert_allclose(logs["accuracy"], (logits.argmax(axis=1) == labels).mean(), rtol=1e-12)
    for layer, arrays in layers.items():
        for name, array in arrays.items():
            np.testing.assert_allclose(state.variables["params"][layer][name], array, rtol=1e-10, atol=1e-13)


def test_dropout_needs_a_key_and_changes_the_step():
    images, labels = map(jnp.asarray, data())
    state = init_state(MODEL.init(jax.random.key(0)), OPTIMIZER)
    batch = PREPROCESS.inputs(images), labels
    step = jax.jit(lambda key, rate: train_step(MODEL, OPTIMIZER, state, batch, key, dropout_rate=rate)[0])
    kernels = [
        step(jax.random.key(seed), rate).variables["params"]["classes"]["kernel"] for seed, rate in ((0, 0.0), (1, 0.0))
    ]
    np.testing.assert_array_equal(*kernels)
    dropped = step(jax.random.key(0), 0.5).variables["params"]["classes"]["kernel"]
    assert np.abs(np.asarray(kernels[0] - dropped)).max() > 1e-4


# --- Evaluation and preprocessing --------------------


@pytest.mark.parametrize("batch_size", [3, 7, 1000])
def test_evaluation_is_the_mean_over_the_whole_set(batch_size):
    images, labels = data(7)
    variables = MODEL.init(jax.random.key(3))
    measured = evaluate(MODEL, variables, (jnp.asarray(images), jnp.asarray(labels)), PREPROCESS, batch_size=batch_size)
    layers = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    hidden = np.tanh(inputs_of(images) @ layers["hidden_0"]["kernel"] + layers["hidden_0"]["bias"])
    logits = hidden @ layers["classes"]["kernel"] + layers["classes"]["bias"]
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(7), labels]
    np.testing.assert_allclose(measured["loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(measured["accuracy"], (logits.argmax(axis=1) == labels).mean(), rtol=1e-6)
    # The control: without the ragged last batch, or with means of batch means, it would be another number.
    assert abs(losses.mean() - losses[:6].mean()) > 1e-3
    assert abs(losses.mean() - (losses[:3].mean() + losses[3:6].mean() + losses[6]) / 3) > 1e-3


@pytest.mark.parametrize(
    ("num", "batch_size", "message"),
    [(7, 0, "batch_size=0: must be a positive integer"), (0, 3, r"\(0, 2, 2, 1\) have no samples: give at least one")],
)
def test_evaluating_nothing_is_refused(num, batch_size, message):
    images, labels = data(num)
    with pytest.raises(ValueError, match=message):
        evaluate(MODEL, MODEL.init(jax.random.key(0)), (images, labels), PREPROCESS, batch_size=batch_size)


def test_inputs_are_normalised_and_only_augmented_with_a_key():
    images = np.random.default_rng(1).integers(0, 256, (5, 4, 4, 2), dtype=np.uint8)
    preprocess = Preprocess((0.1, 0.5), (0.2, 0.3), crop_padding=2, flip=True)
    expected = (images / 255 - [0.1, 0.5]) / [0.2, 0.3]
    np.testing.assert_allclose(preprocess.inputs(images), expected, rtol=1e-5, atol=1e-6)
    key = jax.random.key(0)
    augmented = np.asarray(augment(key, images, 2, True))
    assert (augmented != images).any()
    np.testing.assert_allclose(
        preprocess.inputs(images, key), (augmented / 255 - [0.1, 0.5]) / [0.2, 0.3], rtol=1e-5, atol=1e-6
    )
    # Without crops and flips a key changes nothing.
    np.testing.assert_array_equal(PREPROCESS.inputs(images[..., :1], key), PREPROCESS.inputs(images[..., :1]))


def test_inputs_have_the_default_floating_type(x64):
    assert PREPROCESS.inputs(np.zeros((1, 2, 2, 1), np.uint8)).dtype == np.float64
