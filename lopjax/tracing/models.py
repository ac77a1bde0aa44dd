"""The models of one traced network, at any numbers of units: its wiring, its view, its forward pass."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.model import Model, Output, Tap, Variables
from lopjax.tracing.constructed import Constructor
from lopjax.tracing.interpret import make_setting, run_program
from lopjax.tracing.jaxprs import Node
from lopjax.tracing.network import Network
from lopjax.tracing.own_rules import lost_rules
from lopjax.tracing.recognise import recognised
from lopjax.tracing.spaces import AN_INPUT, AN_OUTPUT, CLONEABLE, FIXED, Diagram
from lopjax.tracing.stacks import own_view
from lopjax.wiring import Site, View, Wiring


@dataclass(eq=False)
class Models:
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
        model = Models(wide, self.inputs, self.init).make({})
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
        parts = _make_view(network, diagram, units)
        view = own_view(network.levels, parts, _shapes(network, diagram, units)) if network.levels else parts
        known: dict[str, str | None] = {}
        activations = {name: recognised(plan.typing, site, known) for name, site in plan.sites.items()}
        spaces = {name: plan.atoms[site.leaf] for name, site in plan.sites.items()}
        wiring = _make_wiring(diagram, units, {name: Site(spaces[name], activations[name]) for name in plan.sites})
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
    """Outputs and taps of the traced program at given sizes: `Model.apply`, compiled.

    Args:
        network: the traced network.
        units: by space, another number of units than the program's.
        wiring: its wiring.
        own: the user's own arrays, of those sizes.
        x: inputs.
        shifts: by site, a `Tap` of what is added to pre- and post-activations.
    """
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


def _make_view(network: Network, diagram: Diagram, units: Mapping[str, int]) -> View:
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


def _make_wiring(diagram: Diagram, units: Mapping[str, int], sites: Mapping[str, Site]) -> Wiring:
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
    """The user's own initialisation; without one, or for a wider network, generic numbers.

    Args:
        network: the traced network.
        view: its view.
        wiring: its wiring.
        units: by space, another number of units than the program's.
        init: the user's `key -> parameters`, if there is one.
        key: random key.
    """
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
