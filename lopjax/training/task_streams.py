"""Streams of tasks on which networks lose plasticity: every task is a function of a key and its number.

A `TaskSequence` defines the tasks, and `task_stream` makes the batches of a network that is trained on one after the
other. The same sequence made of test images has the same tasks, which shows how much of each has been learnt:
`task_examples`. For the available sequences see `lopjax.training.task_sequences`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from lopjax.arguments.integers import as_integer
from lopjax.data import epoch_permutation
from lopjax.training.streams import Block, Drawn, Stream, Task


class TaskSequence(NamedTuple):
    """A sequence of tasks with the same number of examples each.

    Attributes:
        data: arrays that all tasks read.
        prepare: `(data, key, task) -> prepared`: what defines the task, such as indices of its images, a permutation or
            points.
        take: `(data, prepared, chosen) -> (inputs, labels)`: the examples at positions `chosen` of 0..num_examples-1;
            every leaf has a leading axis of examples.
        num_examples: number of examples of each task.
    """

    data: PyTree
    prepare: Callable[[PyTree, jax.Array, Any], PyTree]
    take: Callable[[PyTree, PyTree, jax.Array], tuple[PyTree, PyTree]]
    num_examples: int


def task_stream(sequence: TaskSequence, batch_size: int, steps: int, change: int = 0) -> Stream:
    """Task after task, `steps` steps each, in epochs, each shuffled anew, without a last batch that is not full.

    With `change`, tasks change gradually. At step `s` of a task (from 0) each example is taken from the previous task
    with probability `1 - (s + 1) / (change + 1)`, so the distribution is interpolated linearly between tasks. There are
    then no boundaries: `Task.is_start` is None, and a method that needs boundaries refuses the stream.

    Args:
        sequence: the tasks.
        batch_size: examples per step.
        steps: number of steps of each task.
        change: number of steps of the transition from one task to the next, at most `steps`; 0 for an abrupt change.

    Raises:
        ValueError: a number is out of range.
    """
    num = sequence.num_examples
    message = f"batch_size={batch_size}: must be between 1 and the {num} examples of a task"
    if as_integer(batch_size, 1, message) > num:
        raise ValueError(message)
    as_integer(steps, 1, f"steps={steps!r}: must be a positive integer")
    message = f"change={change}: must be in 0..{steps}, the steps of a task"
    if as_integer(change, 0, message) > steps:
        raise ValueError(message)
    epoch = num // batch_size

    def prepare(data: PyTree, key: jax.Array, index: Any) -> PyTree:
        task, within = index // steps, index % steps
        tasks_key, order_key = _keys(key)
        order_key = jax.random.fold_in(jax.random.fold_in(order_key, task), within // epoch)
        views = [sequence.prepare(data, tasks_key, task)]
        views += [sequence.prepare(data, tasks_key, jnp.maximum(task - 1, 0))] if change else []
        return epoch_permutation(order_key, num, batch_size), views

    def draw(data: PyTree, prepared: PyTree, key: jax.Array, index: Any) -> Drawn:
        order, views = prepared
        task, within = index // steps, index % steps
        chosen = order[within % epoch]
        batch, *before = [sequence.take(data, view, chosen) for view in views]
        is_start: Any = within == 0
        if before:
            coins = jax.random.uniform(jax.random.fold_in(_keys(key)[1], index), (batch_size,))
            is_new = (coins * (change + 1) < within + 1) | (task == 0)
            batch = jax.tree.map(lambda new, old: jnp.where(_along(is_new, new), new, old), batch, before[0])
            is_start = None
        return Drawn(batch, Task(task, is_start))

    def end(index: Any) -> Any:
        within = index % steps
        return index - within + jnp.minimum((within // epoch + 1) * epoch, steps)

    def draw_alone(data: PyTree, key: jax.Array, index: Any) -> Drawn:
        return draw(data, prepare(data, key, index), key, index)

    return Stream(sequence.data, draw_alone, Block(prepare, draw, end))


def task_examples(sequence: TaskSequence, data: PyTree, key: jax.Array, task: Any, num: int | None = None) -> PyTree:
    """`num` examples of a task (all by default), as `(inputs, labels)`. Pure; task and key may be traced.

    If fewer than all, those at positions `i * num_examples // num`, which cover all classes if examples are sorted by
    class.

    Args:
        sequence: the tasks; a sequence made of test images gives the test set of the task.
        data: `sequence.data`, passed to the compiled function.
        key: key of the stream; for a lane with key `k` in `make_chunk` this is `jax.random.split(k)[0]`.
        task: its number.
        num: number of examples.

    Raises:
        ValueError: `num` is not positive or exceeds the number of examples.
    """
    view = sequence.prepare(data, _keys(key)[0], task)
    count = sequence.num_examples if num is None else num
    if not 1 <= count <= sequence.num_examples:
        raise ValueError(f"num={num}: must be between 1 and the {sequence.num_examples} examples of a task")
    return sequence.take(data, view, jnp.arange(count) * sequence.num_examples // count)


def upgd_toy(
    batch_size: int = 1, steps: int = 200, num_inputs: int = 16, num_relevant: int = 2, change: str = "inputs"
) -> Stream:
    """Regression on the mean of a few of many inputs; the choice of inputs, or the sign, changes every `steps` steps.

    Inputs are `N(0, 1)`, never stored. In task `t` the relevant ones are `num_relevant * t, ...` modulo `num_inputs`
    ("inputs"), or always the first, the sign of the target `(-1)^t` ("sign"; the authors' code starts with the minus
    and draws the relevant inputs).

    Args:
        batch_size: examples per step; 1 in the paper.
        steps: number of steps of each task.
        num_inputs: a multiple of `num_relevant`.
        num_relevant: number of inputs in the mean.
        change: "inputs" or "sign".

    Returns:
        A stream of `(batch, num_inputs)` inputs and `(batch, 1)` targets.

    Raises:
        ValueError: a number or name that is not allowed.

    References:
        Elsayed & Mahmood, arXiv 2404.00781, appendix H.
    """
    for name, value in (("batch_size", batch_size), ("steps", steps), ("num_relevant", num_relevant)):
        as_integer(value, 1, f"{name}={value!r}: must be a positive integer")
    if num_inputs < 1 or num_inputs % num_relevant:
        raise ValueError(f"num_inputs={num_inputs}: must be a positive multiple of num_relevant={num_relevant}")
    if change not in ("inputs", "sign"):
        raise ValueError(f'change={change!r}: must be "inputs" or "sign"')

    def draw(data: PyTree, key: jax.Array, index: Any) -> Drawn:
        inputs = jax.random.normal(jax.random.fold_in(key, index), (batch_size, num_inputs))
        task = jnp.asarray(index // steps)
        first = task * num_relevant if change == "inputs" else 0
        sign = 1 - 2 * (task % 2) if change == "sign" else 1
        relevant = (first + jnp.arange(num_relevant)) % num_inputs
        targets = sign * jnp.mean(inputs[:, relevant], axis=1, keepdims=True)
        return Drawn((inputs, targets), Task(task, index % steps == 0))

    return Stream((), draw)


def _keys(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The keys of the tasks and of the order of their examples, from a stream's key."""
    tasks_key, order_key = jax.random.split(key)
    return tasks_key, order_key


def _along(which: jax.Array, leaf: jax.Array) -> jax.Array:
    """A vector over the examples, to be broadcast against a leaf with a leading axis of examples."""
    return which.reshape(-1, *(1,) * (leaf.ndim - 1))
