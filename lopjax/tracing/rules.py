"""How each primitive permutes: the axes of what it makes, from the axes of what it takes.

Every rule is *equivariant*: permuting the leaves of its operands permutes its results accordingly, provided that no
leaf is pinned. By induction over a program, permuting a leaf that is pinned nowhere leaves the outputs as they are. A
rule that cannot promise it pins. A primitive without a rule pins all that it touches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lopjax.tracing.atoms import Axis, Position, cut, expand, fresh, pin, reshape, size_of, sum_of, unify
from lopjax.tracing.jaxprs import Node, Program

Type = tuple[Axis, ...]
Rule = Callable[[Program, Node, list[Type]], list[Type]]

ELEMENTWISE = frozenset(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp "
    "convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma imag "
    "integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not optimization_barrier or "
    "population_count pow real reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left "
    "shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor".split()
)
REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor".split())
WINDOWS = frozenset("reduce_window reduce_window_sum reduce_window_max reduce_window_min".split())
SCATTERS = frozenset("scatter scatter_add scatter-add scatter_mul scatter_min scatter_max".split())


def _pinned(program: Program, value: int, reason: str) -> Type:
    return tuple(fresh(size, reason) for size in program.shape(value))


def unknown(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """A primitive of which nothing is known: all that it touches is pinned."""
    reason = f"{node.where}: no rule for this primitive"
    for each in types:
        for axis in each:
            pin(axis, reason)
    return [_pinned(program, value, reason) for value in node.outputs]


def elementwise(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Axes of equal position are permuted alike; those of length 1, and scalars, are broadcast."""
    if node.name == "optimization_barrier":
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
    """A sum, a maximum over an axis does not depend on the order."""
    return [tuple(axis for index, axis in enumerate(each) if index not in node.params["axes"]) for each in types]


def _along_pinned(program: Program, node: Node, types: list[Type], axes: Sequence[int], why: str) -> list[Type]:
    """Some axes tell their entries apart; all operands are permuted alike."""
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
    """What is sorted is compared with its neighbours."""
    return _along_pinned(program, node, types, (node.params["dimension"],), "units compete with one another")


def rev(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """A reversed axis is the same only for what does not depend on the order."""
    return _along_pinned(program, node, types, node.params["dimensions"], "its result depends on the order")


def argument(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """The number of a unit is no number any more if units are permuted."""
    (operand,) = types
    axes = node.params["axes"]
    for axis in axes:
        pin(operand[axis], f"{node.where}: units compete, and are told by number")
    return [tuple(axis for index, axis in enumerate(operand) if index not in axes)]


def top_k(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """The largest entries, by number."""
    (operand,) = types
    along = node.params.get("axis", len(operand) - 1) % len(operand)
    reason = f"{node.where}: units compete, and are told by number"
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
    """Row-major products are split and put together."""
    if node.params.get("dimensions") is not None:
        return unknown(program, node, types)
    return [tuple(reshape(list(types[0]), node.params["new_sizes"], f"{node.where}: cuts through units"))]


def iota(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Entries that are numbered are told apart."""
    shape, along = program.shape(node.outputs[0]), node.params["dimension"]
    reason = f"{node.where}: numbers its units"
    return [tuple(fresh(size, reason if index == along else None) for index, size in enumerate(shape))]


def random(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Random numbers of one key differ from unit to unit."""
    reason = f"{node.where}: random numbers tell its units apart (a symmetry in distribution only: trace in eval mode)"
    for each in types:
        for axis in each:
            pin(axis, reason)
    return [_pinned(program, value, reason) for value in node.outputs]


# --- Direct sums ------------------------------------------


def segment(axis: Axis, start: int, stop: int, size: int, reason: str) -> Axis:
    """The part of an axis between two positions."""
    if start == stop:
        return fresh(0, reason)
    if start > 0:
        _, axis = cut(axis, start, reason)
    if stop < size:
        axis, _ = cut(axis, stop - start, reason)
    return axis


def slice_rule(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """A cut of an axis makes it a direct sum; every second entry is no part of one."""
    shape = program.shape(node.inputs[0])
    starts, stops = (map(int, node.params[key]) for key in ("start_indices", "limit_indices"))
    strides = node.params["strides"] or (1,) * len(shape)
    out = []
    for axis, size, start, stop, stride in zip(types[0], shape, starts, stops, strides, strict=True):
        if stride != 1 and size > 1:
            pin(axis, reason := Position(f"{node.where}: takes every {stride}th entry"))
            out.append(fresh(-(-(stop - start) // stride), reason))
        else:
            out.append(segment(axis, start, stop, size, f"{node.where}: cuts through units"))
    return [tuple(out)]


def split(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """As several slices."""
    along, sizes = node.params["axis"], node.params["sizes"]
    ends = np.cumsum([0, *sizes]).tolist()
    parts = [
        segment(types[0][along], start, stop, ends[-1], f"{node.where}: cuts through units")
        for start, stop in zip(ends[:-1], ends[1:], strict=True)
    ]
    return [(*types[0][:along], part, *types[0][along + 1 :]) for part in parts]


def concatenate(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Axes side by side are a direct sum, the others are permuted alike."""
    along = node.params["dimension"]
    lengths = [program.shape(value)[along] for value in node.inputs]
    for other in types[1:]:
        for index, axis in enumerate(other):
            if index != along:
                unify(types[0][index], axis, node.where)
    parts = [(length, each[along]) for length, each in zip(lengths, types, strict=True) if length]
    whole = sum_of(parts, node.where) if parts else fresh(0, node.where)
    return [(*types[0][:along], whole, *types[0][along + 1 :])]


def padded(program: Program, node: Node, types: list[Type]) -> list[tuple[Axis, Axis, Axis]]:
    """What is in front of each axis, the axis, what is behind it. Entries of a padding are all equal."""
    out = []
    config = [tuple(map(int, each)) for each in node.params["padding_config"]]
    for axis, size, (low, high, interior) in zip(types[0], program.shape(node.inputs[0]), config, strict=True):
        if interior and size > 1 or low < 0 or high < 0:
            pin(axis, f"{node.where}: moves the entries apart")
            length = low + high + size + interior * max(size - 1, 0)
            out.append(((), fresh(length, f"{node.where}: moves the entries apart"), ()))
        else:
            out.append((fresh(low) if low > 1 else (), axis, fresh(high) if high > 1 else ()))
    return out


# --- Products ----------------------------------------


def dot_general(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """What is summed over together, or runs along together, is permuted alike."""
    left, right = types
    (contract_l, contract_r), (batch_l, batch_r) = node.params["dimension_numbers"]
    for one, other in zip((*contract_l, *batch_l), (*contract_r, *batch_r), strict=True):
        unify(left[one], right[other], node.where)
    batch = [left[index] for index in batch_l]
    free_l = [axis for index, axis in enumerate(left) if index not in (*contract_l, *batch_l)]
    free_r = [axis for index, axis in enumerate(right) if index not in (*contract_r, *batch_r)]
    return [(*batch, *free_l, *free_r)]


def convolution(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Channels as in a product, positions pinned; with g groups, channels are g times the channels of a group."""
    image, kernel = types
    numbers = node.params["dimension_numbers"]
    (batch, channels, *places) = numbers.lhs_spec
    (written, read, *offsets) = numbers.rhs_spec
    (out_batch, out_channels, *out_places) = numbers.out_spec
    if node.params["batch_group_count"] != 1:
        return unknown(program, node, types)
    reason = Position(f"{node.where}: positions of a convolution")
    for axis in (*(image[index] for index in places), *(kernel[index] for index in offsets)):
        pin(axis, reason)
    groups = node.params["feature_group_count"]
    image_channels, kernel_channels = image[channels], kernel[written]
    if groups > 1:
        (group, inner), (other, _) = (_groups(axis, groups, node.where) for axis in (image_channels, kernel_channels))
        unify(group, other, node.where)
        image_channels = inner
    unify(image_channels, kernel[read], node.where)
    shape = program.shape(node.outputs[0])
    out: list[Axis] = [()] * len(shape)
    out[out_batch], out[out_channels] = image[batch], kernel_channels
    for index in out_places:
        out[index] = fresh(shape[index], reason)
    return [tuple(out)]


def _groups(axis: Axis, groups: int, reason: str) -> tuple[Axis, Axis]:
    """An axis as so many groups times the rest."""
    size = size_of(axis)
    outer, inner = reshape([axis], (groups, size // groups), f"{reason}: groups cut through units")
    if (rebuilt := (*outer, *inner)) != tuple(expand(axis)):
        unify(axis, rebuilt, reason)  # where units were cut, both are pinned
    return outer, inner


def window(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Axes with a window of one entry pass, the others are positions."""
    operand = types[0]
    reason = Position(f"{node.where}: positions of a window")
    shape_in, shape = program.shape(node.inputs[0]), program.shape(node.outputs[0])
    sizes = node.params["window_dimensions"]
    strides = node.params.get("window_strides") or (1,) * len(shape)
    dilations = node.params.get("base_dilation") or (1,) * len(shape)
    out = []
    for index, axis in enumerate(operand):
        if (sizes[index], strides[index], dilations[index]) == (1, 1, 1) and shape_in[index] == shape[index]:
            out.append(axis)
        else:
            pin(axis, reason)
            out.append(fresh(shape[index], reason))
    return [tuple(out) for _ in node.outputs]


# --- Looking up ------------------------------------------


def gather(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Axes taken in full pass, others are looked up by number; indices bring their own axes."""
    operand, indices = types
    numbers, sizes = node.params["dimension_numbers"], node.params["slice_sizes"]
    reason = f"{node.where}: looked up by number"
    shape_in, shape = program.shape(node.inputs[0]), program.shape(node.outputs[0])
    batching = tuple(numbers.operand_batching_dims)
    for one, other in zip(batching, numbers.start_indices_batching_dims, strict=True):
        unify(operand[one], indices[other], node.where)
    kept = []
    for index, axis in enumerate(operand):
        is_full = sizes[index] == shape_in[index] and index not in numbers.start_index_map
        if index not in batching and not is_full:
            pin(axis, reason)
        if index not in batching and index not in numbers.collapsed_slice_dims:
            kept.append(axis if is_full else fresh(sizes[index], reason))
    pin(indices[-1], reason)
    rest = iter(indices[:-1])
    windows = iter(kept)
    return [tuple(next(windows) if index in numbers.offset_dims else next(rest) for index in range(len(shape)))]


def dynamic_slice(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Axes taken in full pass, others are looked up by number."""
    reason = f"{node.where}: looked up by number"
    out = []
    for axis, size, whole in zip(types[0], node.params["slice_sizes"], program.shape(node.inputs[0]), strict=True):
        if size != whole:
            pin(axis, reason)
        out.append(axis if size == whole else fresh(size, reason))
    return [tuple(out)]


def dynamic_update_slice(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Axes overwritten in full are permuted alike, others are looked up by number."""
    operand, update = types[:2]
    for one, other in zip(operand, update, strict=True):
        if size_of(one) == size_of(other):
            unify(one, other, node.where)
        else:
            pin(one, f"{node.where}: looked up by number")
            pin(other, f"{node.where}: looked up by number")
    return [operand]


def scatter(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Axes written in full are permuted alike, others are looked up by number."""
    operand, indices, updates = types
    numbers = node.params["dimension_numbers"]
    batching = tuple(numbers.operand_batching_dims)
    if batching:
        return unknown(program, node, types)
    reason = f"{node.where}: looked up by number"
    kept = [index for index in range(len(operand)) if index not in numbers.inserted_window_dims]
    for index, axis in enumerate(operand):
        if index in numbers.scatter_dims_to_operand_dims or index in numbers.inserted_window_dims:
            pin(axis, reason)
    for index, place in zip(kept, numbers.update_window_dims, strict=True):
        if size_of(operand[index]) == size_of(updates[place]):
            unify(operand[index], updates[place], node.where)
        else:
            pin(operand[index], reason)
            pin(updates[place], reason)
    pin(indices[-1], reason)
    others = [axis for index, axis in enumerate(updates) if index not in numbers.update_window_dims]
    for one, other in zip(indices[:-1], others, strict=True):
        unify(one, other, node.where)
        pin(one, reason)
    return [operand]


def constant(known: Any) -> Type:
    """Axes of a known array: along which it is constant, units are free; others tell theirs apart."""
    if not isinstance(known, np.ndarray | np.generic | int | float | complex) and not _is_plain(known):
        return tuple(fresh(size, "a constant that is no array of numbers") for size in known.shape)
    array = np.asarray(known)
    reason = f"a constant array of shape {array.shape} tells its units apart"
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
    "dot_general": dot_general,
    "conv_general_dilated": convolution,
    "gather": gather,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "platform_index": lambda program, node, types: [() for _ in node.outputs],
}
"""The rule of every primitive that is known; `pad` and those with blocks are in `lopjax.tracing.types`."""
