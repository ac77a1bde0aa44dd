"""Where unit spaces are written and observed: at activations and at the sums of a residual stream.

An *activation* is what computes entry by entry from one value and is not linear: the largest such stretch behind a
value, up to the point through which all that follows passes. A *residual sum* adds to a value what descends from it;
the stream that it makes is observed where it starts, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from lopjax.tracing.atoms import Atom, Axis, expand, find
from lopjax.tracing.flow import has_own_derivative
from lopjax.tracing.jaxprs import Block, Node, walk, words
from lopjax.tracing.primitives import ELEMENTWISE
from lopjax.tracing.types import Typing
from lopjax.tracing.wide import Sizes

BENDS = words("tanh logistic erf erfc max min clamp select_n sin cos log1p atan sinh asinh")
"""Primitives that make a stretch an activation; an exponential or a square alone belongs to a norm or a softmax."""

_OF_NORMS = frozenset(["rsqrt", "sqrt", "log"])


@dataclass(eq=False)
class FoundSite:
    """A site, in the numbers of one program.

    Attributes:
        pre: value of the pre-activation.
        post: value of the activation; the same for a residual sum.
        nodes: the nodes that compute one from the other.
        leaf: the units.
        axis: the value's axis that they are on.
        start: their first entry along it; more than 0 where others lie in front, as in concatenated features.
        stop: behind their last entry.
        whole: that axis, all of it.
        split: the factors of the value's axes, each of one atom or more; of that axis, those of the stretch.
        order: the factors with the batch first and the units last.
        depth: number of enclosing loops, whose steps count as further samples.
    """

    pre: int
    post: int
    nodes: frozenset[Node]
    leaf: Atom
    axis: int
    start: int
    stop: int
    whole: Axis
    split: tuple[tuple[Atom, ...], ...]
    order: tuple[int, ...]
    depth: int = 0

    def to_tap(self, value: Any, sizes: Sizes) -> Any:
        """From the program's axes to `(batch, ..., units)`."""
        steps, (start, stop) = value.shape[: self.depth], self._stretch(sizes)
        value = value[(*(slice(None),) * (self.depth + self.axis), slice(start, stop))]
        value = value.reshape(*steps, *(sizes.axis(factor) for factor in self.split))
        order = [self.depth + index for index in self.order]
        return value.transpose(order[0], *range(self.depth), *order[1:])

    def from_tap(self, value: Any, sizes: Sizes) -> Any:
        """Back to the program's axes; zeros for what else is on the axis of the units."""
        order = [self.depth + index for index in self.order]
        value = value.transpose(np.argsort([order[0], *range(self.depth), *order[1:]]))
        (start, stop), shape = self._stretch(sizes), list(sizes.shape(self.pre))
        rest = (start, shape[self.axis] - stop)
        shape[self.axis] = stop - start
        value = value.reshape(*value.shape[: self.depth], *shape)
        around = [(0, 0)] * value.ndim
        around[self.depth + self.axis] = rest
        return jnp.pad(value, around) if any(rest) else value

    def _stretch(self, sizes: Sizes) -> tuple[int, int]:
        return sizes.offset(self.whole, self.start), sizes.offset(self.whole, self.stop)


def find_sites(typing: Typing, spaces: Mapping[Atom, str], batch: Axis) -> list[FoundSite]:
    """All sites, in the order of the program.

    Args:
        typing: types of the program.
        spaces: names of the spaces of the free leaves.
        batch: the first axis of the inputs.
    """
    recorded = list(_in_block(typing, typing.program.block, spaces, expand(batch), 0))
    seen = {spaces[site.leaf] for site in recorded}
    recorded += [site for site in _reads(typing, spaces, expand(batch)) if spaces[site.leaf] not in seen]
    calls = list(filter(has_own_derivative, typing.program.custom_calls))
    recorded = [site for site in recorded if all(_is_whole(call, site) for call in calls)]
    made = (value for node in walk(typing.program.block) if not node.is_call for value in node.outputs)
    order = {value: index for index, value in enumerate(made)}
    return sorted(recorded, key=lambda site: order.get(site.post, -1))


def sites_at_one_sample(
    typing: Typing, known: Typing, sites: Mapping[str, FoundSite], spaces: Mapping[Atom, str]
) -> dict[str, FoundSite]:
    """The sites of a program at a batch of one, whose axis no type shows, by those of the same program at a larger one.

    Args:
        typing: at a batch of one.
        known: at the larger batch.
        sites: sites of that, by name.
        spaces: spaces of the free leaves at a batch of one.

    Returns:
        The sites, by name; none where the two programs differ by more than a length.
    """
    old, new = (list(walk(each.program.block)) for each in (known, typing))
    if [(n.name, n.inputs, n.outputs) for n in old] != [(n.name, n.inputs, n.outputs) for n in new]:
        return {}
    now, made = dict(zip(old, new, strict=True)), {}
    for name, site in sites.items():
        axes, shape = list(typing.of(site.pre)), typing.program.shape(site.pre)
        whole = axes[site.axis]
        part = [each for start, _, each in _parts(whole, 0, shape[site.axis]) if start == site.start]
        axes[site.axis] = part[0] if part else ()
        split = tuple(factor for axis in axes for factor in _factors(axis))
        if len(split) != len(site.split) or not split[site.order[-1]] or split[site.order[0]]:
            return {}
        leaf, nodes = split[site.order[-1]][0], frozenset(now[node] for node in site.nodes)
        if leaf not in spaces:
            return {}
        made[name] = replace(site, nodes=nodes, leaf=leaf, whole=whole, split=split)
    return made


def _is_whole(call: Node, site: FoundSite) -> bool:
    """Whether a call with a derivative rule of its own is outside a site, or a part of it as a whole: not opened."""
    nodes = {node for node in walk(call.blocks[0]) if not node.is_call}
    inner = {value for node in nodes for value in node.outputs} - set(call.outputs)
    is_apart = not (site.nodes & nodes or {site.pre, site.post} & inner)
    return is_apart or (nodes <= site.nodes and not {site.pre, site.post} & inner)


def _reads(typing: Typing, spaces: Mapping[Atom, str], batch: Sequence[Atom]) -> Iterator[FoundSite]:
    """For each space, the value that its first reader reads, since heads have no activation."""
    seen: set[str] = set()
    for node in _flat(typing.program.block):
        is_data = [value in typing.data for value in node.inputs]
        if node.name != "dot_general" or is_data[0] == is_data[1]:
            continue
        index = is_data.index(True)
        value = node.inputs[index]
        summed = [typing.of(value)[axis] for axis in node.params["dimension_numbers"][0][index]]
        read = {find(atom) for axis in summed for atom in expand(axis)}
        for site in _sites(typing, value, value, frozenset(), spaces, batch, 0):
            if site.leaf in read and spaces[site.leaf] not in seen:
                seen.add(spaces[site.leaf])
                yield site


def _flat(block: Block) -> Iterator[Node]:
    """The nodes of a block, with each call replaced by its nodes."""
    for node in block.nodes:
        if node.is_call:
            yield from _flat(node.blocks[0])
        else:
            yield node


@dataclass
class _Stretches:
    """Values computed entry by entry from one value: per root, its members in order."""

    root: dict[int, int] = field(default_factory=dict)
    members: dict[int, list[tuple[int, Node]]] = field(default_factory=dict)


def _in_block(
    typing: Typing, block: Block, spaces: Mapping[Atom, str], batch: Sequence[Atom], depth: int
) -> Iterator[FoundSite]:
    nodes = list(_flat(block))
    stretches = _stretches(typing, nodes)
    position = {value: index for index, node in enumerate(nodes) for value in node.outputs}
    readers: dict[int, list[Node]] = {}
    for node in nodes:
        for value in node.inputs:
            readers.setdefault(value, []).append(node)
    placed: list[tuple[int, FoundSite]] = []
    for root, members in stretches.members.items():
        chosen = _post(typing, root, members, readers, set(block.outputs))
        if chosen is not None:
            post, inside = chosen
            sites = _sites(typing, root, post, frozenset(inside), spaces, batch, depth)
            placed += [(position[post], site) for site in sites]
    for value in _streams(typing, nodes):
        if not any(value in (site.pre, site.post) for _, site in placed):
            sites = _sites(typing, value, value, frozenset(), spaces, batch, depth)
            placed += [(position[value], site) for site in sites]
    for index, node in enumerate(nodes):
        if node.name == "scan":
            placed += [(index, site) for site in _in_block(typing, node.blocks[0], spaces, batch, depth + 1)]
    placed.sort(key=lambda each: each[0])
    yield from (site for _, site in placed)


def _stretches(typing: Typing, nodes: Sequence[Node]) -> _Stretches:
    program, stretches, known = typing.program, _Stretches(), set(typing.program.constants)
    for node in nodes:
        if all(value in known for value in node.inputs) and not node.blocks:
            known.update(node.outputs)
            continue
        if node.name not in ELEMENTWISE or len(node.outputs) != 1:
            continue
        (out,) = node.outputs
        roots = {stretches.root.get(value, value) for value in node.inputs if value not in known}
        if len(roots) != 1 or out not in typing.data:
            continue
        (root,) = roots
        if program.shape(root) == program.shape(out) and jnp.issubdtype(program.avals[root].dtype, jnp.floating):
            stretches.root[out] = root
            stretches.members.setdefault(root, []).append((out, node))
    return stretches


def _post(
    typing: Typing,
    root: int,
    members: Sequence[tuple[int, Node]],
    readers: Mapping[int, list[Node]],
    outputs: set[int],
) -> tuple[int, list[Node]] | None:
    """The first value after all nonlinear nodes through which all later dependence passes, and the nodes up to it."""
    own = {root, *(member for member, _ in members)}
    bends = [_bends(typing, node, own) for _, node in members]
    if not any(bends):
        return None
    last_bend = max(index for index, bend in enumerate(bends) if bend)
    if any(node.name in _OF_NORMS for _, node in members[last_bend:]):
        return None
    inside = {node for _, node in members}
    for index in range(last_bend, len(members)):
        value = members[index][0]
        before = {root, *(member for member, _ in members[:index])}
        later = [node for _, node in members[index + 1 :]]
        if any(before & set(node.inputs) for node in later):
            continue
        nodes = [node for _, node in members[: index + 1]]
        strays = [
            member
            for member in before - {root}
            if member in outputs or any(node not in inside for node in readers.get(member, []))
        ]
        if not set(strays) & _bent(members, bends):
            return value, nodes
    return None


def _bends(typing: Typing, node: Node, own: set[int]) -> bool:
    """Whether a node makes a stretch an activation; `max(x, -inf)` and a fixed mask do not."""
    if node.name in ("max", "min"):
        numbers = [typing.program.scalar(value) for value in node.inputs if value not in own]
        return not any(number is not None and np.isinf(number) for number in numbers)
    if node.name == "select_n":
        return node.inputs[0] in own
    return node.name in BENDS


def _bent(members: Sequence[tuple[int, Node]], bends: Sequence[bool]) -> set[int]:
    """The values after a nonlinear node."""
    bent: set[int] = set()
    for (value, node), bend in zip(members, bends, strict=True):
        if bend or any(each in bent for each in node.inputs):
            bent.add(value)
    return bent


def _sites(
    typing: Typing,
    pre: int,
    post: int,
    nodes: frozenset[Node],
    spaces: Mapping[Atom, str],
    batch: Sequence[Atom],
    depth: int,
) -> Iterator[FoundSite]:
    """One site for each unit space on the axes of a value that has a batch."""
    shape, axes = typing.program.shape(pre), typing.of(pre)
    first = [index for index, axis in enumerate(axes) if batch and expand(axis)[: len(batch)] == list(batch)]
    if len(first) != 1:
        return
    for index, axis in enumerate(axes):
        for start, stop, part in _parts(axis, 0, shape[index]):
            split = [_factors(part if other == index else each) for other, each in enumerate(axes)]
            if index != first[0]:
                split[first[0]] = [tuple(batch), *_factors(tuple(expand(axes[first[0]])[len(batch) :]), is_rest=True)]
            flat = [factor for each in split for factor in each]
            place, begin = (sum(map(len, split[:other])) for other in (first[0], index))
            for at in range(begin, begin + len(split[index]) if index != first[0] else begin):
                if flat[at] and flat[at][0] in spaces and flat.count(flat[at]) == 1:
                    others = [other for other in range(len(flat)) if other not in (place, at)]
                    order = (place, *others, at)
                    yield FoundSite(pre, post, nodes, flat[at][0], index, start, stop, axis, tuple(flat), order, depth)


def _factors(axis: Axis, is_rest: bool = False) -> list[tuple[Atom, ...]]:
    """The units on an axis, and what is pinned between them; of an axis of length 1 one factor without atoms."""
    made: list[tuple[Atom, ...]] = []
    for atom in expand(axis):
        is_open = bool(made) and made[-1][0].reason is not None
        if atom.reason is not None and is_open:
            made[-1] += (atom,)
        else:
            made.append((atom,))
    return made or ([] if is_rest else [()])


def _parts(axis: Axis, start: int, length: int) -> Iterator[tuple[int, int, Axis]]:
    """The stretches of an axis that is a direct sum, with their first and last entries; else the axis."""
    atoms = expand(axis)
    if len(atoms) != 1 or atoms[0].parts is None:
        yield start, start + length, axis
        return
    for size, part in atoms[0].parts:
        yield from _parts(part, start, size)
        start += size


def _streams(typing: Typing, nodes: Sequence[Node]) -> list[int]:
    """What a residual stream carries: what it starts with, and each sum with what descends from it by a contraction.

    A start that comes from outside the block is left out: it is the carry of a loop, whose sums are sites. A stream is
    the same before and after a change of type, so that a program has the same sites at every precision.
    """
    ancestors, contracted = dict[int, int](), dict[int, int]()
    streams: dict[int, None] = {}
    uncast, avals = dict[int, int](), typing.program.avals
    made = {value for node in nodes for value in node.outputs}
    for node in nodes:
        if node.name == "convert_element_type" and jnp.issubdtype(avals[node.inputs[0]].dtype, jnp.floating):
            uncast[node.outputs[0]] = uncast.get(node.inputs[0], node.inputs[0])
        before = after = 0
        for value in node.inputs:
            before |= ancestors.get(value, 0) | (1 << value if value in typing.data else 0)
            after |= contracted.get(value, 0)
        if node.name in ("add", "add_any") and all(value in typing.data for value in node.inputs):
            a, b = (uncast.get(value, value) for value in node.inputs)
            starts = [x for x, y in ((a, b), (b, a)) if contracted.get(y, 0) >> x & 1]
            streams |= dict.fromkeys(value for value in (*starts, *node.outputs) if starts and value in made)
        if node.name in ("dot_general", "conv_general_dilated") or node.blocks:
            after = before
        for value in node.outputs:
            ancestors[value], contracted[value] = before, after
    return list(streams)
