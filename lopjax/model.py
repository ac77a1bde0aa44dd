"""What a network is to the rest of the library: pure functions, its wiring, and a way to change its sizes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lopjax.activations import Activation
from lopjax.arguments.misfits import described, in_a_sentence
from lopjax.wiring import IDENTITY, View, Wiring

Params = Any
Variables = Mapping[str, Any]
"""A network's arrays: `{"params": ...}`, with `"batch_stats"` where it keeps statistics."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tap:
    """What a site carries on one batch.

    The same container holds activations, perturbations added to them, and the backward signals dL/d(pre), dL/d(post).

    Attributes:
        space: the unit space written here (static).
        pre: input of the activation function, an array `(batch, ..., units)`; any leaf under `jax.tree.map`.
        post: its output, same shape, before dropout.
        activation: name of the activation function, or an `Activation` that has none in `lopjax.activations` (static).
    """

    space: str = field(metadata={"static": True})
    pre: Any
    post: Any
    activation: str | Activation = field(default="identity", metadata={"static": True})


Taps = Mapping[str, Tap]


class Output(NamedTuple):
    """What `Model.apply` returns; unpacks as the triple that it is.

    Attributes:
        logits: `(batch, classes)`, or whatever the network puts out.
        variables: those given; in train mode with updated batch statistics.
        taps: pre- and post-activations of every site.
    """

    logits: jax.Array
    variables: Variables
    taps: dict[str, Tap]


class NotResizableError(ValueError):
    """A model of fixed sizes was asked for others."""


class Constructor(NamedTuple):
    """How a network was made, so that it can be made again.

    Attributes:
        make: the function, as `package.module:function`.
        arguments: what it was called with, all defaults included, by name; hashable.
    """

    make: str
    arguments: tuple[tuple[str, Any], ...]


class Model(NamedTuple):
    """A network as pure functions, and its wiring.

    Constructors are cached: the same arguments give the same object, so nothing is compiled twice.

    Attributes:
        init: `key -> variables`, `{"params": ..., "batch_stats": ...}`; vmap over keys gives seeds. Floating point
            type: JAX's default (float64 under x64).
        apply: `apply(variables, x, train=False, key=None, perturbations=None, dropout_rate=None) -> Output`. Pure. `x`
            has the shape `(batch, *input_shape)`. `key` is needed where dropout draws. `perturbations` are taps, of any
            of the sites, that are added to the pre- and post-activations. `dropout_rate` overrides the model's own and
            may be traced. The variables returned are those given, in train mode with updated batch statistics.
        wiring: the labelled axes; static and hashable.
        resize: `{space: size} -> Model`: the same architecture with other numbers of units.
        constructor: how it was made, up to those numbers; None if it does not say (`lopjax.models.recorded`).
        input_shape: shape of one input, without the batch axis; None if it is not known, or if inputs are tokens.
        view: `(split, merge)`, for networks whose author's arrays have axes that index several spaces: `init` and
            `apply` work with the pieces, and `view.merge(params)` gives the author's arrays (`lopjax.wiring.view`).
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[..., Output]
    wiring: Wiring
    resize: Callable[[Mapping[str, int]], "Model"]
    constructor: Constructor | None = None
    input_shape: tuple[int, ...] | None = None
    view: View = IDENTITY


def outputs_of(model: Model, variables: Variables, inputs: Any, **options: Any) -> Output:
    """`model.apply`, whose inputs are refused in a sentence where they do not fit.

    Raises:
        ValueError: it does not take them.
    """
    given = ", ".join(map(described, jax.tree.leaves(inputs)))
    with in_a_sentence(
        f"the network does not take inputs {given}",
        "the leading axis must be that of the samples, the others those the network was made for",
    ):
        return model.apply(variables, inputs, **options)


def samples_by_units(array: jax.Array) -> jax.Array:
    """Reshape `(batch, ..., units)` to `(samples, units)`: positions, tokens and head width count as samples."""
    return jnp.reshape(array, (-1, array.shape[-1]))
