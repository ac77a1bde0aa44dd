"""Compiling on a thread beside the main one: once, and with the same errors."""

import jax
import jax.numpy as jnp
import pytest

from experiments.kit.ahead import compiled_ahead


def test_a_call_finds_the_program_that_was_compiled_ahead():
    traced = []

    @jax.jit
    def double(x):
        traced.append(x.shape)
        return 2 * x

    call = compiled_ahead(double, jax.ShapeDtypeStruct((3,), jnp.float32))
    assert call(jnp.ones(3)).tolist() == [2, 2, 2]
    assert traced == [(3,)]
    call(jnp.ones(2))  # the control: another shape is another program
    assert traced == [(3,), (2,)]


def test_what_cannot_be_compiled_raises_where_it_is_called():
    call = compiled_ahead(jax.jit(lambda x: x + jnp.ones(2)), jnp.ones(3))
    with pytest.raises(TypeError, match="incompatible shapes"):
        call(jnp.ones(3))
