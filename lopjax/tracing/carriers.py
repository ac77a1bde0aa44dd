"""Where the units of an operand are in what a step makes, if each entry of it depends on them unit by unit."""

from collections.abc import Callable, Iterable
from typing import Any

from lopjax.tracing.atoms import Atom, leaves
from lopjax.tracing.flow import Flow, Place, Step
from lopjax.tracing.pieces import piece_of, pieces
from lopjax.tracing.primitives import ELEMENTWISE, REDUCTIONS, WINDOWS

Carried = list[Place] | str
"""Where units are in what a step makes (nowhere, if it leaves them out); or why that cannot be said."""


def carried(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> Carried:
    """Follow the units of one operand through a step.

    Args:
        flow: the graph.
        step: that reads them.
        index: which operand they are in.
        place: where in it.
        leaf: the units; None where they are pinned.

    Returns:
        Places in the outputs, each entry of which depends on the operand by the entries of its own unit only; or the
        reason why there are none.
    """
    if step.is_choice:
        return [place._replace(value=step.outputs[0])]
    if step.is_opaque:
        return f"its units go through {step.node.where}, which is not looked into"
    if step.is_slicing:
        places = [] if place.axis == 0 else [place._replace(value=step.outputs[0], axis=place.axis - 1)]
        return places or f"{step.node.where} runs over its units"
    rule = _CARRIERS.get(step.node.name)
    if rule is None:
        return f"its units meet at {step.node.where}"
    moved = rule(flow, step, index, place, leaf)
    if moved is None:
        return f"its units meet at {step.node.where}"
    for each in moved:
        if not _is_one_axis(flow, each, leaf):
            return f"its units are twice on one axis at {step.node.where}"
    return moved


def _is_one_axis(flow: Flow, place: Place, leaf: Atom | None) -> bool:
    """Whether the entries of a place are the units once, not their products with themselves."""
    if leaf is None:
        return True
    axis = flow.typing.of(place.value)[place.axis]
    options = pieces(axis)
    if len(options) == 1:
        return leaves(axis).count(leaf) == 1
    inside = set(piece_of(axis, flow.shape(place.value)[place.axis])[place.start : place.stop].tolist())
    return len(inside) == 1 and options[inside.pop()].count(leaf) == 1


Rule = Callable[[Flow, Step, int, Place, Atom | None], list[Place] | None]


def _entrywise(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    output = step.outputs[index] if step.node.name == "optimization_barrier" else step.outputs[0]
    shape, given = flow.shape(output), flow.shape(place.value)
    is_along = len(shape) == len(given) and shape[place.axis] == given[place.axis]
    return [place._replace(value=output)] if is_along else None


def _onto(place: Place, output: int, axis: Any) -> list[Place] | None:
    return None if axis is None else [place._replace(value=output, axis=axis)]


def _left(axis: int, gone: Iterable[int]) -> int | None:
    """Number of an axis when others are gone."""
    gone = set(gone)
    return None if axis in gone else axis - sum(each < axis for each in gone)


def _transpose(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    return _onto(place, step.outputs[0], list(step.node.params["permutation"]).index(place.axis))


def _broadcast(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    if index:
        return None
    return _onto(place, step.outputs[0], step.node.params["broadcast_dimensions"][place.axis])


def _squeeze(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    rank = len(flow.shape(place.value))
    return _onto(place, step.outputs[0], _left(place.axis, (each % rank for each in step.node.params["dimensions"])))


def _reduction(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    return _onto(place, step.outputs[0], _left(place.axis, step.node.params["axes"]))


def _reshape(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    before, (output,) = flow.shape(place.value), step.outputs
    after = flow.shape(output)
    for axis, size in enumerate(after):
        if size == before[place.axis] and _product(after[:axis]) == _product(before[: place.axis]):
            return _onto(place, output, axis)
    is_whole = (place.start, place.stop) == (0, before[place.axis])
    if leaf is None or not is_whole or sum(leaf in leaves(axis) for axis in flow.typing.of(place.value)) != 1:
        return None
    having = [axis for axis, each in enumerate(flow.typing.of(output)) if leaf in leaves(each)]
    return [Place(output, having[0], 0, after[having[0]])] if len(having) == 1 else None


def _product(sizes: Iterable[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _slice(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    params, axis = step.node.params, place.axis
    if params["strides"] is not None and params["strides"][axis] != 1:
        return None
    return _cut(place, step.outputs[0], params["start_indices"][axis], params["limit_indices"][axis])


def _cut(place: Place, output: int, start: Any, stop: Any) -> list[Place]:
    """The part of a place that a slice of its axis takes."""
    low, high = max(place.start, start), min(place.stop, stop)
    return [Place(output, place.axis, low - start, high - start)] if low < high else []


def _split(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    if step.node.params["axis"] != place.axis:
        return [place._replace(value=output) for output in step.outputs]
    made, start = [], 0
    for output, size in zip(step.outputs, step.node.params["sizes"], strict=True):
        made += _cut(place, output, start, start + size)
        start += size
    return made


def _concatenate(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    along = step.node.params["dimension"]
    ahead = sum(flow.shape(value)[along] for value in step.inputs[:index]) if along == place.axis else 0
    return [place._replace(value=step.outputs[0], start=place.start + ahead, stop=place.stop + ahead)]


def _pad(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    low, high, interior = step.node.params["padding_config"][place.axis]
    if index or low < 0 or high < 0 or interior:
        return None
    return [place._replace(value=step.outputs[0], start=place.start + low, stop=place.stop + low)]


def _along_another(name: str) -> Rule:
    def rule(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
        along = step.node.params[name]
        if place.axis in (along if isinstance(along, tuple) else (along,)):
            return None
        return [place._replace(value=output) for output in step.outputs]

    return rule


def _window(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    params, (output,) = step.node.params, step.outputs
    passes = params["window_dimensions"][place.axis] == 1 and index == 0
    same = flow.shape(output)[place.axis] == flow.shape(place.value)[place.axis]
    return _onto(place, output, place.axis) if passes and same else None


def _dot(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    contracted, batch = step.node.params["dimension_numbers"]
    if place.axis in batch[index]:
        return _onto(place, step.outputs[0], list(batch[index]).index(place.axis))
    axis = _left(place.axis, (*contracted[index], *batch[index]))
    if axis is None:
        return None
    free_left = len(flow.shape(step.inputs[0])) - len(contracted[0]) - len(batch[0])
    return _onto(place, step.outputs[0], len(batch[0]) + axis + (free_left if index else 0))


def _convolution(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    numbers = step.node.params["dimension_numbers"]
    if step.node.params["batch_group_count"] != 1:
        return None
    if index == 1:
        return _onto(place, step.outputs[0], numbers.out_spec[1] if place.axis == numbers.rhs_spec[0] else None)
    (output,) = step.outputs
    channels, made = flow.shape(place.value)[numbers.lhs_spec[1]], flow.shape(output)[numbers.out_spec[1]]
    is_depthwise = step.node.params["feature_group_count"] == channels == made
    return _onto(place, output, numbers.out_spec[1] if is_depthwise and place.axis == numbers.lhs_spec[1] else None)


def _gather(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    numbers, axis = step.node.params["dimension_numbers"], place.axis
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    is_full = step.node.params["slice_sizes"][axis] == flow.shape(place.value)[axis]
    if index or axis in gone or axis in numbers.start_index_map or not is_full:
        return None
    kept = [each for each in range(len(flow.shape(place.value))) if each not in gone]
    return _onto(place, step.outputs[0], numbers.offset_dims[kept.index(axis)])


def _dynamic_slice(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    whole = step.node.params["slice_sizes"][place.axis] == flow.shape(place.value)[place.axis]
    return _onto(place, step.outputs[0], place.axis) if index == 0 and whole else None


def _dynamic_update(flow: Flow, step: Step, index: int, place: Place, leaf: Atom | None) -> list[Place] | None:
    size = {flow.shape(value)[place.axis] for value in (*step.inputs[:2], step.outputs[0])}
    return _onto(place, step.outputs[0], place.axis) if index < 2 and len(size) == 1 else None


_CARRIERS: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _entrywise),
    **dict.fromkeys((*REDUCTIONS, "argmax", "argmin"), _reduction),
    **dict.fromkeys(WINDOWS, _window),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _along_another("axis")),
    "sort": _along_another("dimension"),
    "rev": _along_another("dimensions"),
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "concatenate": _concatenate,
    "pad": _pad,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
}
