"""Steps in compiled chunks, for many lanes at once; order and noise are determined by keys alone.

A *step* is a pure function `(state, drawn, key, index) -> (state, logs)`. The state is any pytree: one network, or a
base and its clone that see the same batches. What step `t` of a lane sees is decided by `(key, t)` alone, so the result
depends neither on how the steps are divided into chunks nor on the other lanes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int32, PyTree

from lopjax.arguments.numbers import check_numbers
from lopjax.training.lanes import cut_batch, over_lanes
from lopjax.training.steps import Logs
from lopjax.training.streams import Drawn, Stream, block_of

State = PyTree
Step = Callable[[State, Drawn, jax.Array, jax.Array], tuple[State, Logs]]


class Lanes(NamedTuple):
    """Many lanes in training.

    Attributes:
        state: the state of every lane; leaves have a leading lane axis.
        frozen_at: int32, one per lane: the first step with a log that is not finite; -1 if there is none.
    """

    state: State
    frozen_at: Int32[Array, " lanes"]


def start_lanes(state: State) -> Lanes:
    """Lanes at the start of training.

    Args:
        state: state of every lane, with a leading lane axis on every leaf. The lanes own copies of these buffers, so
            the arrays passed here can still be used after a chunk has donated the lanes.

    Raises:
        ValueError: the leaves do not have one leading axis in common.
    """
    check_numbers("state", state)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    sizes = {jax.tree_util.keystr(path): jnp.shape(leaf)[:1] for path, leaf in leaves}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        raise ValueError(f"state: every array needs the same leading lane axis, got {sizes}; stack the states first")
    return Lanes(_copied(state), jnp.full(leaves[0][1].shape[0], -1, jnp.int32))


@cache
def _splitter(mesh: Mesh | None) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """A lane's key as one for the order of its examples and one for its steps.

    A program of its own for all chunks: inside theirs, XLA copies the derivation into each kernel that reads a word.
    """
    return over_lanes(lambda key: tuple(jax.random.split(key)), 1, mesh)


_copied = jax.jit(lambda state: jax.tree.map(jnp.copy, state))


@dataclass(frozen=True)
class Chunk:
    """Steps for many lanes, from `make_chunk`: a compiled function of lanes, keys and data.

    Attributes:
        steps: the compiled function; it takes a pair of keys for every lane, and numbers as arrays.
        split: a lane's key as such a pair.
    """

    steps: Any
    split: Callable[[jax.Array], tuple[jax.Array, jax.Array]]

    def __call__(self, lanes: Lanes, keys: jax.Array, start: int, num_steps: int, data: PyTree) -> tuple[Lanes, Logs]:
        """Take the steps `start, ..., start + num_steps - 1`.

        Args:
            lanes: state of every lane; its buffers are donated.
            keys: one per lane.
            start: number of the first step.
            num_steps: how many.
            data: `stream.data` or another tree of the same shapes, shared by all lanes.

        Returns:
            The lanes after them, and means of the logs over them, one per lane, NaN for a frozen one.

        Raises:
            ValueError: `num_steps` is not positive, or there is not one key per lane.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps}: must be at least 1")
        if keys.shape[:1] != lanes.frozen_at.shape:
            raise ValueError(f"{lanes.frozen_at.shape[0]} lanes, keys of shape {keys.shape}: must be one key per lane")
        return self.steps(lanes, self.split(keys), jnp.int32(start), jnp.int32(num_steps), data)

    def lower(self, lanes: Lanes, keys: jax.Array, data: PyTree) -> Any:
        """The program of such calls, as `jax.jit` lowers it; of arrays only shapes and types matter."""
        number = jax.ShapeDtypeStruct((), jnp.int32)
        return self.steps.lower(lanes, jax.eval_shape(self.split, keys), number, number, data)


def make_chunk(step: Step, stream: Stream, mesh: Mesh | None = None, is_batched: bool | None = None) -> Chunk:
    """Compile steps for many lanes; each call takes a given number of steps.

    The number of steps is not part of the compiled program, so a run has the same bits however it is divided into
    calls. A lane with a log that is not finite at some step is frozen: it keeps the state from before this step, and
    `frozen_at` is the number of the step. The other lanes continue.

    Args:
        step: one step of one lane; it may ignore the drawn batch.
        stream: source of the batches. Only its functions are compiled; its data are passed to every call.
        mesh: result of `lane_mesh`, to distribute lanes and their batches over several devices.
        is_batched: whether lanes run batched (`over_lanes`); by default on all devices but CPUs.

    Returns:
        `chunk(lanes, keys, start, num_steps, data) -> (lanes, logs)`.

    Raises:
        ValueError: `stream` is not a stream.
    """
    if not isinstance(stream, Stream):
        raise ValueError(f"stream={stream!r}: must be a Stream, such as epochs(images, labels, batch_size)")
    block = block_of(stream)
    # Its logs are asked for before its loop is built: so that it is traced once, not twice. The program is the same.
    step = jax.jit(step, inline=True)

    def of_one(
        lane: Lanes, keys: tuple[jax.Array, jax.Array], start: Any, num_steps: Any, data: PyTree
    ) -> tuple[Lanes, Logs]:
        order_key, step_key = keys
        drawn = jax.eval_shape(stream.draw, data, order_key, start)
        logged = jax.eval_shape(step, lane.state, drawn, step_key, start)[1]
        dtype = jnp.zeros(()).dtype
        sums = jax.tree.map(lambda log: jnp.zeros(log.shape, dtype), logged)
        stop = start + num_steps

        def one(index: Any, prepared: PyTree, carry: tuple[Lanes, Logs]) -> tuple[Lanes, Logs]:
            (state, frozen_at), sums = carry
            drawn = block.draw(data, prepared, order_key, index)
            drawn = drawn._replace(batch=cut_batch(drawn.batch, mesh))
            state_after, logs = step(state, drawn, jax.random.fold_in(step_key, index), index)
            is_finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(log)) for log in jax.tree.leaves(logs)]))
            frozen_at = jnp.where((frozen_at < 0) & ~is_finite, index, frozen_at)
            state = jax.tree.map(lambda new, old: jnp.where(frozen_at < 0, new, old), state_after, state)
            return Lanes(state, frozen_at), jax.tree.map(lambda a, b: a + b.astype(dtype), sums, logs)

        def whole_block(carry: tuple[Any, tuple[Lanes, Logs]]) -> tuple[Any, tuple[Lanes, Logs]]:
            index, inner = carry
            prepared, end = block.prepare(data, order_key, index), jnp.minimum(block.end(index), stop)
            return end, jax.lax.fori_loop(index, end, lambda i, c: one(i, prepared, c), inner)

        _, (lane, sums) = jax.lax.while_loop(lambda carry: carry[0] < stop, whole_block, (start, (lane, sums)))
        count = num_steps.astype(dtype)
        means = jax.tree.map(lambda log: jnp.where(lane.frozen_at < 0, log / count, jnp.nan), sums)
        return lane, means

    return Chunk(over_lanes(of_one, 2, mesh, donate=True, is_batched=is_batched), _splitter(mesh))
