"""Philox keys in programs over several devices, where jaxlib 0.10.2 cannot compile what they are made of."""

from functools import cache

import jax
import jax.numpy as jnp
from jax.interpreters import mlir
from jaxtyping import UInt32


@cache
def spell_out_products() -> None:
    """From now on compile `jax.lax.mulhi`, which Philox keys are made of, as `high_word`: the same bits.

    Shardy, the partitioner of jaxlib 0.10.2, ends any program that has it with an internal error.
    """
    word = jnp.uint32(1)
    (equation,) = jax.make_jaxpr(jax.lax.mulhi)(word, word).jaxpr.eqns
    mlir.register_lowering(equation.primitive, mlir.lower_fun(high_word, multiple_results=False))


def high_word(x: UInt32[jax.Array, "..."], y: UInt32[jax.Array, "..."]) -> UInt32[jax.Array, "..."]:
    """The upper 32 bits of the 64-bit product, from products of half words."""
    half, mask = jnp.uint32(16), jnp.uint32(0xFFFF)
    x_high, x_low, y_high, y_low = x >> half, x & mask, y >> half, y & mask
    middle = x_high * y_low + (x_low * y_low >> half)
    return x_high * y_high + (middle >> half) + (x_low * y_high + (middle & mask) >> half)
