"""`trace_model`: from any JAX function to a `Model`, by reading its program."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.model import Model, Output, Tap, Variables
from lopjax.tracing.constructed import Constructor, Make, read_constructor
from lopjax.tracing.interpret import make_setting, run_program
from lopjax.tracing.jaxprs import Block, Node
from lopjax.tracing.network import Network, Plan, check_parameters
from lopjax.tracing.own_rules import lost_rules
from lopjax.tracing.recognise import recognised
from lopjax.tracing.report import written
from lopjax.tracing.spaces import AN_INPUT, AN_OUTPUT, CLONEABLE, FIXED, Diagram, Space, cloned_variables, factors_of
from lopjax.tracing.stacks import own_view
from lopjax.tracing.verify import Verification, verify
from lopjax.wiring import Site, View, Wiring


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
    check_parameters(params, inputs)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
    network = Network(apply, shapes, dict(names or {}), tuple(fixed))
    network = network if make is not None else network.taken_apart(inputs)
    plan = network.plan(inputs)
    space_names = [space.name for space in plan.diagram.spaces]
    for kind, given in (("names", [v for v in (names or {}).values()]), ("fixed", fixed)):
        if strays := [name for name in given if name not in space_names]:
            raise ValueError(f"{kind}: no unit space {strays[0]!r}; the spaces are {space_names}")
    if len(set(space_names)) < len(space_names):
        raise ValueError(f"names={dict(names or {})}: two spaces would have one name; the spaces are {space_names}")
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
    models = _Models(network, inputs, init, constructor)
    model = models.make({})
    verification = verify(network, models.make, params, inputs) if check else None
    return Traced(model, plan.diagram, verification, _notes(plan), models.make)


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


@dataclass(eq=False)
class _Models:
    """The models of one network, by numbers of units."""

    network: Network
    inputs: Any
    init: Callable[[jax.Array], Any] | None
    constructor: Constructor | None = None

    def __post_init__(self) -> None:
        self.made: dict[tuple[tuple[str, int], ...], Model] = {}
        self.rules: dict[Node, bool] = {}

    def make(self, units: Mapping[str, int]) -> Model:
        """The model with other numbers of units in some spaces."""
        assert self.network.diagram is not None
        sizes = {space.name: space.size for space in self.network.diagram.spaces}
        changed = tuple(sorted((name, size) for name, size in units.items() if size != sizes[name]))
        if changed not in self.made:
            by_make = self.constructor is not None and bool(changed)
            self.made[changed] = self._constructed(dict(changed)) if by_make else self._make(dict(changed))
        return self.made[changed]

    def _constructed(self, units: dict[str, int]) -> Model:
        """The model that the user's constructor makes, refused unless it has the same wiring."""
        own = self.network
        assert self.constructor is not None
        assert own.diagram is not None
        apply, shapes = self.constructor.at(units, own.diagram)
        wide = Network(apply, shapes, own.names, own.fixed)
        widened = wide.plan(self.inputs).diagram
        if not own.diagram.agrees_with(widened):
            raise ValueError(f"make with {units}: the network that it makes has another wiring; widen without make")
        model = _Models(wide, self.inputs, self.init).make({})
        return model._replace(resize=lambda changed: self.make({**units, **changed}))

    def _make(self, units: dict[str, int]) -> Model:
        network, diagram = self.network, self.network.diagram
        assert diagram is not None
        plan = network.plan(self.inputs)
        if units and (lost := lost_rules(plan.sizes(units), self.rules)):
            raise ValueError(
                f"{lost[0].where} has a derivative rule of its own, which is not the derivative of what it computes "
                f"and is known at its own size only: a network with {units} would lose it; pass make= and sizes="
            )
        parts = make_view(network, diagram, units)
        view = own_view(network.levels, parts, _shapes(network, diagram, units)) if network.levels else parts
        known: dict[str, str | None] = {}
        activations = {name: recognised(plan.typing, site, known) for name, site in plan.sites.items()}
        spaces = {name: plan.atoms[site.leaf] for name, site in plan.sites.items()}
        wiring = make_wiring(diagram, units, {name: Site(spaces[name], activations[name]) for name in plan.sites})
        jitted = jax.jit(partial(_forward, network, units, wiring))

        def apply(
            variables: Variables,
            x: Any,
            train: bool = False,
            key: jax.Array | None = None,
            perturbations: Mapping[str, Tap] | None = None,
            dropout_rate: Any = None,
        ) -> Output:
            if strays := [site for site in perturbations or {} if site not in spaces]:
                raise ValueError(f"perturbations of unknown sites {strays}; the sites are {list(spaces)}")
            logits, taps = jitted(parts.merge(variables), x, dict(perturbations or {}))
            return Output(logits, variables, taps)

        def resize(changed: Mapping[str, int]) -> Model:
            for space in changed:
                wiring.size(space)
                if reason := wiring.why_not_cloneable(space):
                    raise ValueError(f"unit space {space!r} is {reason}: its size cannot be changed")
            return self.make({**units, **{space: int(size) for space, size in changed.items()}})

        shape = jnp.shape(self.inputs)[1:] if hasattr(self.inputs, "shape") else None
        is_float = shape is not None and jnp.issubdtype(self.inputs.dtype, jnp.inexact)
        init = partial(_init, network, view, wiring, units, self.init)
        return Model(init, apply, wiring, resize, input_shape=shape if is_float else None, view=view)


def _forward(network: Network, units: Mapping[str, int], wiring: Wiring, own: Any, x: Any, shifts: Any) -> Any:
    flat = jax.tree.leaves(own)
    plan = network.plan(x, [leaf.dtype for leaf in flat])
    sizes = plan.sizes(units)
    own_shifts = {
        name: Tap(
            tap.space,
            plan.sites[name].from_tap(tap.pre, sizes),
            plan.sites[name].from_tap(tap.post, sizes),
        )
        for name, tap in shifts.items()
    }
    setting = make_setting(sizes, plan.sites, own_shifts)
    outputs, recorded = run_program(setting, [*flat, *jax.tree.leaves(x)])
    logits = jax.tree.unflatten(plan.program.tree, outputs)
    kinds = dict(wiring.sites)
    taps = {}
    for name, (pre, post) in recorded.items():
        seen = plan.sites[name].to_tap(pre, sizes), plan.sites[name].to_tap(post, sizes)
        taps[name] = Tap(kinds[name].space, *seen, kinds[name].activation)
    return logits, taps


def _shapes(network: Network, diagram: Diagram, units: Mapping[str, int]) -> Any:
    """The tree of the parameters at given numbers of units, in shapes."""
    flat, structure = jax.tree.flatten(network.shapes)
    shapes = [layout.resized(units).shape for layout in diagram.layouts]
    return structure.unflatten(
        [jax.ShapeDtypeStruct(shape, leaf.dtype) for shape, leaf in zip(shapes, flat, strict=True)]
    )


def make_view(network: Network, diagram: Diagram, units: Mapping[str, int]) -> View:
    """The conversions between the user's tree and the pieces, at given numbers of units."""
    layouts = [layout.resized(units) for layout in diagram.layouts]
    structure = jax.tree.structure(network.shapes)
    has_collections = isinstance(network.shapes, Mapping) and "params" in network.shapes

    def split(tree: Any) -> Any:
        flat = structure.flatten_up_to(tree) if _is_whole(tree) else None
        nested: dict[str, Any] = {}
        if flat is None:
            flat = jax.tree.leaves(tree)
            chosen = [index for index, path in enumerate(network.paths) if path[0] == "params"]
        else:
            chosen = list(range(len(layouts)))
        for index, array in zip(chosen, flat, strict=True):
            for path, piece in zip(diagram.paths[index], layouts[index].split(array), strict=True):
                _put(nested, path, piece)
        return nested if _is_whole(tree) else nested["params"]

    def merge(tree: Any) -> Any:
        is_all = "params" in tree
        whole = tree if is_all else {"params": tree}
        arrays = []
        for paths, layout in zip(diagram.paths, layouts, strict=True):
            if is_all or paths[0][0] == "params":
                arrays.append(layout.merge([_get(whole, path) for path in paths]))
        if is_all or not has_collections:
            return structure.unflatten(arrays)
        return jax.tree.unflatten(jax.tree.structure(network.shapes["params"]), arrays)

    def _is_whole(tree: Any) -> bool:
        return not has_collections or (isinstance(tree, Mapping) and "params" in tree)

    return View(split, merge)


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _get(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def make_wiring(diagram: Diagram, units: Mapping[str, int], sites: Mapping[str, Site]) -> Wiring:
    """The wiring at given numbers of units."""
    inputs = [space for space in diagram.spaces if space.state == FIXED and space.reason == AN_INPUT]
    outputs = [space for space in diagram.spaces if space.state == FIXED and space.reason == AN_OUTPUT]
    between = [space for space in diagram.spaces if space not in inputs and space not in outputs]
    ordered = [*inputs, *between, *outputs]
    return Wiring(
        labels=diagram.labels,
        sizes=tuple((space.name, units.get(space.name, space.size)) for space in ordered),
        sites=tuple(sites.items()),
        fixed=frozenset(space.name for space in ordered if space.state == FIXED),
        coupled=frozenset(space.name for space in ordered if space.is_coupled and space.state == CLONEABLE),
        reasons=tuple(sorted((space.name, space.reason) for space in ordered if space.state != CLONEABLE)),
        above=diagram.above,
    )


def _init(
    network: Network,
    view: View,
    wiring: Wiring,
    units: Mapping[str, int],
    init: Callable[[jax.Array], Any] | None,
    key: jax.Array,
) -> Variables:
    """The user's own initialisation; without one, or for a wider network, generic numbers."""
    if init is not None and not units:
        return view.split(init(key))
    assert network.diagram is not None
    variables: dict[str, Any] = {}
    labels = dict(wiring.labels)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves(network.shapes)]
    for paths, layout, dtype in zip(network.diagram.paths, network.diagram.layouts, dtypes, strict=True):
        for path, shape in zip(paths, layout.resized(units).shapes(), strict=True):
            key, own = jax.random.split(key)
            if labels[path].reads():
                drawn = jax.random.normal(own, shape, dtype) / np.sqrt(labels[path].num_summed(shape))
            else:
                drawn = jax.random.uniform(own, shape, dtype, 0.5, 1.5)
            _put(variables, path, drawn)
    return variables
