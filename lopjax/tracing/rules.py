"""How each primitive acts on permutations: the axes of its results, from the axes of its operands.

Every rule is *equivariant*: permuting the leaves of its operands permutes its results accordingly, provided that no
leaf is pinned. By induction over a program, permuting a leaf that is pinned nowhere leaves the outputs unchanged. A
rule that cannot guarantee this pins the leaf. A primitive without a rule pins the axes of all its operands and results.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lopjax.tracing.atoms import Axis, fresh, pin, reshape, size_of, unify
from lopjax.tracing.jaxprs import Node, Program
from lopjax.tracing.primitives import ELEMENTWISE, REDUCTIONS, SCATTERS, WINDOWS, Rule, Type, pinned, unknown
from lopjax.tracing.rules_lookups import dynamic_slice, dynamic_update_slice, gather, scatter
from lopjax.tracing.rules_products import convolution, dot_general, window
from lopjax.tracing.rules_sums import concatenate, slice_rule, split, stack, tile, unstack


def elementwise(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Axes at the same position are permuted alike; axes of length 1 and scalars are broadcast."""
    if node.name in ("optimization_barrier", "device_put"):
        return list(types)
    out: list[Axis] = []
    shape = program.shape(node.outputs[0])
    for index, size in enumerate(shape):
        given = [each[index] for each in types if len(each) == len(shape) and size_of(each[index]) == size]
        for other in given[1:]:
            unify(given[0], other, node.where)
        out.append(given[0] if given else fresh(size))
    return [tuple(out) for _ in node.outputs]


def reduction(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """A sum or a maximum over an axis does not depend on the order."""
    return [tuple(axis for index, axis in enumerate(each) if index not in node.params["axes"]) for each in types]


def _along_pinned(program: Program, node: Node, types: list[Type], axes: Sequence[int], why: str) -> list[Type]:
    """Some axes have distinguishable entries; all operands are permuted alike."""
    for axis in axes:
        pin(types[0][axis], f"{node.where}: {why}")
    for other in types[1:]:
        for one, axis in zip(types[0], other, strict=True):
            unify(one, axis, node.where)
    return [types[0] for _ in node.outputs]


def cumulative(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """The order along the axis matters."""
    return _along_pinned(program, node, types, (node.params["axis"],), "its result depends on the order")


def sort(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Entries that are sorted are compared with one another."""
    return _along_pinned(program, node, types, (node.params["dimension"],), "units compete with one another")


def rev(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Reversing an axis makes the order matter."""
    return _along_pinned(program, node, types, node.params["dimensions"], "its result depends on the order")


def argument(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """The index of a unit is meaningless once units are permuted."""
    (operand,) = types
    axes = node.params["axes"]
    for axis in axes:
        pin(operand[axis], f"{node.where}: units compete, and are identified by index")
    return [tuple(axis for index, axis in enumerate(operand) if index not in axes)]


def top_k(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """The largest entries and their indices."""
    (operand,) = types
    along = node.params.get("axis", len(operand) - 1) % len(operand)
    reason = f"{node.where}: units compete, and are identified by index"
    pin(operand[along], reason)
    k = program.shape(node.outputs[0])[along]
    return [(*operand[:along], fresh(int(k), reason), *operand[along + 1 :])] * 2


def transpose(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Axes in another order."""
    return [tuple(types[0][index] for index in node.params["permutation"])]


def broadcast(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """A new axis, along which all entries are equal, may be permuted at will."""
    shape, placed = node.params["shape"], node.params["broadcast_dimensions"]
    out = [fresh(size) for size in shape]
    for index, axis in zip(placed, types[0], strict=True):
        if size_of(axis) == shape[index]:
            out[index] = axis
    return [tuple(out)]


def squeeze(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Axes of length 1 have nothing to permute."""
    gone = {index % len(types[0]) for index in node.params["dimensions"]}
    return [tuple(axis for index, axis in enumerate(types[0]) if index not in gone)]


def reshape_rule(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Row-major products are split and recombined."""
    if node.params.get("dimensions") is not None:
        return unknown(program, node, types)
    return [tuple(reshape(list(types[0]), node.params["new_sizes"], f"{node.where}: cuts through units"))]


def iota(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Entries that are numbered are distinguishable."""
    shape, along = program.shape(node.outputs[0]), node.params["dimension"]
    reason = f"{node.where}: numbers its units"
    return [tuple(fresh(size, reason if index == along else None) for index, size in enumerate(shape))]


def random(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Random numbers of one key differ from unit to unit."""
    reason = f"{node.where}: random numbers tell its units apart (a symmetry in distribution only: trace in eval mode)"
    for each in types:
        for axis in each:
            pin(axis, reason)
    return [pinned(program, value, reason) for value in node.outputs]


def constant(known: Any) -> Type:
    """Axes of a known array: units are free along an axis on which it is constant, and distinguished along others."""
    if not isinstance(known, np.ndarray | np.generic | int | float | complex) and not _is_plain(known):
        return tuple(fresh(size, "a constant that is no array of numbers") for size in known.shape)
    array = np.asarray(known)
    reason = f"a constant array of shape {array.shape} tells its units apart (if it is a variable, pass it with params)"
    axes = []
    for index, size in enumerate(array.shape):
        rows = np.moveaxis(array, index, 0)
        is_free = size > 0 and bool(np.all(rows == rows[:1]))
        axes.append(fresh(size, None if is_free else reason))
    return tuple(axes)


def _is_plain(known: Any) -> bool:
    return jnp.issubdtype(known.dtype, np.number) or known.dtype == bool


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(WINDOWS, window),
    **dict.fromkeys(SCATTERS, scatter),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), cumulative),
    **dict.fromkeys(("argmax", "argmin"), argument),
    **dict.fromkeys(("random_bits", "random_seed", "random_wrap", "random_unwrap", "random_fold_in"), random),
    **dict.fromkeys(("threefry2x32", "random_split", "rng_uniform", "rng_bit_generator"), random),
    "sort": sort,
    "rev": rev,
    "top_k": top_k,
    "transpose": transpose,
    "broadcast_in_dim": broadcast,
    "squeeze": squeeze,
    "reshape": reshape_rule,
    "iota": iota,
    "slice": slice_rule,
    "split": split,
    "concatenate": concatenate,
    "stack": stack,
    "unstack": unstack,
    "tile": tile,
    "dot_general": dot_general,
    "conv_general_dilated": convolution,
    "gather": gather,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "platform_index": lambda program, node, types: [() for _ in node.outputs],
}
"""The rule of every known primitive; `pad` and primitives with blocks are in `lopjax.tracing.types`."""
