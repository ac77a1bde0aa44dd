"""What is read of one program, at one shape of its inputs, and whether another reading of it confirms the first."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.activations import Activation
from lopjax.tracing.atoms import Atom, find
from lopjax.tracing.cloning import Cloning
from lopjax.tracing.jaxprs import Program
from lopjax.tracing.recognise import is_double, recognised
from lopjax.tracing.sites import FoundSite
from lopjax.tracing.spaces import CLONEABLE, FIXED, PERMUTABLE, Diagram
from lopjax.tracing.types import Typing
from lopjax.tracing.wide import Sizes


class Plan(NamedTuple):
    """A program at one shape of inputs, and the findings about it.

    Attributes:
        program: the nodes.
        typing: the structure of the axes of every value.
        cloning: which leaves can be cloned.
        diagram: the parameters' spaces, layouts and labels.
        atoms: the space of every free leaf of a parameter.
        sites: by name, in the order of the forward pass.
    """

    program: Program
    typing: Typing
    cloning: Cloning
    diagram: Diagram
    atoms: Mapping[Atom, str]
    sites: Mapping[str, FoundSite]

    def sizes(self, units: Mapping[str, int]) -> Sizes:
        """The sizes of the program's axes with other numbers of units."""
        changed = {
            atom: units[name] for atom, name in self.atoms.items() if units.get(name, atom.size) != find(atom).size
        }
        return Sizes(self.typing, changed, self.cloning.growing)


def unconfirmed(first: Plan, second: Plan) -> str:
    """The first claim about a network that does not hold at other shapes of its inputs, in words; empty if all hold.

    A program may ask for the size of its batch. What is claimed is claimed of every batch, so a second reading must
    find the same axes, spaces with as much freedom, the same sites with the same activations, and every site and source
    that an array names. It may find more. Where a batch of one hides the sites, nothing is observed, so of sites
    nothing is claimed.

    Args:
        first: the reading that the claims are from.
        second: the other one.
    """
    reasons = [_of_axes(first.diagram, second.diagram), _of_spaces(first.diagram, second.diagram)]
    if second.sites or not first.sites:
        reasons += [_of_sites(first, second), _of_labels(first.diagram, second.diagram)]
    return next((each for reason in reasons for each in reason), "")


def _of_axes(first: Diagram, second: Diagram) -> Iterator[str]:
    if not first.agrees_with(second):
        yield "arrays have other axes"


_FREEDOM = {FIXED: 0, PERMUTABLE: 1, CLONEABLE: 2}


def _of_spaces(first: Diagram, second: Diagram) -> Iterator[str]:
    by_name = {space.name: space for space in second.spaces}
    for space in first.spaces:
        other = by_name[space.name]
        if _FREEDOM[other.state] < _FREEDOM[space.state]:
            yield f"unit space {space.name!r} is {other.state} and not {space.state} ({other.reason})"
        elif space.state == CLONEABLE and other.is_coupled and not space.is_coupled:
            yield f"something is averaged over the units of {space.name!r}"
        elif space.recipe is not None and other.state != CLONEABLE and other.recipe != space.recipe:
            yield f"unit space {space.name!r} is cloned otherwise"


def _of_sites(first: Plan, second: Plan) -> Iterator[str]:
    if strays := sorted(first.sites.keys() ^ second.sites.keys()):
        yield f"the sites are {list(second.sites)} and not {list(first.sites)} ({strays[0]})"
        return
    texts: dict[str, str | None] = {}
    for name, site in first.sites.items():
        with jax.ensure_compile_time_eval():  # a larger batch is first seen when `apply` is compiled for it
            known, new = (recognised(plan.typing, plan.sites[name], texts) for plan in (first, second))
            values = [_values(each, plan, name) for each, plan in ((known, first), (new, second))]
        is_same = known == new if isinstance(known, str) or isinstance(new, str) else _are_close(*values)
        if first.atoms[site.leaf] != second.atoms[second.sites[name].leaf] or not is_same:
            yield f"site {name!r} has another activation"
    above = dict(first.diagram.above)
    for name, sites in second.diagram.above:
        if strays := set(sites) - set(above[name]):
            yield f"site {name!r} depends on {min(strays)!r}"


_POINTS = np.linspace(-6.0, 6.0, 49)


def _values(activation: str | Activation, plan: Plan, name: str) -> np.ndarray | None:
    """Values of an activation without a name, in the site's own precision; None if it has arrays inside."""
    if isinstance(activation, str):
        return None
    double = is_double(plan.typing, plan.sites[name])
    try:
        with jax.enable_x64(double):
            return np.asarray(activation(jnp.asarray(_POINTS, jnp.float64 if double else jnp.float32)))
    except (TypeError, ValueError, KeyError):
        return None


def _are_close(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.allclose(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)


def _of_labels(first: Diagram, second: Diagram) -> Iterator[str]:
    theirs = dict(second.labels)
    for path, label in first.labels:
        other = theirs[path]
        if label.site is not None and other.site != label.site:
            yield f"what {'/'.join(path)} does does not all pass the site {label.site!r}"
        elif label.site is not None and label.scales is not None and other.scales != label.scales:
            yield f"{'/'.join(path)} is not {'multiplied with' if label.scales else 'added to'} what its site has"
        elif label.source is not None and (other.source, other.window) != (label.source, label.window):
            yield f"{'/'.join(path)} does not alone make a pre-activation from {label.source!r} in the same way"
