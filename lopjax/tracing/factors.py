"""Axes as lists of factors, followed through steps that only put entries in another order."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import jax.numpy as jnp

from lopjax.tracing.flow import Flow, Step
from lopjax.tracing.jaxprs import words
from lopjax.tracing.view import runs


class NotPlainError(Exception):
    """Why a kernel is not plain (see `lopjax.tracing.plain_kernels`)."""


@dataclass(eq=False)
class Factor:
    """A factor of an axis, followed through the program.

    Attributes:
        size: number of entries.
    """

    size: int


Axes = tuple[tuple[Factor, ...], ...]
"""The factors of each axis of a value, row-major; axes of length 1 have none."""


def own_factors(flow: Flow, value: int) -> list[Factor]:
    """The factors of an array of parameters, in the order of its entries."""
    own = [run for axis in flow.typing.of(value) for run in runs(axis)]
    if any(isinstance(run, list) for run in own):
        raise NotPlainError("its units stand beside others on one axis")
    return [Factor(prod(leaf.size for leaf in run)) for run in own if not isinstance(run, list)]


LAYOUTS = words("transpose broadcast_in_dim squeeze reshape convert_element_type copy")


def is_layout(step: Step) -> bool:
    """Whether a step only puts entries in another order."""
    return not (step.is_opaque or step.is_slicing or step.is_choice) and step.node.name in LAYOUTS


def without_ones(factors: Iterable[Factor]) -> list[Factor]:
    """The factors that have more than one entry."""
    return [factor for factor in factors if factor.size > 1]


def grouped(factors: Iterable[Factor], shape: Sequence[int]) -> Axes:
    """Factors in the order of entries, as the axes of a shape."""
    rest, made = without_ones(factors), []
    for size in shape:
        own: list[Factor] = []
        while prod(factor.size for factor in own) < size and rest:
            own.append(rest.pop(0))
        if prod(factor.size for factor in own) != size:
            raise NotPlainError("a reshape cuts through its axes")
        made.append(tuple(own))
    return tuple(made)


def laid_out(flow: Flow, step: Step, axes: Axes) -> Axes:
    """The axes of what a step makes that only puts entries in another order."""
    params, shape = step.node.params, flow.shape(step.outputs[0])
    if step.node.name == "transpose":
        return tuple(axes[axis] for axis in params["permutation"])
    if step.node.name == "convert_element_type" and not jnp.issubdtype(params["new_dtype"], jnp.floating):
        raise NotPlainError(f"it is rounded at {step.node.where}")
    if prod(shape) != prod(factor.size for axis in axes for factor in axis):
        raise NotPlainError(f"it is repeated at {step.node.where}")
    # New axes of a broadcast have length 1 here, so the order of entries stays: dimensions are in ascending order.
    return grouped([factor for axis in axes for factor in axis], shape)


def only_reader(flow: Flow, value: int) -> tuple[Step, int]:
    """The only step that reads a value, and which of its operands the value is."""
    readers = flow.readers.get(value, [])
    if len(readers) != 1:
        raise NotPlainError(f"it, or its product, is used {len(readers)} times")
    return readers[0]
