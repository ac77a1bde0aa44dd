"""Which site all that an array does passes, by post-domination: what the frozen certificates rest on.

From an array its units are followed through the program, unit by unit, up to the first site on every way. If all ways
end at the same one, the array's slice of a unit has no gradient where the unit is dead there. Where units meet (a norm
over them, a contraction) before they come to a site, or come to several, nothing is claimed, and the reason is kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from lopjax.tracing.atoms import Atom, Axis, find
from lopjax.tracing.carriers import carried
from lopjax.tracing.flow import Flow, Place, Step, make_flow
from lopjax.tracing.jaxprs import walk, words
from lopjax.tracing.pieces import piece_of
from lopjax.tracing.sites import FoundSite
from lopjax.tracing.types import Typing
from lopjax.tracing.view import Run, runs_of_pieces
from lopjax.wiring import Label, Out, Path

ADDED, MULTIPLIED = False, True
_NEW = "new"
"""Of what depends on parameters only, it is not yet said whether it is added or multiplies."""


class Ended(NamedTuple):
    """Where an array's units were followed to.

    Attributes:
        site: the site that all ways end at; the output space for those that end at the outputs; None if there is none.
        scales: whether they multiply what else goes there (True), are added to it (False), or neither is certain.
        reason: why there is no site.
    """

    site: str | None
    scales: bool | None = None
    reason: str = ""


@dataclass(eq=False)
class Followed:
    """The graph of a program with its sites, in which arrays are followed.

    Attributes:
        flow: the graph.
        sites: by name.
        by_value: the closed sites whose pre-activation a value is.
        open_sites: why a value that has a site does not end there: what reads it past the activation.
        origins: the parameters that a value without data stems from.
    """

    flow: Flow
    sites: Mapping[str, FoundSite]
    by_value: dict[int, list[tuple[str, FoundSite]]] = field(default_factory=dict)
    origins: dict[int, frozenset[int]] = field(default_factory=dict)


def follow(typing: Typing, sites: Mapping[str, FoundSite], num_parameters: int) -> Followed:
    """The graph of a program, with the sites that are closed: nothing goes past their activation."""
    followed = Followed(make_flow(typing), sites)
    flow, origins = followed.flow, followed.origins
    for name, site in sites.items():
        if _is_closed(flow, site):
            followed.by_value.setdefault(flow.known_as(site.pre), []).append((name, site))
    origins |= {value: frozenset({value}) for value in typing.program.block.inputs[:num_parameters]}
    for step in dict.fromkeys(flow.made.values()):
        if not any(value in typing.data for value in step.outputs):
            stems = frozenset[int]().union(*(origins.get(value, frozenset()) for value in step.inputs))
            origins |= dict.fromkeys(step.outputs, stems)
    return followed


def _is_closed(flow: Flow, site: FoundSite) -> bool:
    """Whether all that a site's pre-activation does goes through its activation."""
    if not site.nodes:
        return True
    post = flow.known_as(site.post)
    # All that its nodes make, not only what they read: a multiple of the pre-activation may be read by others alone.
    own = {flow.known_as(value) for node in site.nodes for value in node.outputs} | {flow.known_as(site.pre)}
    return all(
        value not in flow.outputs and all(_is_inside(step, site) for step, _ in flow.readers.get(value, ()))
        for value in own - {post}
    )


def _is_inside(step: Step, site: FoundSite) -> bool:
    plain = [step.node] if not step.node.blocks else [n for n in walk(step.node.blocks[0]) if not n.blocks]
    return not (step.is_slicing or step.is_choice) and all(node in site.nodes for node in plain)


# --- Following the units of one array --------------------


def end_of(followed: Followed, start: Place, leaf: Atom | None, output: str | None) -> Ended:
    """Follow units up to the first site on every way.

    Args:
        followed: the graph.
        start: where they are in an array.
        leaf: the units; None where they are pinned, as those of the outputs are.
        output: name of the space of the outputs, if these are units of it.
    """
    flow, ends, kinds = followed.flow, dict[str, None](), set()
    todo: list[tuple[Place, Any]] = [(start, _NEW)]
    seen = set(todo)
    while todo:
        place, kind = todo.pop()
        if name := _site_at(followed, place, leaf):
            ends[name], _ = None, kinds.add(kind)
            continue
        if place.value in flow.outputs:
            if output is None or len(flow.outputs) > 1 or place.axis != len(flow.shape(place.value)) - 1:
                return Ended(None, reason="its units reach the outputs past every site")
            ends[output], _ = None, kinds.add(kind)
        for step, index in flow.readers.get(place.value, ()):
            made = carried(flow, step, index, place, leaf)
            if isinstance(made, str):
                return Ended(None, reason=made)
            new = [(each, _kind(followed, step, index, kind)) for each in made]
            todo += [each for each in new if each not in seen]
            seen.update(new)
    if len(ends) != 1:
        names = [name for name in followed.sites if name in ends]
        what = f"its units pass several sites: {', '.join(names)}" if ends else "the output does not depend on it"
        return Ended(None, reason=what)
    scales = kinds.pop() if len(kinds) == 1 else None
    return Ended(next(iter(ends)), scales if isinstance(scales, bool) else None)


def _site_at(followed: Followed, place: Place, leaf: Atom | None) -> str | None:
    """The closed site whose units these are."""
    for name, site in followed.by_value.get(place.value, ()):
        is_own = leaf is not None and find(site.leaf) is leaf and site.axis == place.axis
        if is_own and site.start <= place.start and place.stop <= site.stop:
            return name
    return None


def _kind(followed: Followed, step: Step, index: int, kind: Any) -> Any:
    """Whether what goes through a step is still (or is now) added to what else goes there, or multiplies it."""
    flow, name = followed.flow, step.node.name
    data = flow.typing.data
    others = [value for place, value in enumerate(step.inputs) if place != index]
    meets_data = any(value in data for value in others)
    if step.is_choice:
        return kind
    if name in _REARRANGING or step.is_slicing:
        return ADDED if kind == _NEW and meets_data else kind
    if step.inputs[index] in data:
        if name in ("add", "sub", "add_any", "neg"):
            return kind
        is_scaled = name == "mul" or (name == "div" and index == 0)
        return kind if is_scaled and not meets_data and _do_not_read(followed, others) else None
    if not any(value in data for value in step.outputs):
        known = flow.typing.program.constants
        is_linear = name in ("add", "sub", "neg") or (name in ("mul", "div") and all(v in known for v in others))
        return kind if is_linear else None
    return _ON_MEETING.get(name) if kind == _NEW else None


def _do_not_read(followed: Followed, values: Sequence[int]) -> bool:
    """Whether values stem from vectors alone, as the scale of a norm does."""
    stems = frozenset[int]().union(*(followed.origins.get(value, frozenset()) for value in values))
    return all(len(followed.flow.shape(value)) <= 1 for value in stems)


_REARRANGING = words(
    "transpose broadcast_in_dim squeeze reshape slice split concatenate pad convert_element_type reduce_sum copy "
    "dynamic_update_slice"
)
_ON_MEETING = {
    **dict.fromkeys(("add", "sub", "add_any", "dot_general", "conv_general_dilated", "gather"), ADDED),
    "mul": MULTIPLIED,
}


# --- All arrays --------------------


class UnitsOf(NamedTuple):
    """One axis of a piece of an array.

    Attributes:
        place: where its units are in the array.
        leaf: the units; None if they are pinned, or the axis has none.
    """

    place: Place | None
    leaf: Atom | None


def places_of(flow: Flow, value: int) -> Iterator[list[UnitsOf]]:
    """For every piece of an array, in the order of its view: where the units of each of its axes are."""
    axes = flow.typing.of(value)
    per_axis = [list(runs_of_pieces((axis,))) for axis in axes]
    for chosen in product(*(range(len(each)) for each in per_axis)):
        piece = []
        for index, choice in enumerate(chosen):
            stretch = _stretch(axes[index], flow.shape(value)[index], choice)
            for run in per_axis[index][choice]:
                place = None if stretch is None else Place(value, index, *stretch)
                piece.append(UnitsOf(place, _leaf(run)))
        yield piece


def _leaf(run: Run) -> Atom | None:
    return find(run[0]) if len(run) == 1 and run[0].reason is None else None


def _stretch(axis: Axis, length: int, choice: int) -> tuple[int, int] | None:
    """First entry of a piece of an axis, and the one behind its last; None if others lie between."""
    inside = np.flatnonzero(piece_of(axis, length) == choice)
    if not inside.size or inside[-1] - inside[0] + 1 != inside.size:
        return None
    return int(inside[0]), int(inside[-1]) + 1


def with_sites(
    followed: Followed, values: Sequence[int], labels: Sequence[Sequence[tuple[Path, Label]]]
) -> tuple[dict[Path, Label], dict[Path, str]]:
    """Labels with the site that all their array does passes, and the reasons of those that have none.

    Args:
        followed: the graph.
        values: the parameters.
        labels: labels of the pieces of each.
    """
    made, reasons = {}, {}
    for value, pieces in zip(values, labels, strict=True):
        for (path, label), axes in zip(pieces, places_of(followed.flow, value), strict=True):
            ended = _of_piece(followed, label, axes)
            scales = ended.scales if path[0] == "params" else None
            made[path] = replace(label, site=ended.site, scales=scales)
            if ended.site is None:
                reasons[path] = ended.reason
    return made, reasons


def _of_piece(followed: Followed, label: Label, axes: list[UnitsOf]) -> Ended:
    """The end of the first axis that has one."""
    reason = "it writes no units"
    for axis, (place, leaf) in zip(label.axes, axes, strict=True):
        if not isinstance(axis, Out):
            continue
        # What is pinned may be the outputs, or read to them.
        output = axis.space if leaf is None else None
        if label.writes().count(axis.space) > 1:
            reason = "it writes the same units along two axes"
        elif place is None:
            reason = "its units alternate with others along one axis"
        else:
            ended = end_of(followed, place, leaf, output)
            if ended.site is not None:
                return ended
            reason = ended.reason
    return Ended(None, reason=reason)
