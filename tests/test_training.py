"""The training engine against plain loops: numpy for the order and the gradients, Python for the scan."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax.data import augment
from lopjax.models import mlp
from lopjax.training import Preprocess, batch_indices, evaluate, init_state, make_chunk, sgd_step

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


@pytest.fixture(scope="module")
def indices():
    """`indices(seed, start, num_steps)`, compiled once a length."""
    compiled = jax.jit(batch_indices, static_argnums=(2, 3, 4))
    return lambda seed, start, steps: np.asarray(compiled(jax.random.key(seed), start, steps, NUM, BATCH))


def test_every_epoch_is_a_fresh_shuffle_without_repetition(indices):
    epochs = indices(0, 0, 30).reshape(10, 9)
    assert epochs.min() == 0
    assert epochs.max() == NUM - 1
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 10
    # Which examples an epoch drops changes too: otherwise two would never be seen.
    assert set(epochs.ravel()) == set(range(NUM))
    # The control: nine steps from the middle of an epoch see some example twice.
    assert len(set(indices(0, 1, 3).ravel())) < 9


def test_an_epoch_is_the_permutation_of_its_own_key(indices):
    for epoch in (0, 1, 7):
        key = jax.random.fold_in(jax.random.key(5), epoch)
        expected = np.asarray(jax.random.permutation(key, NUM))[:9].reshape(3, 3)
        np.testing.assert_array_equal(indices(5, 3 * epoch, 3), expected)


@pytest.mark.parametrize("length", [2, 5])
def test_the_order_does_not_depend_on_how_the_steps_are_cut(indices, length):
    pieces = [indices(1, start, length) for start in range(0, 20, length)]
    np.testing.assert_array_equal(np.concatenate(pieces), indices(1, 0, 20))


def test_keys_decide_the_order(indices):
    assert (indices(0, 0, 3) != indices(1, 0, 3)).any()
    np.testing.assert_array_equal(indices(0, 0, 3), indices(0, 0, 3))


def test_a_batch_of_everything_is_one_step_an_epoch():
    steps = np.asarray(batch_indices(jax.random.key(0), 3, 4, 5, 5))
    np.testing.assert_array_equal(np.sort(steps, axis=1), np.tile(np.arange(5), (4, 1)))


@pytest.mark.parametrize("batch_size", [0, -1, 12])
def test_a_batch_larger_than_the_data_is_refused(batch_size):
    with pytest.raises(ValueError, match=rf"batch_size={batch_size}: must be between 1 and the 11"):
        batch_indices(jax.random.key(0), 0, 1, NUM, batch_size)


# --- Chunks --------------------


def noisy_step(state, batch, key, index):
    """Everything at once: augmentation, dropout, momentum, and a log of the step's own number."""
    augment_key, dropout_key = jax.random.split(key)
    inputs = Preprocess((0.4,), (0.25,), crop_padding=1, flip=True).inputs(batch[0], augment_key)
    state, logs = sgd_step(MODEL, OPTIMIZER, state, inputs, batch[1], dropout_key)
    return state, {**logs, "index": index}


OPTIMIZER = optax.sgd(RATE, MOMENTUM)
CHUNKS: dict[int, object] = {}


def train(seeds: list[int], length: int, num_steps: int = 12):
    """States and per-chunk logs after `num_steps` steps in chunks of `length`."""
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    states = jax.vmap(lambda key: init_state(MODEL.init(key), OPTIMIZER))(keys)
    chunk, logs = CHUNKS.setdefault(length, make_chunk(noisy_step, length, BATCH)), []
    for start in range(0, num_steps, length):
        states, measured = chunk(states, keys, start, *data())
        logs.append(measured)
    return states, jax.tree.map(lambda *values: np.stack(values), *logs)


def assert_bitwise_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def whole():
    return train([0, 1, 2], 12)


@pytest.mark.parametrize("length", [4])
def test_the_chunk_length_changes_no_bit(whole, length):
    states, logs = train([0, 1, 2], length)
    assert_bitwise_equal(states, whole[0])
    np.testing.assert_allclose(logs["loss"].mean(axis=0), whole[1]["loss"][0], rtol=1e-6)
    np.testing.assert_allclose(logs["index"].mean(axis=0), 5.5)


def test_the_number_of_seeds_beside_one_changes_no_bit(whole):
    alone, logs = train([1], 12)
    assert_bitwise_equal(jax.tree.map(lambda a: a[0], alone), jax.tree.map(lambda a: a[1], whole[0]))
    assert_bitwise_equal(logs["loss"][:, 0], whole[1]["loss"][:, 1])
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
        state, logs = step(state, (images[chosen], labels[chosen]), jax.random.fold_in(step_key, index), index)
        losses.append(logs["loss"])
    ours = jax.tree.map(lambda a: a[2], whole[0])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), ours, state)
    np.testing.assert_allclose(whole[1]["loss"][0, 2], np.mean(losses), rtol=1e-5)
    assert abs(np.mean(losses) - losses[-1]) > 1e-3  # logs are means over the chunk, not the last step


# --- One step --------------------


def test_steps_follow_the_gradient_written_out_in_numpy(x64):
    """Momentum SGD on the mean cross-entropy of a tanh network, by hand in float64."""
    optimizer = optax.sgd(RATE, MOMENTUM)
    images, labels = data()
    x, targets = inputs_of(images), np.eye(3)[labels]
    state = init_state(MODEL.init(jax.random.key(0)), optimizer)
    layers = {name: dict(layer) for name, layer in jax.tree.map(np.array, state.variables["params"]).items()}
    velocity = jax.tree.map(np.zeros_like, layers)
    step = jax.jit(lambda state: sgd_step(MODEL, optimizer, state, jnp.asarray(x), jnp.asarray(labels), None, 0.0))
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
    step = jax.jit(lambda key, rate: sgd_step(MODEL, OPTIMIZER, state, PREPROCESS.inputs(images), labels, key, rate)[0])
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
    measured = evaluate(MODEL, variables, PREPROCESS, jnp.asarray(images), jnp.asarray(labels), batch_size)
    layers = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    hidden = np.tanh(inputs_of(images) @ layers["hidden_0"]["kernel"] + layers["hidden_0"]["bias"])
    logits = hidden @ layers["classes"]["kernel"] + layers["classes"]["bias"]
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(7), labels]
    np.testing.assert_allclose(measured["loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(measured["accuracy"], (logits.argmax(axis=1) == labels).mean(), rtol=1e-6)
    # The control: without the ragged last batch, or with means of batch means, it would be another number.
    assert abs(losses.mean() - losses[:6].mean()) > 1e-3
    assert abs(losses.mean() - (losses[:3].mean() + losses[3:6].mean() + losses[6]) / 3) > 1e-3


@pytest.mark.parametrize(("num", "batch_size"), [(7, 0), (0, 3)])
def test_evaluating_nothing_is_refused(num, batch_size):
    images, labels = data(num)
    with pytest.raises(ValueError, match=rf"batch_size={batch_size}, {num} images: both must be at least 1"):
        evaluate(MODEL, MODEL.init(jax.random.key(0)), PREPROCESS, images, labels, batch_size)


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
