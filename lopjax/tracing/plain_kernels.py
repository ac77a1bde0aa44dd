"""Kernels that alone make a pre-activation: the ground of radii, and of the closed form of unit blocks.

A kernel is plain if its product with the activations of a site (or the network's input), plus at most biases, *is* the
pre-activation of its site, or the output. That is read off the program: nothing but steps that put entries in another
order lies between. Axes are followed as lists of factors, so that what is claimed holds entry by entry.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from lopjax.tracing.claims import Followed
from lopjax.tracing.contractions import Read, convolved, dot
from lopjax.tracing.factors import (
    Axes,
    Factor,
    NotPlainError,
    grouped,
    is_layout,
    laid_out,
    only_reader,
    own_factors,
    without_ones,
)
from lopjax.tracing.flow import Flow, Step
from lopjax.wiring import In, Label, Path, Window, standard_order


class Plain(NamedTuple):
    """What a plain kernel reads.

    Attributes:
        source: a site, or the space of the inputs.
        window: window of a convolution.
        step: that contracts.
    """

    source: str
    window: Window | None
    step: Step


@dataclass(eq=False)
class Kernels:
    """Where kernels are looked at.

    Attributes:
        followed: the graph with its sites.
        labels: labels of every piece of every array, with sites.
        whole: path of the arrays that are one piece, by value.
        network_input: the network's only input; None if it has several.
        spaces: the unit space of every site.
        own_rules: the sites with a derivative rule of their own, of which nothing is known.
    """

    followed: Followed
    labels: Mapping[Path, Label]
    whole: Mapping[int, Path]
    network_input: int | None
    spaces: Mapping[str, str]
    own_rules: frozenset[str] = frozenset()

    @property
    def flow(self) -> Flow:
        """The graph."""
        return self.followed.flow


def with_sources(kernels: Kernels) -> tuple[dict[Path, Label], dict[Path, str]]:
    """Labels of the plain kernels, with source and window; and why other kernels that have a site are not plain."""
    plain: dict[Path, Plain] = {}
    reasons: dict[Path, str] = {}
    for value, path in kernels.whole.items():
        label = kernels.labels[path]
        if label.site is None or not label.reads():
            continue
        try:
            plain[path] = _plain(kernels, value, label)
        except NotPlainError as why:
            reasons[path] = str(why)
    for path in _not_alone(kernels, plain):
        reasons[path] = f"what {plain[path].source} carries is used without a kernel, too"
        del plain[path]
    made = {path: replace(kernels.labels[path], source=each.source, window=each.window) for path, each in plain.items()}
    return made, reasons


def _not_alone(kernels: Kernels, plain: Mapping[Path, Plain]) -> list[Path]:
    """Plain kernels that seem to be all that reads a source, while its activations are used past them, too.

    Each claim is true by itself; all together would say that the function depends on the source through them only.
    """
    refused = []
    for site in dict.fromkeys(each.source for each in plain.values() if each.source in kernels.spaces):
        own = [path for path, each in plain.items() if each.source == site]
        space = kernels.spaces[site]
        readers = {path for path, label in kernels.labels.items() if space in label.reads()}
        is_only = list(kernels.spaces.values()).count(space) == 1
        if is_only and readers <= set(own) and _leads_past(kernels, site, [plain[path].step for path in own]):
            refused += own
    return refused


def _leads_past(kernels: Kernels, site: str, steps: Sequence[Step]) -> bool:
    flow = kernels.flow
    todo = [flow.known_as(kernels.followed.sites[site].post)]
    while todo:
        value = todo.pop()
        if value in flow.outputs:
            return True
        for step, _ in flow.readers.get(value, ()):
            if step in steps:
                continue
            if not is_layout(step):
                return True
            todo += step.outputs
    return False


def _plain(kernels: Kernels, value: int, label: Label) -> Plain:
    order = standard_order(label)
    if order is None:
        raise NotPlainError("it does not have one axis that reads and one that writes")
    flow = kernels.flow
    own = own_factors(flow, value)
    kernel = tuple(own[index] for index in order)
    step, place, axes = _to_contraction(flow, value, grouped(own, flow.shape(value)))
    read = _source(kernels, step.inputs[1 - place], label.reads()[0])
    given = (read.axes, axes) if place == 1 else (axes, read.axes)
    if step.node.name == "dot_general":
        window, (made, tap) = None, dot(step, given, place, kernel, read)
    else:
        window, (made, tap) = convolved(flow, step, given, place, kernel, read)
    _check_target(kernels, step.outputs[0], made, tap, label)
    if own := [name for name in (read.source, label.site) if name in kernels.own_rules]:
        raise NotPlainError(f"{own[0]} has a derivative rule of its own")
    return Plain(read.source, window, step)


def offsets_of(kernels: Kernels, value: int, inputs: frozenset[str]) -> list[int]:
    """Axes of a kernel along which it reads positions, or has offsets; features are on one axis only.

    Everything about an input is pinned, so that types do not tell its positions from its features.

    Args:
        kernels: where it is looked at.
        value: an array that is one piece.
        inputs: the spaces of the network's inputs.
    """
    label = kernels.labels[kernels.whole[value]]
    reads = [axis.index for axis in label.unit_axes(inputs, is_read=True)]
    num_free = len(label.input_axes) - len(reads)
    if num_free > 1 or len(reads) + num_free < 2:
        return []
    own = own_factors(kernels.flow, value)
    try:
        step, place, axes = _to_contraction(kernels.flow, value, grouped(own, kernels.flow.shape(value)))
    except NotPlainError:
        return []
    params = step.node.params
    if step.node.name == "dot_general":
        summed = {factor for axis in params["dimension_numbers"][0][place] for factor in axes[axis]}
        positions = [index for index in reads if own[index] in summed]
        return positions if num_free else positions[:-1]
    features = axes[params["dimension_numbers"].rhs_spec[1]] if place == 1 else ()
    return [index for index in reads if own[index] not in features] if features else []


def _to_contraction(flow: Flow, value: int, axes: Axes) -> tuple[Step, int, Axes]:
    """The contraction with data that a kernel goes to, which operand it is there, and its axes."""
    while True:
        step, place = only_reader(flow, value)
        if is_layout(step):
            axes, value = laid_out(flow, step, axes), step.outputs[0]
            continue
        is_product = step.node.name in ("dot_general", "conv_general_dilated")
        if not is_product or step.inputs[1 - place] not in flow.typing.data:
            raise NotPlainError(f"it is changed at {step.node.where}")
        return step, place, axes


def _source(kernels: Kernels, value: int, space: str) -> Read:
    """The site or input whose entries, in another order, a value holds."""
    flow, steps = kernels.flow, []
    sites = kernels.followed.sites
    while True:
        here = [
            name for name, site in sites.items() if flow.known_as(site.post) == value and kernels.spaces[name] == space
        ]
        if here or value == kernels.network_input:
            break
        step = flow.made.get(value)
        if step is None or not is_layout(step):
            raise NotPlainError(f"what it reads comes from {'an input' if step is None else step.node.where}")
        steps.append(step)
        value = step.inputs[0]
    shape = flow.shape(value)
    if here:
        site = sites[here[0]]
        if site.depth or (site.start, site.stop) != (0, shape[site.axis]):
            raise NotPlainError("it reads units inside a loop, or beside others on one axis")
        own = [Factor(prod(atom.size for atom in factor)) for factor in site.split]
        tap = tuple(own[index] for index in site.order)
    else:
        own = [Factor(size) for size in shape]
        tap = tuple(own)
    axes = grouped(own, shape)
    for step in reversed(steps):
        axes = laid_out(flow, step, axes)
    return Read(here[0] if here else space, bool(here), axes, tap)


# --- What stands between a product and its target --------------------


def _check_target(kernels: Kernels, value: int, axes: Axes, tap: Sequence[Factor], label: Label) -> None:
    """Refuse a product that is not, but for biases, the pre-activation of its label's site, or the output.

    Args:
        kernels: where kernels are looked at.
        value: number of the product in the graph.
        axes: its axes.
        tap: its factors in the order of a tap, units last.
        label: label of the kernel.

    Raises:
        NotPlainError: something changes the product, or its axes lie otherwise.
    """
    flow, site = kernels.flow, kernels.followed.sites.get(str(label.site))
    target = flow.outputs[0] if site is None else flow.known_as(site.pre)
    while value != target:
        step, place = only_reader(flow, value)
        if step.node.name == "add" and _is_bias(kernels, step.inputs[1 - place], label):
            pass
        elif is_layout(step):
            axes = laid_out(flow, step, axes)
        else:
            raise NotPlainError(f"its product is changed at {step.node.where}")
        value = step.outputs[0]
    factors = [factor for axis in axes for factor in axis]
    if site is None:
        order = factors
    else:
        if (site.start, site.stop) != (0, flow.shape(target)[site.axis]):
            raise NotPlainError("it writes units beside others on one axis")
        sizes = [prod(atom.size for atom in factor) for factor in site.split]
        if [size for size in sizes if size > 1] != [factor.size for factor in factors]:
            raise NotPlainError("its product has axes that are cut otherwise")
        every = iter(factors)
        split = [next(every) if size > 1 else None for size in sizes]
        order = [factor for factor in (split[index] for index in site.order) if factor is not None]
    if order != without_ones(tap):
        raise NotPlainError("its product has axes in another order")


def _is_bias(kernels: Kernels, value: int, label: Label) -> bool:
    """Whether a value is a vector of the same site, one entry per unit, that is added nowhere else."""
    readers = kernels.flow.readers
    while value not in kernels.whole:
        step = kernels.flow.made.get(value)
        if step is None or not is_layout(step) or len(readers[value]) != 1:
            return False
        value = step.inputs[0]
    if len(readers[value]) != 1:
        return False
    bias = kernels.labels[kernels.whole[value]]
    return bias.site == label.site and len(bias.axes) == 1 and not isinstance(bias.axes[0], In)
