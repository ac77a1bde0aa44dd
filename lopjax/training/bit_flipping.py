r"""The slowly changing regression problem, in which most input bits stay constant for thousands of steps.

Of `num_inputs` bits the first `num_slow` keep their values for `flip_every` steps, the others are fair coins at every
step. The target is a network of linear threshold units with weights and biases of \pm 1 that never changes; a learner
with few units has to track the part of it that the current slow bits reveal. Nothing is stored: within one task there
are only `2**(num_inputs - num_slow)` different inputs, so they and their targets are a small table, made once per
block.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lopjax.arguments.integers import as_integer
from lopjax.training.streams import Block, Drawn, Stream, Task

FLIPS, THRESHOLDS = ("one", "all"), ("official", "textbook")

# Steps whose coins are drawn at once; with more than `MOST_FAST` fast bits most rows of the table would never be used.
BLOCK = 1000
MOST_FAST = 10
# Number of draws of flipping bits that are made at once.
GROUP = 64


class Target(NamedTuple):
    """The fixed network that makes the targets; all weights and biases are -1 or 1.

    Attributes:
        weights: weights of the units, `(num_inputs, units)`.
        bias: bias of the units.
        thresholds: a unit outputs 1 if its input sum, bias included, exceeds this, otherwise 0.
        output: weights of the linear output.
        output_bias: its bias.
    """

    weights: Float[Array, "inputs units"]
    bias: Float[Array, " units"]
    thresholds: Float[Array, " units"]
    output: Float[Array, " units"]
    output_bias: Float[Array, ""]


class Problem(NamedTuple):
    """The parameters of the problem, described in `bit_flipping`."""

    num_inputs: int = 20
    num_slow: int = 15
    flip_every: int = 10_000
    units: int = 100
    beta: float = 0.7
    flip: str = "one"
    threshold: str = "official"


class Prepared(NamedTuple):
    """Data shared by the steps of a block: all inputs of the task with their targets, and the one that each step sees.

    Attributes:
        inputs: row `c` has the current slow bits, then the binary digits of `c`, lowest first.
        targets: targets of the rows.
        codes: the rows of the steps of the block, from its first multiple of `BLOCK` on.
    """

    inputs: Float[Array, "rows inputs"]
    targets: Float[Array, "rows 1"]
    codes: Array


def bit_flipping(
    num_inputs: int = 20,
    num_slow: int = 15,
    flip_every: int = 10_000,
    units: int = 100,
    beta: float = 0.7,
    flip: str = "one",
    threshold: str = "official",
) -> Stream:
    r"""The stream of the bit-flipping problem: inputs `(1, num_inputs)` of 0 and 1, targets `(1, 1)`, never stored.

    With :math:`w_i` the weights of target unit i and :math:`b_i` its bias, the weight of an additional input that is
    always 1, the unit outputs 1 if :math:`x \cdot w_i + b_i > \tau_i`, with :math:`\tau_i = (m + 1)\beta - S_i`.
    Publications and their code differ in two places:

    - ``flip="one"``: every `flip_every` steps one of the slow bits, drawn uniformly, flips (the text of the paper);
      ``"all"``: all slow bits are drawn anew, so about half of them change (the default of the code).
    - ``threshold="textbook"``: :math:`S_i` is the number of negative weights among all m + 1, the bias included;
      ``"official"``: :math:`S_i = (m - \sum_j w_{ij} + b_i) / 2`, where the code adds the bias with the wrong sign. The
      thresholds of the code are lower by 1/2 for :math:`b_i = 1` and higher by 3/2 for :math:`b_i = -1`: a unit of the
      second kind fires only on inputs two steps closer to its pattern.

    Args:
        num_inputs: m, number of bits of an input.
        num_slow: f, number of slow bits.
        flip_every: T, number of steps of a task.
        units: number of units of the target network.
        beta: fraction of a unit's pattern that an input must match for the unit to fire.
        flip: the change between tasks.
        threshold: threshold of the target network's units.

    Returns:
        The stream. Its target network depends on the key: `target_network`.

    Raises:
        ValueError: a number or name that is not allowed.

    References:
        Dohare, Sutton & Mahmood, arXiv 2108.06325, section 3; Sutton & Whitehead, ICML 1993; code
        shibhansh/loss-of-plasticity, `slowly_changing_regression`.
    """
    problem = check_problem(Problem(num_inputs, num_slow, flip_every, units, beta, flip, threshold))

    def prepare(data: Any, key: jax.Array, index: Any) -> Prepared:
        return prepared_block(problem, key, index)

    def draw(data: Any, prepared: Prepared, key: jax.Array, index: Any) -> Drawn:
        row = prepared.codes[index % BLOCK]
        batch = prepared.inputs[row][None], prepared.targets[row][None]
        return Drawn(batch, Task(jnp.asarray(index // flip_every), index % flip_every == 0))

    def end(index: Any) -> Any:
        return jnp.minimum((index // BLOCK + 1) * BLOCK, (index // flip_every + 1) * flip_every)

    def draw_alone(data: Any, key: jax.Array, index: Any) -> Drawn:
        return draw(data, prepare(data, key, index), key, index)

    return Stream((), draw_alone, Block(prepare, draw, end))


def check_problem(problem: Problem) -> Problem:
    """Refuse parameters that do not define a valid problem."""
    for name in ("num_inputs", "flip_every", "units"):
        value = getattr(problem, name)
        as_integer(value, 1, f"{name}={value!r}: must be a positive integer")
    if not math.isfinite(problem.beta):
        raise ValueError(f"beta={problem.beta}: must be finite")
    # At least one slow bit, if one is to flip.
    least = max(problem.num_inputs - MOST_FAST, int(problem.flip == "one"))
    if not least <= problem.num_slow <= problem.num_inputs:
        raise ValueError(
            f"num_slow={problem.num_slow}: must be in {least}..{problem.num_inputs}; at most {MOST_FAST} of the "
            f"num_inputs={problem.num_inputs} bits can be fast: targets are tabulated over them"
        )
    for name, value, allowed in (("flip", problem.flip, FLIPS), ("threshold", problem.threshold, THRESHOLDS)):
        if value not in allowed:
            raise ValueError(f"{name}={value!r}: must be one of {allowed}")
    return problem


def prepared_block(problem: Problem, key: jax.Array, index: Any) -> Prepared:
    """The data shared by the steps of the block of step `index`; `draw` of the stream reads nothing else."""
    target_key, slow_key, coin_key = jax.random.split(key, 3)
    num_fast = problem.num_inputs - problem.num_slow
    slow = slow_bits(problem, slow_key, jnp.asarray(index // problem.flip_every))
    rows = jnp.arange(2**num_fast)
    fast = rows[:, None] >> jnp.arange(num_fast) & 1
    inputs = jnp.concatenate([jnp.broadcast_to(slow, (rows.size, problem.num_slow)), fast == 1], axis=1)
    inputs = inputs.astype(jnp.zeros(()).dtype)
    coins = jax.random.bits(jax.random.fold_in(coin_key, index // BLOCK), (BLOCK,), jnp.uint16)
    codes = (coins & (2**num_fast - 1)).astype(jnp.int32)
    return Prepared(inputs, target_values(target_network(problem, target_key), inputs), codes)


def target_network(problem: Problem, key: jax.Array) -> Target:
    """The target network of a key; for a stream with key `k`, pass `jax.random.split(k, 3)[0]`."""
    keys = jax.random.split(key, 4)

    def signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.rademacher(key, shape, jnp.zeros(()).dtype)

    weights, bias = signs(keys[0], (problem.num_inputs, problem.units)), signs(keys[1], (problem.units,))
    if problem.threshold == "official":
        missing = (problem.num_inputs - jnp.sum(weights, axis=0) + bias) / 2
    else:
        missing = jnp.sum(weights < 0, axis=0) + (bias < 0)
    thresholds = (problem.num_inputs + 1) * problem.beta - missing
    return Target(weights, bias, thresholds, signs(keys[2], (problem.units,)), signs(keys[3], ()))


def target_values(target: Target, inputs: Float[Array, "rows inputs"]) -> Float[Array, "rows 1"]:
    """Outputs of the target network: sums of small integers, exact in float32."""
    fires = inputs @ target.weights + target.bias > target.thresholds
    return (jnp.where(fires, target.output, 0).sum(axis=1) + target.output_bias)[:, None]


def slow_bits(problem: Problem, key: jax.Array, task: Any) -> Bool[Array, " slow"]:
    """The slow bits of a task, a function of key and task alone.

    If one bit flips at a time, each bit has flipped as often as it was drawn for tasks 1..task. The draws are counted
    in groups, so that the cost of a block grows little over thousands of tasks.
    """
    first_key, flip_key = jax.random.split(key)
    if problem.flip == "all":
        return jax.random.bernoulli(jax.random.fold_in(first_key, task), shape=(problem.num_slow,))

    def count(group: Any, flips: jax.Array) -> jax.Array:
        drawn = jax.random.randint(jax.random.fold_in(flip_key, group), (GROUP,), 0, problem.num_slow)
        is_past = group * GROUP + jnp.arange(GROUP) < task
        return flips + jnp.zeros_like(flips).at[drawn].add(is_past.astype(jnp.int32))

    flips = jax.lax.fori_loop(0, (task + GROUP - 1) // GROUP, count, jnp.zeros(problem.num_slow, jnp.int32))
    first = jax.random.bernoulli(jax.random.fold_in(first_key, 0), shape=(problem.num_slow,))
    return first ^ (flips % 2 == 1)
