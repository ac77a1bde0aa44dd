"""The fast path: the step of `lane.plain_step`, written out for one hidden layer and one example, all lanes at once.

A step of a network with 5 units is a few hundred multiplications. What limits it on a CPU is not arithmetic but the
number of kernels that a step of a compiled loop launches, some 0.1 us each, and the library's own step launches them
once for every lane. So here

- lanes are the *last* axis of every array, and every kernel does all of them at once, in whole vectors;
- products with one example are written as products and sums over the first axis, which the compiler fuses, where matrix
  products would be calls;
- the 1,000 inputs and targets of a block are gathered once, for all lanes;
- the replacement of units is skipped at every step at which no lane asks for it.

The same keys draw the same numbers, so it equals the library's step up to the rounding of sums of `num_inputs` and
`width` terms, taken in another order (the tests compare them); lanes do not notice what runs beside them, up to the
same rounding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.bit_flipping.lane import Program, Trainee
from experiments.bit_flipping.rules import RULES, SPACE, Rule, act
from lopjax.activations import activation
from lopjax.training import Lanes, Logs
from lopjax.training.bit_flipping import BLOCK, Prepared, Problem, prepared_block

Chunk = Callable[[Lanes, jax.Array, int, int], tuple[Lanes, Logs]]
# Folded into the key of a step: what acts after the step draws from a key of its own.
_ACT = 1


def make_fused_chunk(problem: Problem, program: Program, activation_name: str, act_every: int) -> Chunk:
    """Compile steps for many lanes, as `lopjax.training.make_chunk` does, together with what acts between blocks.

    Args:
        problem: the numbers of the stream.
        program: what the lanes have in common.
        activation_name: activation of the hidden layer.
        act_every: steps between two acts of a method that has one, a multiple of `BLOCK`.

    Returns:
        `chunk(lanes, keys, start, num_steps) -> (lanes, logs)`, with leading lane axes, buffers given back. Logs are
        means over the steps, NaN for a lane that is frozen because its error was not finite.
    """
    whole_block = _whole_block(problem, program, activation_name, act_every)

    def run(lanes: Lanes, keys: jax.Array, start: Any, num_steps: Any) -> tuple[Lanes, Logs]:
        pairs = jax.vmap(jax.random.split)(keys)
        order_keys, step_keys = pairs[:, 0], pairs[:, 1]
        stop, size = start + num_steps, lanes.frozen_at.size
        sums = jnp.zeros(size), jnp.zeros(size, jnp.int32)
        inner = Lanes(_lanes_last(lanes.state), lanes.frozen_at), sums
        _, ((state, frozen_at), (errors, counts)) = jax.lax.while_loop(
            lambda carry: carry[0] < stop,
            lambda carry: whole_block(stop, order_keys, step_keys, carry),
            (start, inner),
        )
        means = {"error": errors / num_steps, "replaced": counts / num_steps}
        return Lanes(_lanes_first(state), frozen_at), jax.tree.map(
            lambda log: jnp.where(frozen_at < 0, log, jnp.nan), means
        )

    compiled = jax.jit(run, donate_argnums=0)

    def chunk(lanes: Lanes, keys: jax.Array, start: int, num_steps: int) -> tuple[Lanes, Logs]:
        return compiled(lanes, keys, jnp.int32(start), jnp.int32(num_steps))

    return chunk


# --- A block and its steps --------------------


def _whole_block(problem: Problem, program: Program, activation_name: str, act_every: int) -> Callable[..., Any]:
    """`(stop, order_keys, step_keys, (index, inner)) -> (last, inner)`: steps up to the end of the block or `stop`.

    `inner` is what all lanes carry, and the sums of what they log.
    """
    one_step, acted, when = _one_step(program, activation_name), _acted(program), program.method.act

    def whole_block(stop: Any, order_keys: jax.Array, step_keys: jax.Array, carry: Any) -> Any:
        index, inner = carry
        block = _block_of(problem, order_keys, index)
        end = jnp.minimum((index // BLOCK + 1) * BLOCK, (index // problem.flip_every + 1) * problem.flip_every)
        last = jnp.minimum(end, stop)

        def act_at(step: Any, is_due: Any, inner: Any) -> Any:
            (lanes, frozen_at), (errors, counts) = inner
            lanes, touched = _where_due(
                is_due, lambda lanes: acted(lanes, frozen_at < 0, block, step_keys, step), lanes, counts
            )
            return Lanes(lanes, frozen_at), (errors, counts + touched)

        if when == "fresh":
            inner = act_at(index, (index > 0) & (index % problem.flip_every == 0), inner)
        inner = jax.lax.fori_loop(index, last, lambda i, carry: one_step(i, block, step_keys, carry), inner)
        if when not in (None, "fresh"):
            inner = act_at(last, (last == end) & (last % act_every == 0), inner)
        return last, inner

    return whole_block


def _one_step(program: Program, activation_name: str) -> Callable[..., Any]:
    """`(index, block, keys, inner) -> inner` after one step of all lanes that are not frozen."""
    rule = None if program.method.rule is None else RULES[program.method.rule]
    step, replaced = _step_of(program, rule, activation_name), _replaced(program, rule)

    def one_step(index: Any, block: Any, keys: jax.Array, carry: Any) -> Any:
        (lanes, frozen_at), sums = carry
        x, y = (jax.lax.dynamic_index_in_dim(array, index % BLOCK, 0, False) for array in block)
        trained, error, is_wanted = jax.vmap(step, in_axes=-1, out_axes=-1)(lanes, x, y)
        frozen_at = jnp.where((frozen_at < 0) & ~jnp.isfinite(error), index, frozen_at)
        is_running = frozen_at < 0
        # Trees of arrays alone: the numbers and keys of a lane never change.
        net = jax.tree.map(lambda new, old: jnp.where(is_running, new, old), trained.net, lanes.net)
        lanes, counts = lanes._replace(net=net), jnp.zeros_like(frozen_at)
        if rule is not None:
            is_wanted = is_wanted & is_running
            lanes, counts = _where_due(
                jnp.any(is_wanted), lambda lanes: replaced(lanes, is_wanted, keys, index), lanes, counts
            )
        return Lanes(lanes, frozen_at), (sums[0] + error, sums[1] + counts)

    return one_step


def _where_due(is_due: Any, do: Callable[[Trainee], Any], lanes: Trainee, counts: jax.Array) -> Any:
    """`do(lanes)` where it is due; otherwise the lanes as they are, and zero counts of touched units."""
    return jax.lax.cond(is_due, do, lambda lanes: (lanes, jnp.zeros_like(counts)), lanes)


def _replaced(program: Program, rule: Rule | None) -> Callable[..., tuple[Trainee, jax.Array]]:
    """`(lanes, wanted, keys, index) -> (lanes, counts)`: the rule replaces units in the lanes where it is due."""

    def one_lane(lanes: Trainee, number: Any, keys: jax.Array, index: Any) -> tuple[Trainee, jax.Array]:
        assert rule is not None
        lane = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, -1, False), lanes)
        numbers = program.numbers_of(lane.numbers)
        setting = program.setting(numbers, lane.noise_key)
        net, own, touched = rule.replace(
            numbers, setting, lane.net, lane.net.own, jax.random.fold_in(keys[number], index)
        )
        put = lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, number, -1)  # noqa: E731
        net = jax.tree.map(put, lanes.net, net._replace(own=own))
        return lanes._replace(net=net), jnp.sum(touched, dtype=jnp.int32)

    def replaced(lanes: Trainee, wanted: jax.Array, keys: jax.Array, index: Any) -> tuple[Trainee, jax.Array]:
        def one(number: Any, carry: tuple[Trainee, jax.Array]) -> tuple[Trainee, jax.Array]:
            def replace(carry: tuple[Trainee, jax.Array]) -> tuple[Trainee, jax.Array]:
                lanes, count = one_lane(carry[0], number, keys, index)
                return lanes, carry[1].at[number].set(count)

            return jax.lax.cond(wanted[number], replace, lambda carry: carry, carry)

        return jax.lax.fori_loop(0, wanted.size, one, (lanes, jnp.zeros(wanted.size, jnp.int32)))

    return replaced


def _acted(program: Program) -> Callable[..., tuple[Trainee, jax.Array]]:
    """`(lanes, is_running, block, keys, index) -> (lanes, counts)`: what acts between blocks, before step `index`.

    One lane after the other, on all inputs of the block.
    """
    name = program.method.act

    def one(args: Any, index: Any) -> Any:
        assert name is not None
        lane, runs, x, y, key = args
        numbers = program.numbers_of(lane.numbers)
        setting = program.setting(numbers, lane.noise_key)
        key = jax.random.fold_in(jax.random.fold_in(key, index), _ACT)
        net, count = act(name, numbers, setting, lane.net, (x, y), key)
        net = jax.tree.map(lambda new, old: jnp.where(runs, new, old), net, lane.net)
        return lane._replace(net=net), jnp.where(runs, count, 0)

    def acted(lanes: Trainee, is_running: jax.Array, block: Any, keys: jax.Array, index: Any) -> Any:
        x, y = (jnp.moveaxis(array, -1, 0) for array in block)
        args = _lanes_first(lanes), is_running, x, y, keys
        lanes, counts = jax.lax.map(lambda args: one(args, index), args)
        return _lanes_last(lanes), counts

    return acted


def _step_of(
    program: Program, rule: Rule | None, activation_name: str
) -> Callable[..., tuple[Trainee, jax.Array, jax.Array]]:
    """`(lane, x, y) -> (lane, error, is_wanted)` of one lane; x `(num_inputs,)`, y `(1,)`."""

    def step(lane: Trainee, x: jax.Array, y: jax.Array) -> tuple[Trainee, jax.Array, jax.Array]:
        numbers, net = program.numbers_of(lane.numbers), lane.net
        params = net.variables["params"]
        error, gradient, pre, post = error_and_gradient(params, x, y[0], activation_name)
        optimizer = program.setting(numbers, lane.noise_key).optimizer
        updates, opt_state = optimizer.update(gradient, net.opt_state, params)
        params = optax.apply_updates(params, updates)
        own, is_wanted = net.own, jnp.bool_(False)
        if rule is not None:
            own, is_wanted = rule.watch(numbers, own, params, pre, post)
        net = net._replace(variables={"params": params}, opt_state=opt_state, own=own)
        return lane._replace(net=net), error, is_wanted

    return step


def error_and_gradient(
    params: Any, x: jax.Array, y: jax.Array, activation_name: str
) -> tuple[jax.Array, Any, jax.Array, jax.Array]:
    """`(f(x) - y)²` of one example, its gradient, and the pre- and post-activations of the hidden layer.

    Written as products and sums: with lanes behind them these are loops over whole vectors.
    """
    if SPACE not in params:
        kernel, bias = params["classes"]["kernel"], params["classes"]["bias"]
        difference = jnp.sum(kernel[:, 0] * x) + bias[0] - y
        slope = 2 * difference
        return difference**2, {"classes": {"kernel": (slope * x)[:, None], "bias": slope[None]}}, x[:0], x[:0]
    name = {"swish": "silu"}.get(activation_name, activation_name)
    pre = jnp.sum(params[SPACE]["kernel"] * x[:, None], axis=0) + params[SPACE]["bias"]
    post, pull_back = jax.vjp(activation(name), pre)
    outgoing = params["classes"]["kernel"][:, 0]
    difference = jnp.sum(outgoing * post) + params["classes"]["bias"][0] - y
    slope = 2 * difference
    (signal,) = pull_back(slope * outgoing)
    gradient = {
        "classes": {"kernel": (slope * post)[:, None], "bias": slope[None]},
        SPACE: {"kernel": x[:, None] * signal[None], "bias": signal},
    }
    return difference**2, gradient, pre, post


def _block_of(problem: Problem, keys: jax.Array, index: Any) -> tuple[jax.Array, jax.Array]:
    """Inputs `(BLOCK, num_inputs, lanes)` and targets `(BLOCK, 1, lanes)` of a block."""

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        prepared: Prepared = prepared_block(problem, key, index)
        return prepared.inputs[prepared.codes], prepared.targets[prepared.codes]

    return jax.vmap(one, out_axes=-1)(keys)


def _lanes_last(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1) if leaf.ndim > 1 else leaf, tree)


def _lanes_first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0) if leaf.ndim > 1 else leaf, tree)
