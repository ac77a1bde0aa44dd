"""A function of parameters and inputs, traced once for every shape of its inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.arguments.numbers import check_numbers
from lopjax.tracing.atoms import Atom
from lopjax.tracing.claims import follow, with_sites
from lopjax.tracing.cloning import infer_cloning
from lopjax.tracing.flow import sites_above
from lopjax.tracing.jaxprs import Program, is_symbolic, read_program
from lopjax.tracing.plain_kernels import Kernels, offsets_of, with_sources
from lopjax.tracing.plans import Plan, unconfirmed
from lopjax.tracing.recognise import has_own_rule
from lopjax.tracing.sites import FoundSite, find_sites, sites_at_one_sample
from lopjax.tracing.spaces import AN_INPUT, Diagram, describe
from lopjax.tracing.stacks import Level, find_cuts, num_free
from lopjax.tracing.types import Typing, infer_types
from lopjax.wiring import Path

_MOST_LEVELS = 3


@dataclass(eq=False)
class Network:
    """The user's arguments, and the plans made so far.

    Attributes:
        apply: `apply(params, inputs) -> outputs`.
        shapes: shapes of the parameters.
        names: other names for some spaces.
        fixed: spaces that must not be cloned.
        plans: by the shapes and types of what they are for.
        diagram: diagram of the first plan, with sites and sources; every other plan must confirm what it claims.
        levels: the stacks that were taken apart; `shapes` are those of their parts.
    """

    apply: Callable[[Any, Any], Any]
    shapes: Any
    names: Mapping[str, str]
    fixed: Sequence[str]
    plans: dict[Any, Plan] = field(default_factory=dict)
    diagram: Diagram | None = None
    levels: tuple[Level, ...] = ()

    def taken_apart(self, inputs: Any) -> "Network":
        """The same network with stacks of layers, and of what is fused, as parameters of their own."""
        network = self
        for _ in range(_MOST_LEVELS):
            typing, number = network.plan(inputs).typing, len(network.paths)
            cuts = find_cuts(typing, number)
            if not cuts:
                break
            function = network.levels[-1].unrolled if network.levels else network.apply
            level = Level(function, network.shapes, cuts, typing)
            wider = Network(self.apply, level.part_shapes, self.names, self.fixed, levels=(*network.levels, level))
            if num_free(wider.plan(inputs).typing, len(wider.paths)) <= num_free(typing, number):
                break
            network = wider
        return network

    def parts(self, params: Any) -> Any:
        """The tree of the parameters that the program has, from the user's."""
        for level in self.levels:
            params = level.parts(params, level.part_shapes)
        return params

    @property
    def paths(self) -> list[Path]:
        """Paths of the parameters; the first entry is the collection."""
        return parameter_paths(self.shapes)

    def plan(self, inputs: Any, dtypes: Sequence[Any] | None = None) -> Plan:
        """The plan for inputs of one shape and parameters of given types."""
        flat, structure = jax.tree.flatten(self.shapes)
        dtypes = [leaf.dtype for leaf in flat] if dtypes is None else list(dtypes)
        given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), inputs)
        leaves, tree = jax.tree.flatten(given)
        key = (tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves), tuple(map(str, dtypes)), _precision())
        if key not in self.plans:
            params = [jax.ShapeDtypeStruct(leaf.shape, dtype) for leaf, dtype in zip(flat, dtypes, strict=True)]
            self.plans[key] = self._make(structure.unflatten(params), given)
        return self.plans[key]

    def _make(self, params: Any, inputs: Any) -> Plan:
        program = trace(self.levels[-1].unrolled if self.levels else self.apply, params, inputs)
        number = len(jax.tree.leaves(params))
        typing = infer_types(program, number)
        cloning = infer_cloning(typing, number)
        diagram, atoms = describe(typing, cloning, self.paths, self.names, self.fixed)
        sites = _named_sites(typing, atoms, number)
        first = next(iter(self.plans.values()), None)
        if not sites and first is not None:
            sites = sites_at_one_sample(typing, first.typing, first.sites, atoms)
        diagram = claimed(typing, diagram, sites, {name: atoms[site.leaf] for name, site in sites.items()})
        plan = Plan(program, typing, cloning, diagram, atoms, sites)
        if self.diagram is None or first is None:
            self.diagram = diagram
        elif reason := unconfirmed(first, plan):
            shapes = [leaf.shape for leaf in jax.tree.leaves(inputs)]
            raise ValueError(
                f"the wiring of this network depends on its inputs: for those of shapes {shapes}, {reason}; call "
                "trace_model with inputs like these"
            )
        return plan._replace(diagram=self.diagram)


def _precision() -> bool:
    return jnp.result_type(float) == jnp.float64


def _named_sites(typing: Typing, atoms: Mapping[Atom, str], number: int) -> dict[str, FoundSite]:
    """Sites named after their space, numbered if it has several; none if a batch of one hides the batch axis."""
    inputs = typing.program.block.inputs[number:]
    batch = next((typing.of(value)[0] for value in inputs if typing.of(value) and typing.of(value)[0]), None)
    if batch is None:
        return {}
    found_sites = find_sites(typing, atoms, batch)
    of_space: dict[str, int] = {}
    named = {}
    for site in found_sites:
        space = atoms[site.leaf]
        index = of_space[space] = of_space.get(space, -1) + 1
        named[f"{space}:{index}" if index else space] = site
    return named


def claimed(typing: Typing, diagram: Diagram, sites: Mapping[str, FoundSite], spaces: Mapping[str, str]) -> Diagram:
    """A diagram whose labels say which site their arrays pass, and what plain kernels read.

    Args:
        typing: types of the program.
        diagram: labels without sites.
        sites: by name.
        spaces: the unit space of every site.
    """
    values, given = inputs_of(typing, len(diagram.paths))
    followed, labels = follow(typing, sites, len(values)), dict(diagram.labels)
    pieces = [[(path, labels[path]) for path in paths] for paths in diagram.paths]
    whole = {value: own[0][0] for value, own in zip(values, pieces, strict=True) if len(own) == 1}
    own_rules = frozenset(name for name, site in sites.items() if has_own_rule(typing, site))
    kernels = Kernels(followed, labels, whole, given[0] if len(given) == 1 else None, spaces, own_rules)
    of_inputs = frozenset(space.name for space in diagram.spaces if space.reason == AN_INPUT)
    diagram = diagram.without_axes({whole[value]: offsets_of(kernels, value, of_inputs) for value in whole})
    labels = dict(diagram.labels)
    pieces = [[(path, labels[path]) for path in paths] for paths in diagram.paths]
    labels, no_site = with_sites(followed, values, pieces)
    plain, no_source = with_sources(replace(kernels, labels=labels))
    ordered = tuple((path, plain.get(path, labels[path])) for path, _ in diagram.labels)
    above = sites_above(followed.flow, {name: (site.pre, site.post) for name, site in sites.items()})
    unsaid = dict(no_site=tuple(no_site.items()), no_source=tuple(no_source.items()))
    return replace(diagram, labels=ordered, above=tuple(above.items()), **unsaid)


def inputs_of(typing: Typing, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The parameters of a program, and the network's inputs."""
    inputs = typing.program.block.inputs
    return inputs[:number], inputs[number:]


def parameter_paths(tree: Any) -> list[Path]:
    """Paths of all arrays as strings; collections are kept if there are any, otherwise all are in `"params"`."""
    keyed, _ = jax.tree_util.tree_flatten_with_path(tree)
    paths = [tuple(_word(key) for key in path) or ("array",) for path, _ in keyed]
    has_collections = isinstance(tree, Mapping) and "params" in tree
    paths = paths if has_collections else [("params", *path) for path in paths]
    if len(set(paths)) < len(paths):
        raise ValueError(
            f"parameters whose paths are the same as text: {sorted({'/'.join(p) for p in paths if paths.count(p) > 1})}"
        )
    return paths


def _word(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def trace(apply: Callable[[Any, Any], Any], params: Any, inputs: Any) -> Program:
    """The program of a function at given shapes.

    Raises:
        ValueError: Python code needs the value of an array, or the outputs are not arrays.
    """
    try:
        return read_program(apply, params, inputs)
    except Exception as error:
        if is_symbolic(error):
            raise ValueError(
                "the network cannot be traced: Python control flow looks at the value of an array "
                f"({str(error).splitlines()[0]}); write it with jnp.where or jax.lax.cond"
            ) from error
        seen = error.__cause__ or error
        if isinstance(seen, TypeError) and "valid JAX type" in str(seen):
            raise ValueError(
                f"the network's outputs must be arrays, or trees of arrays: {str(seen).splitlines()[0]}; let apply "
                "return arrays only"
            ) from error
        raise


def check_parameters(params: Any, inputs: Any) -> None:
    """Refuse parameters that cannot be trained and inputs without a batch axis.

    Raises:
        ValueError: parameters or inputs that cannot be used; the message names the array and says what to do.
    """
    leaves = list(zip(parameter_paths(params), jax.tree.leaves(params), strict=True))
    if not leaves:
        raise ValueError("params has no arrays: pass the parameters that apply(params, inputs) takes")
    for path, leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                f"parameter {'/'.join(path)} is of type {jnp.result_type(leaf)}: parameters must be floating point "
                "numbers; close over the others (equinox: eqx.partition(module, eqx.is_inexact_array); flax.nnx: "
                "nnx.split(module, (nnx.Param, nnx.BatchStat), ...))"
            )
    check_numbers("inputs", inputs)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]
    if not any(shapes):
        raise ValueError(f"inputs of shapes {shapes}: the first axis must be the batch; pass a batch of inputs")
    batch = next(shape[0] for shape in shapes if shape)
    if batch < 2:
        raise ValueError(f"a batch of {batch}: which axis is the batch cannot be seen; pass two inputs or more")


def generic(shape: Sequence[int], rng: np.random.Generator, fan: int, is_positive: bool) -> np.ndarray:
    """Distinct nonzero numbers whose sums over `fan` terms have a size of about 1."""
    if is_positive:
        return rng.uniform(0.5, 1.5, shape)
    return 1.5 * rng.normal(size=shape) / np.sqrt(fan)
