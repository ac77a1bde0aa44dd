"""What the tracer takes for granted about JAX: names of primitives, and of the parameters that are read or rewritten.

A rule for a primitive that has another name in a new version would never be applied: all would still be sound, and
little would be found. Nothing is compiled here.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lopjax.tracing.jaxprs import CALLS, CUSTOM_RULES, REMAT, read_program, scan_counts, walk
from lopjax.tracing.primitives import ELEMENTWISE
from lopjax.tracing.rules import RULES

X, I, B = np.full((3, 4), 0.5, np.float32), np.ones((3, 4), np.int32), np.ones((3, 4), bool)
REPLICATED = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("x",)), PartitionSpec())
KEY = jax.eval_shape(jax.random.key, 0)
CONV = dict(window_strides=(1,), padding="SAME", dimension_numbers=("NHC", "HIO", "NHC"))

# Of other versions than the one installed, or made by transformations only.
OF_OTHER_VERSIONS = {
    *("copy", "copy_p", "stop_gradient", "top_k", "reduce_window", "platform_index", "scatter_add", "rng_uniform"),
    *("scatter_mul", "scatter_min", "scatter_max"),
    *("core_call", "pjit", "remat", "remat2", "checkpoint", "closed_call", "custom_vjp_call_jaxpr"),
}


@jax.custom_jvp
def own_jvp(x):
    return x


@jax.custom_vjp
def own_vjp(x):
    return x


own_jvp.defjvp(lambda primals, tangents: (primals[0], tangents[0]))
own_vjp.defvjp(lambda x: (x, None), lambda _, g: (g,))

# What is not a function of `jax.lax` of the same name and of arrays alone; with the parameters that the tracer reads.
MADE_BY = {
    "add_any": (jax.grad(lambda x: (jnp.sin(x) + jnp.cos(x)).sum()), (X,), ""),
    "and": (lax.bitwise_and, (I, I), ""),
    "or": (lax.bitwise_or, (I, I), ""),
    "xor": (lax.bitwise_xor, (I, I), ""),
    "not": (lax.bitwise_not, (I,), ""),
    "imag": (lax.imag, (X + 1j,), ""),
    "real": (lax.real, (X + 1j,), ""),
    "integer_pow": (lambda x: x**3, (X,), "y"),
    "convert_element_type": (lambda x: x.astype(np.int32), (X,), "new_dtype"),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 8, 7), (X,), ""),
    "regularized_incomplete_beta": (lax.betainc, (X, X, X), ""),
    "reduce_sum": (lambda x: x.sum(1), (X,), "axes"),
    "reduce_max": (lambda x: x.max(1), (X,), "axes"),
    "reduce_min": (lambda x: x.min(1), (X,), "axes"),
    "reduce_prod": (lambda x: x.prod(1), (X,), "axes"),
    "reduce_and": (lambda x: x.all(1), (B,), "axes"),
    "reduce_or": (lambda x: x.any(1), (B,), "axes"),
    "reduce_xor": (lambda x: lax.reduce_xor(x, (1,)), (I,), "axes"),
    "reduce_window_sum": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 1), "VALID"), (X,), "window_dimensions window_strides"
    ),
    "reduce_window_max": (lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 2), (1, 1), "VALID"), (X,), ""),
    "reduce_window_min": (lambda x: lax.reduce_window(x, np.inf, lax.min, (1, 2), (1, 1), "VALID"), (X,), ""),
    "scatter": (lambda x: x.at[1].set(0.0), (X,), "dimension_numbers"),
    "scatter-add": (lambda x: x.at[1].add(1.0), (X,), "dimension_numbers"),
    "scatter-sub": (lambda x: x.at[1].subtract(1.0), (X,), "dimension_numbers"),
    "scatter-mul": (lambda x: x.at[1].mul(2.0), (X,), "dimension_numbers"),
    "scatter-min": (lambda x: x.at[1].min(2.0), (X,), "dimension_numbers"),
    "scatter-max": (lambda x: x.at[1].max(2.0), (X,), "dimension_numbers"),
    **{name: (getattr(lax, name), (X,), "axis") for name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")},
    "argmax": (lambda x: lax.argmax(x, 1, np.int32), (X,), "axes"),
    "argmin": (lambda x: lax.argmin(x, 1, np.int32), (X,), "axes"),
    "random_bits": (jax.random.bits, (KEY,), "shape"),
    "random_seed": (jax.random.key, (np.uint32(0),), ""),
    "random_wrap": (jax.random.wrap_key_data, (np.zeros(2, np.uint32),), ""),
    "random_unwrap": (jax.random.key_data, (KEY,), ""),
    "random_fold_in": (lambda key: jax.random.fold_in(key, 1), (KEY,), ""),
    "random_split": (jax.random.split, (KEY,), ""),
    "threefry2x32": (lambda key: jax.extend.random.threefry_2x32(key, key), (np.zeros(2, np.uint32),), ""),
    "rng_bit_generator": (lambda key: lax.rng_bit_generator(key, (3,)), (I[0].astype(np.uint32),), ""),
    "sort": (lambda x: lax.sort(x), (X,), "dimension"),
    "rev": (lambda x: lax.rev(x, (1,)), (X,), "dimensions"),
    "transpose": (lambda x: x.T, (X,), "permutation"),
    "broadcast_in_dim": (lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (1, 2)), (X,), "shape broadcast_dimensions"),
    "squeeze": (lambda x: lax.squeeze(x[:1], (0,)), (X,), "dimensions"),
    "reshape": (lambda x: x.reshape(2, 6), (X,), "new_sizes"),
    "iota": (lambda: lax.iota(np.int32, 3), (), "dimension shape"),
    "slice": (lambda x: lax.slice(x, (0, 1), (3, 4)), (X,), "start_indices limit_indices strides"),
    "split": (lambda x: jnp.split(x, [1], 1), (X,), "sizes axis"),
    "concatenate": (lambda x: jnp.concatenate([x, x]), (X,), "dimension"),
    "stack": (lambda x: jnp.stack([x, x]), (X,), "axis"),
    "unstack": (lambda x: lax.unstack(x, axis=1), (X,), "axis"),
    "tile": (lambda x: jnp.tile(x, (1, 2)), (X,), "reps"),
    "name": (lambda x: checkpoint_name(x, "x"), (X,), ""),
    "device_put": (jax.device_put, (X,), ""),
    "sharding_constraint": (lambda x: lax.with_sharding_constraint(x, REPLICATED), (X,), ""),
    "pad": (lambda x: jnp.pad(x, 1), (X,), "padding_config"),
    "dot_general": (lambda x: x @ x.T, (X,), "dimension_numbers"),
    "conv_general_dilated": (
        lambda x: lax.conv_general_dilated(x[None], x[:1, :, None], **CONV), (X[:, :1],),
        "dimension_numbers feature_group_count batch_group_count",
    ),
    "gather": (lambda x: x[np.array([1, 0])], (X,), "dimension_numbers slice_sizes"),
    "dynamic_slice": (lambda x: lax.dynamic_slice(x, (0, 1), (3, 2)), (X,), "slice_sizes"),
    "dynamic_update_slice": (lambda x: lax.dynamic_update_slice(x, x[:1], (0, 1)), (X[:, :1],), ""),
    "scan": (lambda x: lax.scan(lambda c, y: (c + y, c), x[0], x), (X,), "length reverse unroll jaxpr"),
    "while": (
        lambda x: lax.while_loop(lambda c: c.sum() < 3, lambda c: c + 1, x), (X,),
        "cond_jaxpr body_jaxpr cond_nconsts body_nconsts",
    ),
    "cond": (lambda x: lax.cond(x[0, 0] > 0, lambda: x, lambda: -x), (X,), "branches"),
    "jit": (jax.jit(lambda x: x + 1), (X,), "jaxpr"),
    "custom_jvp_call": (own_jvp, (X,), ""),
    "custom_vjp_call": (own_vjp, (X,), ""),
}  # fmt: skip


def nodes_of(function, *args):
    return list(walk(read_program(function, *args).block))


@pytest.mark.parametrize("name", MADE_BY)
def test_a_primitive_has_the_name_and_the_parameters_that_its_rule_reads(name):
    function, args, parameters = MADE_BY[name]
    (node, *_) = [node for node in nodes_of(function, *args) if node.name == name]
    assert set(parameters.split()) <= set(node.params)
    if name in CALLS or name in ("scan", "while", "cond"):
        assert node.blocks


def test_every_entrywise_primitive_is_one_of_jax():
    missing, names = [], sorted(ELEMENTWISE - set(MADE_BY) - OF_OTHER_VERSIONS)
    assert len(names) > 10  # or this test has stopped looking
    for name in names:
        for args in ((X,), (X, X), (X, X, X), (I,), (I, I), (B, X, X)):
            try:
                found = {node.name for node in nodes_of(getattr(lax, name), *args)}
            except (TypeError, ValueError):
                continue
            if name in found:
                break
        else:
            missing.append(name)
    assert not missing


def test_every_name_with_a_rule_has_a_canary():
    known = set(RULES) | CALLS | REMAT | CUSTOM_RULES
    assert known <= ELEMENTWISE | set(MADE_BY) | OF_OTHER_VERSIONS


def test_a_checkpoint_is_a_call_and_the_counts_of_a_scan_are_read():
    (node,) = [node for node in nodes_of(jax.checkpoint(jnp.sin), X) if node.is_call]
    assert node.name in REMAT
    assert set(node.params) >= {"policy", "prevent_cse"}
    scan = lambda x, y: lax.scan(lambda c, z: (c + y, c * z), x[0], x)  # noqa: E731
    (node,) = [node for node in nodes_of(scan, X, X[0]) if node.name == "scan"]
    assert scan_counts(node) == (1, 1)


def test_an_equation_says_where_it_stands():
    (node,) = nodes_of(lambda x: lax.sin(x), X)
    assert "test_canaries.py" in node.where
