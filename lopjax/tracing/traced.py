"""`trace_model`: from any JAX function to a `Model`, by reading its program."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lopjax.model import Model, Variables
from lopjax.tracing.constructed import Make, read_constructor
from lopjax.tracing.jaxprs import Block, Node
from lopjax.tracing.models import Models
from lopjax.tracing.network import Network, Plan, check_parameters
from lopjax.tracing.report import written
from lopjax.tracing.spaces import Diagram, Space, cloned_variables, factors_of
from lopjax.tracing.verify import Verification, verify


@dataclass(frozen=True, eq=False)
class Traced:
    """A network whose wiring was read from its program.

    Attributes:
        model: a `Model`, on which everything in the library runs; its variables are the pieces.
        diagram: every unit space that parameters have, the labels of all arrays, and what could not be said of them.
        verification: the outcome of the test against the network at generic parameters; None if it was not run.
        notes: further remarks.
    """

    model: Model
    diagram: Diagram
    verification: Verification | None
    notes: tuple[str, ...]
    _make: Callable[[Mapping[str, int]], Model]

    @property
    def spaces(self) -> tuple[Space, ...]:
        """Every unit space that parameters have, with its state and the reason."""
        return self.diagram.spaces

    def split(self, params: Any) -> Any:
        """Convert the user's own parameters (or a tree like them) to the model's variables."""
        return self.model.view.split(params)

    def merge(self, variables: Any) -> Any:
        """Convert variables back to the user's own tree, bit for bit."""
        return self.model.view.merge(variables)

    def clone(self, params: Any, factors: int | Mapping[str, int]) -> tuple[Model, Variables]:
        """Repeat every unit of some spaces n times such that the function stays, by the divide rule or by a recipe.

        Args:
            params: the user's own parameters.
            factors: n for every space that can be cloned, or `{space: n}`.

        Returns:
            The wide model, and its variables.

        Raises:
            ValueError: a factor that is no positive integer, a space that cannot be cloned, or spaces that must have
                the same factor and have not.
        """
        copies, wiring = factors_of(self.spaces, factors), self.model.wiring
        wide = self._make({space: n * wiring.size(space) for space, n in copies.items()})
        return wide, cloned_variables(self.split(params), wiring, copies, self.spaces)

    def report(self) -> str:
        """Every unit space: its size and state, the arrays that have it, and why it cannot be cloned.

        And the arrays that name no site, the kernels that name no source, with the reasons.
        """
        return written(self.model.wiring, self.diagram, self.verification, self.notes)


def trace_model(
    apply: Callable[[Any, Any], Any],
    params: Any,
    inputs: Any,
    *,
    names: Mapping[str, str] | None = None,
    fixed: Sequence[str] = (),
    init: Callable[[jax.Array], Any] | None = None,
    make: Make | None = None,
    sizes: Mapping[str, int] | None = None,
    check: bool = True,
) -> Traced:
    """Read the wiring of a network from its program, without labels.

    Works for any function that JAX can trace: Flax (Linen, NNX), Equinox, Haiku, plain functions. By construction, the
    result is a subgroup of the network's symmetries: each primitive has a rule that preserves them, and a primitive
    without one pins the axes of its operands and results and records the reason. The result is also verified
    against the network itself.

    Args:
        apply: `apply(params, inputs)` -> outputs, an array or a tree of arrays, in eval mode.
        params: any tree of floating point arrays; shapes suffice. A mapping with a key `"params"` is treated as
            collections, such as Linen's variables.
        inputs: a batch of two or more, first axis; shapes suffice. An array or a tree of arrays.
        names: other names for spaces, `{name found: name}`.
        fixed: spaces (by their final names) that must not be cloned.
        init: `key -> params`; without it `model.init` draws generic numbers: normal with variance one over the number
            of terms for arrays that read a space, uniform on [0.5, 1.5] for all others.
        make: `make(**sizes) -> (apply, params)`, the network at other sizes, so that wider networks are built by your
            own code. Without it a wider network is the same program at other shapes.
        sizes: the arguments with which `make` builds this network, such as `{"width": 64}`; each must set different
            spaces.
        check: verify the wiring at generic parameters: a permutation and a cloning of all spaces at once, and whether
            gradients are equal at equal units. Compiles two programs.

    Returns:
        The model, with a report.

    Raises:
        ValueError: a function that cannot be traced, parameters that are not floating point numbers, inputs without a
            batch, an unknown name, or a wiring that the network contradicts (the message names the space).

    Example:
        >>> import jax.numpy as jnp
        >>> def apply(params, x):
        ...     return jnp.tanh(x @ params["w"] + params["b"]) @ params["head"]
        >>> params = {"w": jnp.ones((4, 6)), "b": jnp.ones(6), "head": jnp.ones((6, 3))}
        >>> traced = trace_model(apply, params, jnp.ones((2, 4)))
        >>> traced.model.wiring.cloneable
        ('w',)
    """
    if not callable(apply) or all(hasattr(apply, name) for name in ("init", "apply")):
        raise ValueError(
            f"apply is a {type(apply).__name__}: must be a function of parameters and inputs, such as a module's apply"
        )
    check_parameters(params, inputs)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
    network = Network(apply, shapes, dict(names or {}), tuple(fixed))
    network = network if make is not None else network.taken_apart(inputs)
    plan = network.plan(inputs)
    _check_names(plan.diagram, names or {}, fixed)
    if (make is None) != (sizes is None):
        raise ValueError("make and sizes go together: make(**sizes) must be the network that is traced")
    constructor = None
    if make is not None:
        constructor = read_constructor(
            make,
            sizes or {},
            plan.diagram,
            lambda f, p: Network(f, p, network.names, network.fixed).plan(inputs).diagram,
        )
    models = Models(network, inputs, init, constructor)
    model = models.make({})
    verification = verify(network, models.make, params, inputs) if check else None
    return Traced(model, plan.diagram, verification, _notes(plan), models.make)


def _check_names(diagram: Diagram, names: Mapping[str, str], fixed: Sequence[str]) -> None:
    """Refuse names of spaces that the network does not have, and one name for two spaces."""
    names_of_spaces = [space.name for space in diagram.spaces]
    for argument, given in (("names", list(names.values())), ("fixed", fixed)):
        if strays := [name for name in given if name not in names_of_spaces]:
            raise ValueError(f"{argument}: no unit space {strays[0]!r}; the spaces are {names_of_spaces}")
    if len(set(names_of_spaces)) < len(names_of_spaces):
        raise ValueError(f"names={dict(names)}: two spaces would have one name; the spaces are {names_of_spaces}")


def _notes(plan: Plan) -> tuple[str, ...]:
    floats = {aval.dtype for aval in plan.program.avals if jnp.issubdtype(getattr(aval, "dtype", int), jnp.floating)}
    notes = []
    if len(floats) > 1:
        notes.append(
            f"values of types {sorted(map(str, floats))} are mixed: what is checked holds to the coarsest of them; "
            "give parameters, inputs and constants one type"
        )
    notes += [f"{node.where}: sites inside {what} are not observed" for node, what in _unobserved(plan.program.block)]
    return tuple(notes)


def _unobserved(block: Block) -> Iterator[tuple[Node, str]]:
    """Loops and branches whose activations have no fixed number: steps that are not counted, branches not taken."""
    for node in block.nodes:
        if node.name == "while":
            yield node, "a loop of unknown length"
        elif node.name == "cond" and node.params.get("branches_platforms") is None:
            yield node, "a branch that is not always taken"
        elif node.name != "cond":
            for inner in node.blocks:
                yield from _unobserved(inner)
