"""Task streams against plain NumPy and the laws that define them: what is in a task, how often, and when it changes."""

import inspect
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lopjax import training
from lopjax.data.tasks import class_order, class_table
from lopjax.losses import Masked, masked_accuracy, masked_cross_entropy
from lopjax.training import (
    class_incremental,
    gaussian_mixtures,
    permuted_labels,
    permuted_pixels,
    permuted_words,
    random_labels,
    task_examples,
    task_stream,
    texts,
    upgd_toy,
)
from lopjax.training.streams import block_of

KEY = jax.random.key(3, impl="philox4x32")
CLASSES, BATCH, STEPS = 6, 4, 7
# Unequal classes, the smallest of three images; every image has its own value and its class in it.
LABELS = np.array([0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, 0, 0, 2, 1, 3, 4, 5, 0, 0], np.int32)
IMAGES = np.arange(len(LABELS) * 12, dtype=np.uint8).reshape(len(LABELS), 2, 3, 2)
ORDER = np.array([4, 2, 0, 5, 1, 3])

incremental = class_incremental(IMAGES, LABELS, CLASSES, 3, 2, order=ORDER)
TOKENS = np.arange(2 * 5 * 4, dtype=np.int32).reshape(2, 5, 4) % 7
SEQUENCES = {
    "class_incremental": incremental,
    "drawn order": class_incremental(IMAGES, LABELS, CLASSES, 3, 2, images_per_class=2, is_masked=False),
    "permuted_pixels": permuted_pixels(IMAGES, LABELS),
    "permuted_labels": permuted_labels(IMAGES, LABELS, CLASSES),
    "random_labels": random_labels(IMAGES, CLASSES),
    "gaussian_mixtures": gaussian_mixtures(20, num_centres=5),
    "permuted_words": permuted_words(TOKENS[0], 7),
    "texts": texts(TOKENS),
}
STREAMS = {name: task_stream(sequence, BATCH, STEPS) for name, sequence in SEQUENCES.items()} | {
    "gradual": task_stream(incremental, BATCH, STEPS, change=5),
    "toy": upgd_toy(BATCH, STEPS),
}


def collected(name: str, start: int, num: int, key=KEY):
    """What a stream draws at `num` steps from `start` on, stacked: one program a stream."""
    stream = STREAMS[name]
    return jax.device_get(drawn_by(name)(stream.data, key, start + np.arange(num)))


@cache
def drawn_by(name: str):
    return jax.jit(jax.vmap(STREAMS[name].draw, (None, None, 0)))


def whole_tasks(name: str, tasks: range):
    """All examples of several tasks, stacked."""
    sequence = SEQUENCES[name]
    every = jax.jit(jax.vmap(partial(task_examples, sequence), (None, None, 0)))
    return jax.device_get(every(sequence.data, KEY, np.array(tasks)))


def test_a_batch_is_a_function_of_key_and_step_whichever_way_it_is_drawn():
    """Of one sequence, with two tasks in the making at once: what is done to a sequence is the same for all."""
    name, num = "gradual", 3 * STEPS
    stream = STREAMS[name]
    block = block_of(stream)
    prepare, draw = jax.jit(block.prepare), jax.jit(block.draw)
    alone, prepared, end = collected(name, 0, num), None, 0
    for index in range(num):
        if index >= end:
            prepared, end = prepare(stream.data, KEY, index), int(block.end(jnp.int32(index)))
            assert index < end
        found = draw(stream.data, prepared, KEY, index)
        jax.tree.map(lambda one, many, index=index: np.testing.assert_array_equal(one, many[index]), found, alone)
    np.testing.assert_array_equal(alone.task.index, np.arange(num) // STEPS)
    # The control: another key, other batches.
    other = collected(name, 0, num, jax.random.key(4, impl="philox4x32"))
    assert (other.batch[0] != alone.batch[0]).any()


@pytest.mark.parametrize("name", SEQUENCES)
def test_every_task_has_as_many_examples_and_is_another_one(name):
    """In the order of the sequence, whichever are taken; drawn again, it is the same."""
    sequence, places = SEQUENCES[name], jnp.array([3, 0, 3])

    @jax.jit
    def of_task(task):
        prepared = sequence.prepare(sequence.data, KEY, task)
        return tuple(
            sequence.take(sequence.data, prepared, chosen) for chosen in (jnp.arange(sequence.num_examples), places)
        )

    first, second, again = jax.device_get([of_task(task) for task in (0, 1, 0)])
    whole, taken = first
    assert {len(leaf) for leaf in jax.tree.leaves(whole)} == {sequence.num_examples}
    jax.tree.map(np.testing.assert_array_equal, taken, jax.tree.map(lambda leaf: leaf[places], whole))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any((one != other).any() for one, other in zip(*map(jax.tree.leaves, (first, second)), strict=True))


def test_every_sequence_is_in_the_table():
    functions = filter(inspect.isfunction, vars(training).values())
    sequences = {each.__name__ for each in functions if each.__annotations__["return"] is training.TaskSequence}
    assert len(sequences) > 5  # or this test has stopped looking
    assert sequences - {*SEQUENCES} == set()


def test_boundaries_are_where_tasks_jump_and_nowhere_where_they_pass_into_each_other():
    np.testing.assert_array_equal(collected("toy", 0, 63).task.is_start, np.arange(63) % STEPS == 0)
    np.testing.assert_array_equal(collected("class_incremental", 0, 28).task.is_start, np.arange(28) % STEPS == 0)
    assert collected("gradual", 0, 21).task.is_start is None


# --- Classes --------------------


def test_a_table_of_classes_is_what_a_loop_finds():
    table = class_table(LABELS, CLASSES)
    assert table.shape == (CLASSES, 3)
    for label, row in enumerate(table):
        np.testing.assert_array_equal(row, np.flatnonzero(label == LABELS)[:3])


def test_tasks_cover_all_classes_without_overlap_and_are_balanced():
    """An epoch of the stream has 4 of 6 images of a task; 14 epochs have every class equally often, give or take."""
    seen = collected("class_incremental", 0, 4 * STEPS)
    labels, mask = seen.batch[1]
    images, all_labels = whole_tasks("class_incremental", range(3))
    for task in range(3):
        classes = ORDER[2 * task : 2 * task + 2]
        of_task = slice(task * STEPS, (task + 1) * STEPS)
        assert set(np.unique(labels[of_task])) == set(classes)
        assert (mask[of_task] == np.isin(range(CLASSES), classes)).all()
        np.testing.assert_array_equal(np.bincount(all_labels.labels[task], minlength=6)[classes], [3, 3])
        every = set(map(bytes, images[task]))
        assert len(every) == 6
        assert set(map(bytes, seen.batch[0][of_task].reshape(-1, 12))) <= every
    # After the last task the first comes again, in another order.
    assert set(np.unique(labels[3 * STEPS :])) == set(ORDER[:2])
    assert (seen.batch[0][3 * STEPS :] != seen.batch[0][:STEPS]).any()


def test_an_order_of_the_key_is_the_same_in_training_and_test_sets():
    train, test = SEQUENCES["drawn order"], class_incremental(IMAGES[::-1], LABELS[::-1], CLASSES, 3, 2)

    @jax.jit
    def classes(key):
        def of_task(task):
            seen = task_examples(train, train.data, key, task)[1]
            return seen, task_examples(test, test.data, key, task)[1].labels

        return jax.vmap(of_task)(jnp.arange(3))

    orders = []
    for seed in range(4):
        found = [[np.unique(labels) for labels in part] for part in classes(jax.random.key(seed))]
        np.testing.assert_array_equal(found[0], found[1])
        assert sorted(np.ravel(found[0])) == list(range(CLASSES))
        orders.append(tuple(np.ravel(found[0])))
    assert len(set(orders)) > 1


def test_nothing_is_copied():
    assert incremental.data["images"] is IMAGES
    assert STREAMS["permuted_pixels"].data[0] is IMAGES


# --- Permutations and random labels --------------------


def test_pixels_are_permuted_by_one_bijection_a_task_and_channels_stay_together():
    first, second = whole_tasks("permuted_pixels", range(2))[0]
    np.testing.assert_array_equal(first, IMAGES)
    positions = IMAGES[0].reshape(6, 2).tolist()
    order = [positions.index(pixel) for pixel in second[0].reshape(6, 2).tolist()]
    assert sorted(order) == list(range(6))
    assert order != list(range(6))
    np.testing.assert_array_equal(second.reshape(-1, 6, 2), IMAGES.reshape(-1, 6, 2)[:, order])


def test_labels_are_renamed_or_drawn_anew_at_every_task_and_only_there():
    for name in ("permuted_labels", "random_labels"):
        tasks = whole_tasks(name, range(4))[1]
        assert any((tasks[1] != other).any() for other in tasks[2:])
        seen = collected(name, STEPS, STEPS)
        of_image = {bytes(image): label for image, label in zip(IMAGES, tasks[1])}
        found = [of_image[bytes(image)] for image in seen.batch[0].reshape(-1, 2, 3, 2)]
        np.testing.assert_array_equal(found, seen.batch[1].ravel())
        if name == "permuted_labels":
            np.testing.assert_array_equal(tasks[0], LABELS)
            names = {(old, new) for old, new in zip(LABELS, tasks[1])}
            assert len(names) == len(dict(names)) == len({new for _, new in names}) == CLASSES


def test_random_labels_are_uniform():
    sequence = random_labels(np.zeros((1000, 1), np.uint8), 5)
    labels = jax.jit(partial(task_examples, sequence))(sequence.data, KEY, 3)[1]
    counts = np.bincount(labels, minlength=5)
    assert np.sum((counts - 200) ** 2 / 200) < 18.5  # chi-squared with 4 degrees of freedom: 0.1 %


# --- Mixtures, gradual change, the toy --------------------


def test_mixtures_have_the_variances_of_their_definition():
    """Of 4,000 tasks: between tasks, between centres, within; and other points of the same mixtures in the test set."""
    numbers = {"num_classes": 3, "num_centres": 2, "shift": 0.6, "spread": 1.0, "noise": 0.2}
    train, test = gaussian_mixtures(60, **numbers), gaussian_mixtures(60, **numbers, is_test=True)
    every = jax.jit(jax.vmap(partial(task_examples, train, (), KEY)))(jnp.arange(4000))
    # Six centres with ten points each, two to a class.
    points = np.asarray(every[0], np.float64).reshape(4000, 6, 10, 2).swapaxes(1, 2)
    np.testing.assert_array_equal(every[1], np.tile(np.repeat([0, 1, 2], 20), (4000, 1)))
    centres = points.mean(axis=1)
    within = points.var(axis=1, ddof=1).mean()
    between = centres.var(axis=1, ddof=1).mean()
    common = centres.mean(axis=1).var()
    np.testing.assert_allclose(within, 0.04, rtol=0.02)
    np.testing.assert_allclose(between, 1 + 0.004, rtol=0.03)
    np.testing.assert_allclose(common, 0.36 + 1.004 / 6, rtol=0.06)
    others = np.asarray(jax.jit(partial(task_examples, test, ()))(KEY, 7)[0], np.float64)
    others = others.reshape(6, 10, 2).swapaxes(0, 1)
    assert (others != points[7]).all()
    assert np.abs(others.mean(axis=0) - centres[7]).max() < 6 * 0.2 * np.sqrt(2 / 10)
    assert np.abs(others.mean(axis=0) - centres[8]).max() > 1  # the control: another task


def test_a_gradual_change_moves_the_share_of_the_new_task_on_a_line():
    keys = jax.random.split(KEY, 1500)
    stream = STREAMS["gradual"]
    draw = jax.jit(jax.vmap(jax.vmap(stream.draw, (None, None, 0)), (None, 0, None)))
    labels = np.asarray(draw(stream.data, keys, jnp.arange(2 * STEPS)).batch[1].labels)
    is_second = np.isin(labels, ORDER[2:4]).mean(axis=(0, 2))
    expected = np.concatenate([np.zeros(STEPS), np.minimum(np.arange(1, STEPS + 1) / 6, 1)])
    np.testing.assert_allclose(is_second, expected, atol=4 * 0.5 / np.sqrt(6000))
    assert set(np.unique(labels)) == set(ORDER[:4])


def test_the_toy_is_the_mean_of_a_pair_that_moves_or_changes_its_sign():
    seen = collected("toy", 0, 9 * STEPS)
    inputs, targets = seen.batch
    for task in range(9):
        of_task = slice(task * STEPS, (task + 1) * STEPS)
        first = 2 * task % 16
        pairs = inputs[of_task, :, first : first + 2]
        np.testing.assert_allclose(targets[of_task, :, 0], pairs.mean(axis=2), rtol=1e-6)
    assert abs(inputs.mean()) < 4 / np.sqrt(inputs.size)
    assert abs(inputs.var() - 1) < 4 * np.sqrt(2 / inputs.size)
    flipping = jax.jit(upgd_toy(BATCH, STEPS, change="sign").draw)
    for step, sign in ((0, 1), (STEPS, -1), (2 * STEPS, 1)):
        x, y = map(np.asarray, flipping((), KEY, step).batch)
        np.testing.assert_allclose(y, sign * (x[:, :1] + x[:, 1:2]) / 2, rtol=1e-6)


# --- The loss among the classes of a task --------------------


def test_masked_loss_and_accuracy_are_those_of_the_classes_cut_out():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(5, CLASSES)).astype(np.float32)
    classes, places = np.array([4, 0, 3]), generator.integers(0, 3, 5)
    labels = Masked(
        jnp.asarray(classes[places]), jnp.broadcast_to(jnp.isin(jnp.arange(CLASSES), classes), (5, CLASSES))
    )
    cut = logits[:, classes].astype(np.float64)
    rows = np.arange(5)
    expected = np.mean(np.log(np.exp(cut).sum(axis=1)) - cut[rows, places])
    both = jax.jit(lambda x: (*jax.value_and_grad(masked_cross_entropy)(x, labels), masked_accuracy(x, labels)))
    loss, gradient, right = both(logits)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_array_equal(gradient[:, [1, 2, 5]], 0)
    assert (gradient[:, classes] != 0).all()
    assert right == np.float32(np.mean(cut.argmax(axis=1) == places))


# --- Mistakes --------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: class_incremental(IMAGES, LABELS, CLASSES, 4, 2), "num_tasks=4, classes_per_task=2: need 8 .* are 6"),
        (lambda: class_incremental(IMAGES, LABELS, CLASSES, 0, 2), "num_tasks=0"),
        (lambda: class_incremental(IMAGES, LABELS, 7, 3, 2), "1 of 7 classes have fewer than 1 images, class 6 has 0"),
        (lambda: class_incremental(IMAGES, LABELS, 5, 2, 2), "labels: values from 0 to 5; must lie in 0..4"),
        (lambda: class_table(LABELS, CLASSES, 4), "5 of 6 classes have fewer than 4 images, class 1 has 3"),
        (lambda: class_table(LABELS, CLASSES, 0), "images_per_class=0"),
        (lambda: class_table(LABELS * 1.0, CLASSES), "dtype float64"),
        (lambda: class_incremental(IMAGES, LABELS, CLASSES, 3, 2, order=[0] * 6), "must be each of 0..5 once"),
        (lambda: class_order(CLASSES, -1), "seed=-1"),
        (lambda: permuted_pixels(IMAGES[..., 0], LABELS), "shape \\(20, 2, 3\\)"),
        (lambda: permuted_labels(IMAGES, LABELS[1:], CLASSES), "20 images, labels of shape \\(19,\\)"),
        (lambda: gaussian_mixtures(25, 2, 5), "num_examples=25: must be a multiple"),
        (lambda: gaussian_mixtures(noise=-1.0), "noise=-1.0: must be a standard deviation"),
        (lambda: gaussian_mixtures(spread=math.nan), "spread=nan"),
        (lambda: random_labels(IMAGES, 0), "num_classes=0: must be a positive integer"),
        (lambda: task_stream(incremental, 2.5, STEPS), "batch_size=2.5: must be between 1 and the 6 examples"),
        (lambda: task_stream(incremental, 2, 5, change=1.5), "change=1.5: must be in 0..5"),
        (lambda: task_stream(incremental, 7, STEPS), "batch_size=7: must be between 1 and the 6 examples of a task"),
        (lambda: task_stream(incremental, 2, 0), "steps=0"),
        (lambda: task_stream(incremental, 2, 5, change=6), "change=6: must be in 0..5"),
        (lambda: task_examples(incremental, incremental.data, KEY, 0, 7), "num=7: must be between 1 and the 6"),
        (lambda: upgd_toy(num_inputs=15), "num_inputs=15"),
        (lambda: upgd_toy(change="input"), "change='input'"),
    ],
)
def test_mistakes_are_refused_with_the_numbers(make, message, unchecked):
    with pytest.raises(ValueError, match=message):
        make()


# --- Text --------------------


def test_words_are_renamed_one_to_one_and_by_the_identity_in_the_first_task():
    vocabulary = 6
    windows = np.random.default_rng(0).integers(vocabulary, size=(7, 5)).astype(np.int32)
    sequence, key = permuted_words(windows, vocabulary), jax.random.key(4)
    tables = []
    for task in range(3):
        inputs, labels = (np.asarray(each) for each in task_examples(sequence, windows, key, task))
        assert (inputs.shape, labels.shape) == ((7, 4), (7, 4))
        np.testing.assert_array_equal(inputs[:, 1:], labels[:, :-1])  # the label is the next token
        renamed = np.concatenate([inputs, labels[:, -1:]], axis=1)
        pairs = {(int(old), int(new)) for old, new in zip(windows.ravel(), renamed.ravel(), strict=True)}
        assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs}) == vocabulary
        tables.append(dict(pairs))
    assert all(old == new for old, new in tables[0].items())
    assert tables[0] != tables[1] != tables[2]
    other = np.asarray(task_examples(sequence, windows, jax.random.key(3), 1)[0])
    assert (other != np.asarray(task_examples(sequence, windows, key, 1)[0])).any()


def test_every_task_has_a_text_of_its_own(unchecked):
    windows = np.arange(2 * 3 * 4, dtype=np.int32).reshape(2, 3, 4)
    sequence = texts(windows)
    for task in range(4):
        inputs, labels = task_examples(sequence, windows, jax.random.key(0), task)
        np.testing.assert_array_equal(inputs, windows[task % 2, :, :-1])
        np.testing.assert_array_equal(labels, windows[task % 2, :, 1:])
    for make, given in ((texts, windows[0]), (lambda each: permuted_words(each, 9), windows)):
        with pytest.raises(ValueError, match=r"windows: int32.*; must be integers \("):
            make(given)
    with pytest.raises(ValueError, match=r"float32.*must be integers"):
        texts(windows.astype(np.float32))
