"""From a labelled Linen module to a `Model`: the only module that handles Flax's variable collections."""

from collections.abc import Mapping
from functools import cache, reduce
from operator import getitem
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lopjax.arguments.integers import as_integer
from lopjax.arguments.misfits import in_a_sentence
from lopjax.model import Model, NotResizableError, Output, Tap, Variables
from lopjax.models.labels import Coordinates, Coupling, Labelled, PermutableOnly, Tapped
from lopjax.wiring import Path, Site, View, Wiring, build_wiring, make_view, tree_from_paths, tree_paths

STATE_COLLECTIONS = ("params", "batch_stats")


def from_linen(
    module: nn.Module,
    input_shape: tuple[int, ...],
    fixed: tuple[str, ...] = (),
    input_dtype: jax.typing.DTypeLike = float,
) -> Model:
    """Make a `Model` from a Linen module whose arrays are labelled.

    The module is called as `module(x, train=..., dropout_rate=...)` and returns logits. It creates every parameter and
    every batch statistic (collection `"batch_stats"`) through `labelled`, and applies activations through `tap`.

    Args:
        module: a labelled module. Its fields must be hashable. If it has a field `sizes`, a tuple of
            `(space, units)`, the model can be resized (and so cloned into a wider one).
        input_shape: shape of one input, without the batch axis.
        fixed: unit spaces that must not be cloned, in addition to inputs and outputs.
        input_dtype: dtype of the inputs; an integer type for tokens. The model then has no `input_shape` from which
            random inputs could be made.

    Raises:
        ValueError: an array without a label (all are listed), or contradictory labels.
    """
    refusal = f"input_shape={input_shape!r}: must be positive integers, one input without the batch axis"
    shape = tuple(as_integer(size, 1, refusal) for size in input_shape)
    return _from_linen(module, shape, tuple(fixed), jnp.issubdtype(input_dtype, jnp.floating))


@cache
def _from_linen(module: nn.Module, input_shape: tuple[int, ...], fixed: tuple[str, ...], is_float: bool) -> Model:
    def init_boxed(key: jax.Array) -> Any:
        inputs = jnp.zeros((1, *input_shape), float if is_float else jnp.int32)
        with in_a_sentence(
            f"the module does not take one input of shape {input_shape}, as an array of shape {inputs.shape}",
            "input_shape must be that of an input without the batch axis, and the module must take any number of them",
        ):
            return module.init({"params": key}, inputs, train=False, dropout_rate=None)

    scopes: dict[str, Path] = {}

    def shapes(key: jax.Array) -> Any:
        variables = init_boxed(key)
        scopes.update(_tap_scopes(variables.get("taps", {})))
        return variables

    boxed = jax.eval_shape(shapes, jax.random.key(0))
    wiring, view = _read_wiring(boxed, scopes, fixed)

    def init(key: jax.Array) -> Variables:
        variables = nn.meta.unbox(init_boxed(key))
        return view.split({name: dict(variables[name]) for name in STATE_COLLECTIONS if name in variables})

    def apply(
        variables: Variables,
        x: jax.Array,
        train: bool = False,
        key: jax.Array | None = None,
        perturbations: Mapping[str, Tap] | None = None,
        dropout_rate: jax.typing.ArrayLike | None = None,
    ) -> Output:
        own = dict(view.merge(variables))
        collections = dict(own)
        if perturbations:
            collections["perturbations"] = _nest(perturbations, scopes)
        logits, updates = module.apply(
            collections,
            x,
            train=train,
            dropout_rate=dropout_rate,
            rngs=None if key is None else {"dropout": key},
            mutable=["taps", "batch_stats"],
        )
        taps = {site: _follow(updates["taps"], path) for site, path in scopes.items()}
        state = {name: updates[name] for name in updates if name != "taps"}
        after = view.split({**own, **state})
        return Output(logits, {**variables, **{name: after[name] for name in state}}, taps)

    def resize(sizes: Mapping[str, int]) -> Model:
        return _from_linen(_resized(module, sizes, wiring), input_shape, fixed, is_float)

    return Model(init, apply, wiring, resize, input_shape=input_shape if is_float else None, view=view)


def _read_wiring(boxed: Mapping[str, Any], scopes: Mapping[str, Path], fixed: tuple[str, ...]) -> tuple[Wiring, View]:
    """The wiring of a module, and the view in which its axes are pure, from its boxed initial variables' shapes."""
    arrays = {name: boxed[name] for name in STATE_COLLECTIONS if name in boxed}
    boxes = jax.tree.leaves(arrays, is_leaf=_is_box)
    paths = tree_paths(jax.tree.map(lambda _: 0, arrays, is_leaf=_is_box))
    labels = {path: box.label if _is_box(box) else None for path, box in zip(paths, boxes, strict=True)}
    shapes = {path: tuple(nn.meta.unbox(box).shape) for path, box in zip(paths, boxes, strict=True)}
    taps = {site: _follow(boxed["taps"], path).tap for site, path in scopes.items()}
    sites = {name: Site(tap.space, tap.activation) for name, tap in taps.items()}
    coupled = [each.space for each in _notes(boxed, "couplings", Coupling)]
    permutable = {each.space: each.reason for each in _notes(boxed, "permutable", PermutableOnly)}
    coordinates = [each.space for each in _notes(boxed, "coordinates", Coordinates)]
    view, labels, shapes = make_view(labels, shapes)
    return build_wiring(labels, shapes, sites, fixed, coupled, permutable, coordinates), view


def _notes(boxed: Mapping[str, Any], collection: str, kind: type) -> list[Any]:
    """Declarations about spaces that the module makes at initialisation."""
    return jax.tree.leaves(boxed.get(collection, {}), is_leaf=lambda node: isinstance(node, kind))


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, Labelled)


def _tap_scopes(taps: Mapping[str, Any]) -> dict[str, Path]:
    """The module path at which each site is tapped, in the order of the forward pass, ending in its name."""
    paths = tree_paths(taps, _is_tapped)
    nodes = jax.tree.leaves(taps, is_leaf=_is_tapped)
    scopes: dict[str, Path] = {}
    for path, _ in sorted(zip(paths, nodes, strict=True), key=lambda pair: pair[1].moment):
        if path[-1] in scopes:
            raise ValueError(f"sites tapped twice: {[path[-1]]}; give every site of the network its own name")
        scopes[path[-1]] = path
    return scopes


def _is_tapped(node: Any) -> bool:
    return isinstance(node, Tapped)


def _follow(tree: Any, path: Path) -> Any:
    return reduce(getitem, path, tree)


def _nest(perturbations: Mapping[str, Tap], scopes: Mapping[str, Path]) -> dict[str, Any]:
    """Put the perturbation of each site into the scope where the module looks for it."""
    unknown = [site for site in perturbations if site not in scopes]
    if unknown:
        raise ValueError(f"perturbations of unknown sites {unknown}; the sites are {list(scopes)}")
    return tree_from_paths({scopes[site]: shift for site, shift in perturbations.items()})


def _resized(module: nn.Module, sizes: Mapping[str, int], wiring: Wiring) -> nn.Module:
    current = getattr(module, "sizes", None)
    if current is None:
        raise NotResizableError(
            f"{type(module).__name__} has no field `sizes` (a tuple of (space, units)) to set: "
            "build the module with the new sizes yourself and pass it to from_linen"
        )
    new = dict(current)
    for space, size in sizes.items():
        wiring.size(space)
        if space in wiring.fixed or space not in dict(current):
            free = [each for each in dict(current) if each not in wiring.fixed]
            raise ValueError(f"unit space {space!r} is fixed: its size cannot be changed; those that can are {free}")
        new[space] = as_integer(size, 1, f"size of {space!r} = {size!r}: must be a positive integer")
    return module.clone(sizes=tuple(new.items()))
