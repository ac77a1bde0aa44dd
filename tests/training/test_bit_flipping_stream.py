"""The bit-flipping stream against its definitions in NumPy: targets, thresholds, flips and coins over long streams."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lopjax.training import bit_flipping
from lopjax.training.bit_flipping import BLOCK, Problem, slow_bits, target_network
from lopjax.training.streams import block_of

KEY = jax.random.key(3, impl="philox4x32")
FAST = 5
# A task that does not end with a block of coins.
EVERY, TASKS = 250, 120
CASES = {"one": Problem(flip="one", threshold="official"), "all": Problem(flip="all", threshold="textbook")}


@cache
def stream_of(flip: str):
    """Inputs and targets of a long stream, `(steps, 20)` and `(steps,)`, task by task."""
    problem = CASES[flip]._replace(flip_every=EVERY)
    block = block_of(bit_flipping(*problem))

    def task(start):
        prepared = block.prepare((), KEY, start)
        return jax.vmap(lambda within: block.draw((), prepared, KEY, start + within))(jnp.arange(EVERY))

    drawn = jax.jit(lambda starts: jax.lax.map(task, starts))(EVERY * jnp.arange(TASKS))
    inputs, targets = (np.asarray(array, np.float64) for array in drawn.batch)
    return inputs.reshape(-1, 20), targets.reshape(-1), jax.device_get(drawn.task)


@cache
def target_of(flip: str):
    problem = CASES[flip]
    target = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), target_network(problem, jax.random.split(KEY, 3)[0])
    )
    return np.vstack([target.weights, target.bias]), target


def by_definition(signs, target, inputs, missing):
    """The target network with a constant 1 as its last input, unit by unit."""
    thresholds = 21 * 0.7 - missing
    seen = np.hstack([inputs, np.ones((len(inputs), 1))])
    return np.where(seen @ signs > thresholds, target.output, 0).sum(axis=1) + target.output_bias


def official(signs):
    """S of the code: (num_inputs - sum of weights + bias) / 2."""
    return (20 - signs[:-1].sum(axis=0) + signs[-1]) / 2


def textbook(signs):
    """S of the text: how many of the 21 weights are negative."""
    return np.array([sum(weight < 0 for weight in unit) for unit in signs.T])


@pytest.mark.parametrize(("flip", "right", "wrong"), [("one", official, textbook), ("all", textbook, official)])
def test_every_target_is_that_of_the_convention_and_not_of_the_other(flip, right, wrong):
    inputs, targets, _ = stream_of(flip)
    signs, target = target_of(flip)
    assert set(np.unique(signs)) == set(np.unique(target.output)) == {-1, 1}
    assert np.array_equal(targets, by_definition(signs, target, inputs, right(signs)))
    assert not np.array_equal(targets, by_definition(signs, target, inputs, wrong(signs)))


def test_the_conventions_differ_by_a_half_or_by_three_halves_as_the_bias_says():
    signs, target = target_of("one")
    difference = official(signs) - textbook(signs)
    assert set(difference[signs[-1] > 0]) == {0.5}
    assert set(difference[signs[-1] < 0]) == {-1.5}
    assert np.allclose(target.thresholds, 21 * 0.7 - official(signs))
    # No input sum ever lies on a threshold: which side of it counts does not matter.
    assert np.all(np.abs(target.thresholds - np.round(target.thresholds)) > 0.1)


@pytest.mark.parametrize("flip", ["one", "all"])
def test_slow_bits_change_between_tasks_only_and_by_the_law(flip):
    inputs, _, task = stream_of(flip)
    assert np.array_equal(task.index.ravel(), np.arange(len(inputs)) // EVERY)
    assert np.array_equal(task.is_start.ravel(), np.arange(len(inputs)) % EVERY == 0)
    slow = inputs.reshape(TASKS, EVERY, 20)[:, :, :15]
    assert np.all(slow == slow[:, :1])
    flips = np.abs(np.diff(slow[:, 0], axis=0))
    if flip == "one":
        assert np.all(flips.sum(axis=1) == 1)
        assert stats.chisquare(flips.sum(axis=0)).pvalue > 1e-3
    else:
        assert stats.binomtest(int(flips.sum()), flips.size).pvalue > 1e-3
        assert len(np.unique(flips.sum(axis=1))) > 3


def test_a_task_is_reached_as_by_flipping_one_bit_after_the_other():
    """Across groups of draws: what is counted at once is what a loop would do."""
    problem, key = Problem(flip="one", num_slow=15), jax.random.split(KEY)[0]
    tasks = np.arange(0, 200)
    states = np.asarray(jax.jit(jax.vmap(lambda task: slow_bits(problem, key, task)))(tasks))
    assert np.all(np.abs(np.diff(states.astype(int), axis=0)).sum(axis=1) == 1)


@pytest.mark.parametrize("flip", ["one", "all"])
def test_fast_bits_are_fair_coins_without_memory(flip):
    coins = stream_of(flip)[0][:, 15:]
    codes = (coins @ 2 ** np.arange(FAST)).astype(int)
    assert stats.chisquare(np.bincount(codes, minlength=32)).pvalue > 1e-3
    pairs = np.bincount(codes[:-1] * 32 + codes[1:], minlength=1024)
    assert stats.chisquare(pairs).pvalue > 1e-3
    blocks = codes[: len(codes) // BLOCK * BLOCK].reshape(-1, BLOCK)
    assert len(np.unique(blocks, axis=0)) == len(blocks)


def test_a_step_drawn_alone_is_the_one_of_its_block_and_lanes_have_their_own_problem():
    inputs, targets, _ = stream_of("one")
    stream = bit_flipping(*CASES["one"]._replace(flip_every=EVERY))
    draw = jax.jit(jax.vmap(stream.draw, (None, 0, 0)))
    steps = np.array([0, 249, 250, 999, 1000, 12_345, 12_345])
    keys = jnp.stack([KEY] * 6 + [jax.random.key(4, impl="philox4x32")])
    alone = draw((), keys, steps).batch
    assert np.array_equal(alone[0][:6, 0], inputs[steps[:6]])
    assert np.array_equal(alone[1][:6, 0, 0], targets[steps[:6]])
    assert not np.array_equal(alone[0][6, 0, :15], inputs[12_345, :15])
    ends = [int(block_of(stream).end(jnp.int32(index))) for index in (0, 249, 250, 999, 1000)]
    assert ends == [250, 250, 500, 1000, 1250]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"num_slow": 9}, "num_slow=9: must be in 10..20"),
        ({"num_slow": 21}, "num_slow=21"),
        ({"num_inputs": 5, "num_slow": 0}, "num_slow=0: must be in 1..5"),
        ({"flip_every": 0}, "flip_every=0: must be a positive integer"),
        ({"flip": "two"}, "flip='two': must be one of"),
        ({"threshold": "paper"}, "threshold='paper': must be one of"),
    ],
)
def test_what_is_no_problem_is_refused(numbers, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        bit_flipping(**numbers)
