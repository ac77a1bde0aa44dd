"""Rules for reading and writing entries by index."""

from lopjax.tracing.atoms import fresh, pin, size_of, unify
from lopjax.tracing.jaxprs import Node, Program
from lopjax.tracing.primitives import Type, unknown


def gather(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Axes taken in full pass through, others are indexed and pinned; indices bring their own axes."""
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
    """Axes overwritten in full are permuted alike, others are indexed and pinned."""
    operand, update = types[:2]
    for one, other in zip(operand, update, strict=True):
        if size_of(one) == size_of(other):
            unify(one, other, node.where)
        else:
            pin(one, f"{node.where}: looked up by number")
            pin(other, f"{node.where}: looked up by number")
    return [operand]


def scatter(program: Program, node: Node, types: list[Type]) -> list[Type]:
    """Axes written in full are permuted alike, others are indexed and pinned."""
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
