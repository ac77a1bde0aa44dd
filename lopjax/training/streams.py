"""Streams, the sources of batches: each is a pure function of data, key and the number of the step.

Data are an argument of the compiled program, never closed over: as constants of the program they would make its first
call four times as slow.

The batch of a step depends on the key and on the step's number alone, so a run has the same bits however it is divided
into calls. Work that many steps share, such as the shuffle of an epoch, is prepared once per *block* of steps.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Int32, PyTree

from lopjax.arguments.numbers import check_numbers
from lopjax.data import epoch_permutation


class Task(NamedTuple):
    """Position of a step among tasks. Methods may use `is_start` only if they declare that they need boundaries.

    Attributes:
        index: number of the task, from 0.
        is_start: whether this is the first step of the task; None if the stream has no boundaries because tasks change
            gradually.
    """

    index: Int32[ArrayLike, ""]
    is_start: Bool[ArrayLike, ""] | None


class Drawn(NamedTuple):
    """What a step receives from a stream.

    Attributes:
        batch: `(inputs, labels)`, or any other input of the step.
        task: the task that it belongs to.
    """

    batch: PyTree
    task: Task


class Block(NamedTuple):
    """Work shared by consecutive steps: `stream.draw(data, key, t) = draw(data, prepare(data, key, t), key, t)`.

    Attributes:
        prepare: `(data, key, index) -> prepared`, the same for every index of a block.
        draw: `(data, prepared, key, index) -> Drawn`.
        end: `index -> first index after its block`.
    """

    prepare: Callable[[PyTree, jax.Array, Any], PyTree]
    draw: Callable[[PyTree, PyTree, jax.Array, Any], Drawn]
    end: Callable[[Any], Any]


class Stream(NamedTuple):
    """A source of batches.

    Attributes:
        data: arrays that every step may read, shared by all lanes.
        draw: `(data, key, index) -> Drawn`. Pure, with fixed shapes; the index is traced.
        block: the same function with work shared between steps; None if there is nothing to share.
    """

    data: PyTree
    draw: Callable[[PyTree, jax.Array, Any], Drawn]
    block: Block | None = None


def epochs(images: ArrayLike, labels: ArrayLike, batch_size: int) -> Stream:
    """Stored examples in epochs: each is shuffled anew, and the last batch is dropped if it is not full.

    The order of epoch `e` is the permutation by `fold_in(key, e)`.

    Args:
        images: `(examples, ...)`, of any type; gathered on the device.
        labels: `(examples, ...)`.
        batch_size: examples per batch.

    Raises:
        ValueError: `batch_size` is outside 1..number of examples, or there is not one label for each image.
    """
    num = num_examples(images, labels)
    if not 1 <= batch_size <= num:
        raise ValueError(f"batch_size={batch_size}: must be between 1 and the {num} training examples")
    return Stream((images, labels), *_epochs(num, batch_size))


def num_examples(images: ArrayLike, labels: ArrayLike | None = None) -> int:
    """Number of stored examples.

    Args:
        images: with a leading axis of examples.
        labels: one for each image; None for no labels.

    Raises:
        ValueError: what is no array of numbers, or has no such axis; labels for more or fewer images.
    """
    check_numbers("images", images)
    check_numbers("labels", labels)
    if not jnp.ndim(images):
        raise ValueError("images has no axes: must be an array whose first axis is that of the examples")
    num = jnp.shape(images)[0]
    if labels is not None and jnp.shape(labels)[:1] != (num,):
        raise ValueError(f"{num} images, labels of shape {jnp.shape(labels)}: there must be one label for each image")
    return num


def check_range(name: str, given: ArrayLike, count: int) -> None:
    """Refuse what are no integers in 0..count-1: an index beyond is taken for the last. Traced values pass.

    Raises:
        ValueError: they are refused.
    """
    array: Any = given if hasattr(given, "dtype") else np.asarray(given)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name} has dtype {array.dtype}: must be integers in 0..{count - 1}")
    if array.size and not isinstance(given, Tracer):
        smallest, largest = int(array.min()), int(array.max())
        if smallest < 0 or largest >= count:
            raise ValueError(f"{name}: values from {smallest} to {largest}; must lie in 0..{count - 1}")


@cache
def _epochs(num: int, batch_size: int) -> tuple[Any, Block]:
    """The functions of `epochs`: one object for equal arguments, so that `tasks` can recognise equal streams."""
    steps = num // batch_size

    def prepare(data: PyTree, key: jax.Array, index: Any) -> Int32[Array, "steps batch"]:
        return epoch_permutation(jax.random.fold_in(key, index // steps), num, batch_size)

    def draw(data: PyTree, order: jax.Array, key: jax.Array, index: Any) -> Drawn:
        indices = order[index % steps]
        return Drawn(jax.tree.map(lambda leaf: jnp.asarray(leaf)[indices], data), _only_task(index))

    return _with_draw(Block(prepare, draw, lambda index: (index // steps + 1) * steps))


def online(draw: Callable[[jax.Array, Any], PyTree]) -> Stream:
    """Batches that are drawn online and never stored.

    Args:
        draw: `(key, index) -> batch`: step `index` sees `draw(fold_in(key, index), index)`.
    """

    def of_step(data: PyTree, key: jax.Array, index: Any) -> Drawn:
        return Drawn(draw(jax.random.fold_in(key, index), index), _only_task(index))

    return Stream((), of_step)


def windows(tokens: ArrayLike, length: int, batch_size: int) -> Stream:
    """Windows of a text at random positions: inputs are `length` tokens, labels are the tokens one position later.

    Args:
        tokens: `(tokens,)`, integers.
        length: number of tokens in a window.
        batch_size: windows per batch.

    Returns:
        A stream of `(inputs, labels)`, both `(batch_size, length)`.

    Raises:
        ValueError: a number is not positive, or the text is shorter than one window and the token after it.
    """
    check_numbers("tokens", tokens, ranks=1)
    num = jnp.shape(tokens)[0]
    if length < 1 or batch_size < 1 or num < length + 1:
        raise ValueError(
            f"length={length}, batch_size={batch_size}, {num} tokens: both must be at least 1, and there must be more "
            "tokens than a window holds"
        )

    return Stream(tokens, _windows(num, length, batch_size))


@cache
def _windows(num: int, length: int, batch_size: int) -> Callable[[PyTree, jax.Array, Any], Drawn]:
    def draw(data: PyTree, key: jax.Array, index: Any) -> Drawn:
        first = jax.random.randint(jax.random.fold_in(key, index), (batch_size, 1), 0, num - length)
        read = jnp.asarray(data)[first + jnp.arange(length + 1)]
        return Drawn((read[:, :-1], read[:, 1:]), _only_task(index))

    return draw


def tasks(streams: Sequence[Stream], steps: int) -> Stream:
    """One stream after the other, `steps` steps each; the last is followed by the first again, as a new task.

    Task `k` draws from stream `k % len(streams)` by `fold_in(key, k)` and counts its own steps from 0. Streams with the
    same function `draw` and data of the same shapes (those of `epochs` or `windows` with equal arguments) share a
    program, in which forty tasks compile as fast as one; other streams are selected by branches.

    Args:
        streams: the stream of every task; their batches must have the same shapes.
        steps: steps per task.

    Raises:
        ValueError: no stream, or `steps` is not positive.
    """
    if not streams or steps < 1:
        raise ValueError(f"{len(streams)} streams, steps={steps}: both must be at least 1")
    num = len(streams)

    def place(key: jax.Array, index: Any) -> tuple[jax.Array, Any, Task]:
        """Key of the step's task, the step within it, and its `Task`."""
        task, within = index // steps, index % steps
        return jax.random.fold_in(key, task), within, Task(task, within == 0)

    if not _are_alike(streams):

        def branch(data: PyTree, key: jax.Array, index: Any) -> Drawn:
            own_key, within, task = place(key, index)
            branches = [lambda k, t, own=own, one=one: one.draw(own, k, t) for own, one in zip(data, streams)]
            return jax.lax.switch(index // steps % num, branches, own_key, within)._replace(task=task)

        return Stream(tuple(one.data for one in streams), branch)

    inner = block_of(streams[0])
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *(s.data for s in streams)
    )

    def of_task(data: PyTree, index: Any) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[index // steps % num], data)

    def prepare(data: PyTree, key: jax.Array, index: Any) -> PyTree:
        own_key, within, _ = place(key, index)
        return inner.prepare(of_task(data, index), own_key, within)

    def draw(data: PyTree, prepared: PyTree, key: jax.Array, index: Any) -> Drawn:
        own_key, within, task = place(key, index)
        return inner.draw(of_task(data, index), prepared, own_key, within)._replace(task=task)

    def end(index: Any) -> Any:
        return index // steps * steps + jnp.minimum(inner.end(index % steps), steps)

    return Stream(stacked, *_with_draw(Block(prepare, draw, end)))


def _are_alike(streams: Sequence[Stream]) -> bool:
    """Whether one program works for all streams: same functions, and data of the same shapes and types."""
    shapes = [jax.tree.map(lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf)), one.data) for one in streams]
    return all(one.draw is streams[0].draw and shape == shapes[0] for one, shape in zip(streams, shapes))


def no_stream() -> Stream:
    """An empty stream, for steps whose state contains all that they need, such as an environment of control."""
    return Stream((), lambda data, key, index: Drawn((), _only_task(index)))


def block_of(stream: Stream) -> Block:
    """The block form of any stream; if nothing is shared, one infinite block."""
    if stream.block is not None:
        return stream.block
    endless = jnp.iinfo(jnp.int32).max
    return Block(
        lambda data, key, index: (),
        lambda data, nothing, key, index: stream.draw(data, key, index),
        lambda index: jnp.full_like(index, endless),
    )


def _with_draw(block: Block) -> tuple[Callable[[PyTree, jax.Array, Any], Drawn], Block]:
    """The plain function of a block form, and the block."""

    def draw(data: PyTree, key: jax.Array, index: Any) -> Drawn:
        return block.draw(data, block.prepare(data, key, index), key, index)

    return draw, block


def _only_task(index: Any) -> Task:
    """The single task of a stream that is not a sequence of tasks."""
    return Task(jnp.zeros_like(index), index == 0)
