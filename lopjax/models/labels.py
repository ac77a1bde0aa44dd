"""Axis labels and taps for Linen modules, which a model's author writes next to each array and each activation."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import flax.linen as nn
import jax
from flax import struct

from lopjax.activation_checks import check_activation
from lopjax.activations import Activation, activation_key
from lopjax.activations import activation as activation_function
from lopjax.model import Tap
from lopjax.wiring import Axis, CompoundLabel, In, Label, Out, Product, Sum, Window
from lopjax.wiring.labels import axis_factors, axis_parts


class Labelled(struct.PyTreeNode, nn.meta.AxisMetadata[Any]):
    """Box around an array at initialisation that carries its label; `from_linen` removes it."""

    value: Any
    label: Label | CompoundLabel = struct.field(pytree_node=False)

    def unbox(self) -> Any:
        """The array."""
        return self.value

    def replace_boxed(self, val: Any) -> "Labelled":
        """The same label around another array."""
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Labelled":
        """A lifted transform (`nn.scan`, `nn.vmap`) stacks the array: the new axis does not index units."""
        axes = list(self.label.axes)
        axes.insert(index, None)
        return self.replace(label=replace(self.label, axes=tuple(axes)))

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Labelled":
        """The inverse of `add_axis`."""
        axes = list(self.label.axes)
        axes.pop(index)
        return self.replace(label=replace(self.label, axes=tuple(axes)))


def labelled(
    init: Callable[..., jax.Array],
    *axes: Axis | Sum | Product,
    site: str | Mapping[str, str] | None = None,
    source: str | Mapping[str, str] | None = None,
    window: Window | None = None,
    scales: bool | None = None,
) -> Callable[..., Any]:
    """Wrap an initialiser so that the array it creates carries its wiring label.

    Args:
        init: initialiser `(key, shape, dtype) -> array` (for a variable: `(shape, dtype) -> array`).
        axes: `In(space)`, `Out(space)` or `None` for each axis of the array. If several spaces share an axis, their
            sum, `Out("gate") + Out("value")`; if an axis is flattened, the product, `Out("heads") * 64`.
        site: see `lopjax.wiring.Label`; for a sum `{space: site}`.
        source: see `lopjax.wiring.Label`; for a sum `{space: source}`.
        window: see `lopjax.wiring.Label`.
        scales: see `lopjax.wiring.Label`.
    """
    if any(isinstance(axis, Sum | Product) for axis in axes):
        sites, sources = _by_space(axes, Out, site), _by_space(axes, In, source)
        label: Label | CompoundLabel = CompoundLabel(axes, sites, sources, window, scales)
    elif isinstance(site, Mapping) or isinstance(source, Mapping):
        raise ValueError(f"site={site!r}, source={source!r}: one name each for an array without a sum among its axes")
    else:
        label = Label(axes, site, source, window, scales)  # type: ignore[arg-type]
    return lambda *args: Labelled(value=init(*args), label=label)


def _by_space(axes: tuple[Any, ...], side: type, given: str | Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """`(space, name)` for the spaces that an array reads or writes; one name stands for all of them."""
    if given is None or isinstance(given, Mapping):
        return tuple((given or {}).items())
    factors = [factor for axis in axes for part in axis_parts(axis) for factor in axis_factors(part)]
    return tuple(dict.fromkeys((factor.space, given) for factor in factors if isinstance(factor, side)))


class Coupling(struct.PyTreeNode):
    """Left by `couple` at initialisation: the space that is averaged over."""

    space: str = struct.field(pytree_node=False)


def couple(module: nn.Module, space: str) -> None:
    """Declare that this module averages over the units of a space, as layer norm does.

    Its units then cannot have different numbers of clones, because the average, and hence the function, would change.
    Call it in every normalisation of your own that mixes units.

    Args:
        module: the calling module (`self`).
        space: the unit space.
    """
    if module.is_initializing():
        module.put_variable("couplings", space, Coupling(space))


class PermutableOnly(struct.PyTreeNode):
    """Left by `permutable` at initialisation: the space, and why its units cannot be cloned."""

    space: str = struct.field(pytree_node=False)
    reason: str = struct.field(pytree_node=False)


def permutable(module: nn.Module, space: str, reason: str) -> None:
    """Declare that units of a space may be exchanged, but not cloned by repeating them and dividing their readers.

    Equal units then still stay equal under gradient descent, and `cloned_manifold` accepts the space; `clone_variables`
    refuses it with the reason. Queries and keys are such units: no array reads them, they are multiplied with each
    other.

    Args:
        module: the calling module (`self`).
        space: the unit space.
        reason: the reason, for messages, such as "queries meet keys: the products of clones add up".
    """
    if module.is_initializing():
        module.put_variable("permutable", space, PermutableOnly(space, reason))


class Coordinates(struct.PyTreeNode):
    """Left by `coordinates` at initialisation: the space of the coordinates of larger units."""

    space: str = struct.field(pytree_node=False)


def coordinates(module: nn.Module, space: str) -> None:
    """Declare that a space indexes the coordinates of larger units, as the width of an attention head does.

    A single factor for all spaces then does not apply to it: `clone_variables(variables, wiring, 2)` clones whole
    heads, and
    `{"heads_0_values": 2}` the coordinates of their values.

    Args:
        module: the calling module (`self`).
        space: the unit space.
    """
    if module.is_initializing():
        module.put_variable("coordinates", space, Coordinates(space))


class Tapped(struct.PyTreeNode):
    """Left by `tap` at initialisation: the tap, and when it was reached.

    Flax groups sown values by submodule, so the order of its dicts is not that of the forward pass: all sites of a
    submodule that is called twice are listed at the first call.
    """

    tap: Tap
    moment: int = struct.field(pytree_node=False)


_moments = count()  # only their order is used


def tap(module: nn.Module, site: str, space: str, activation: str | Callable, pre: jax.Array) -> jax.Array:
    """Apply an activation function at a named site, and make the site observable.

    Records `Tap(space, pre, post)` and adds the perturbation of this site, if one was passed to `Model.apply`.

    Args:
        module: the calling module (`self`).
        site: name of the site, unique in the network.
        space: the unit space written here.
        activation: name in `lopjax.activations`, an `Activation`, or any elementwise function (without facts).
        pre: pre-activations, `(batch, ..., units)`.

    Returns:
        The activations, same shape.

    Raises:
        ValueError: an unknown name, a function that is not elementwise, a fact that it contradicts, or a site tapped
            twice.
    """
    entry = activation_function(activation)
    key = activation_key(entry)
    if isinstance(key, Activation):
        check_activation(entry)
    shift = module.get_variable("perturbations", site)
    if shift is not None:
        pre = pre + shift.pre.astype(pre.dtype)
    post = entry(pre)
    if shift is not None:
        post = post + shift.post.astype(post.dtype)
    if module.is_mutable_collection("taps"):
        if module.has_variable("taps", site):
            raise ValueError(f"sites tapped twice: {[site]}; give every site of the network its own name")
        seen = Tap(space, pre, post, key)
        module.put_variable("taps", site, Tapped(seen, next(_moments)) if module.is_initializing() else seen)
    return post
