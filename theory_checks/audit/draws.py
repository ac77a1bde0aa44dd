"""Random networks that tempt a method to guess, in numbers that both sides receive exactly."""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from theory_checks.audit.extended import (
    FUNCTIONS,
    Real,
    cross_entropy_signal,
    hinge_signal,
    squared_error_signal,
)

SAMPLES, INPUTS = 6, 2
SMOOTHING = 0.1

KINDS = (
    "ordinary",
    "one saturated layer",
    "several saturated layers",
    "dead units",
    "zero pre-activations",
    "cancelling logits",
    "loud outgoing weights",
    "any scale",
    "fitted",
    "equal units",
    "no outgoing weights",
    "large inputs",
)
"""What is special about the parameters."""


def mean_smoothed_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy with a tenth of the label spread over all classes."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), SMOOTHING)
    return jnp.mean(optax.softmax_cross_entropy(logits, targets))


def mean_hinge(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """`sum_k max(0, 1 - s_k y_k)`, s = +1 for the label and -1 otherwise, averaged over samples."""
    sign = 2 * jax.nn.one_hot(labels, outputs.shape[-1], dtype=outputs.dtype) - 1
    return jnp.mean(jnp.sum(jax.nn.relu(1 - sign * outputs), axis=-1))


class Structure(NamedTuple):
    """What a program is compiled for.

    Attributes:
        widths: widths of the hidden layers.
        activation: name of the activation.
        loss: "cross_entropy", "smoothed", "mse" or "hinge".
        outputs: number of logits.
        factors: cluster size of every unit, per hidden layer.
    """

    widths: tuple[int, ...]
    activation: str
    loss: str
    outputs: int
    factors: tuple[tuple[int, ...], ...]


class Network(NamedTuple):
    """One network with its data.

    Attributes:
        layers: `(kernel, bias)` of every layer, float64 arrays that hold numbers of `dtype`: the weights of one clone,
            so that the base's kernel is as many times this as its source has clones.
        inputs: `(samples, inputs)`, likewise.
        labels: class of every sample, or targets.
        dtype: type of the parameters.
        kind: one of `KINDS`.
    """

    layers: list[tuple[np.ndarray, np.ndarray]]
    inputs: np.ndarray
    labels: np.ndarray
    dtype: str
    kind: str


def draw_structure(rng: np.random.Generator, index: int) -> Structure:
    """Depth, widths, factors, activation and loss; every activation and loss in turn."""
    names = [name for name in FUNCTIONS if name not in ("softplus", "sin")]
    losses = ("cross_entropy", "mse", "smoothed", "hinge")
    depth = 1 + index % 3
    widths = tuple(int(width) for width in rng.integers(1, 4, size=depth))
    loss = losses[int(rng.integers(4))]
    outputs = int(rng.integers(1, 4)) if loss in ("mse", "hinge") else int(rng.integers(2, 5))
    is_uniform = index % 2 == 0
    factors = tuple(
        (int(rng.integers(1 + (layer == 0), 4)),) * width
        if is_uniform
        else tuple(int(n) for n in rng.integers(1, 4, size=width))
        for layer, width in enumerate(widths)
    )
    if all(n == 1 for sizes in factors for n in sizes):
        factors = ((2,) * widths[0], *factors[1:])
    return Structure(widths, names[index % len(names)], loss, outputs, factors)


def draw_network(rng: np.random.Generator, structure: Structure, kind: str, dtype: str) -> Network:
    """Parameters and data of one kind, rounded to `dtype`."""
    sizes = (INPUTS, *structure.widths, structure.outputs)
    layers = [(rng.uniform(-1.5, 1.5, (m, n)), rng.uniform(-1.5, 1.5, n)) for m, n in pairwise(sizes)]
    inputs = rng.normal(size=(SAMPLES, INPUTS))
    layers, inputs = _make_special(rng, kind, layers, inputs, structure)
    copies = (np.ones(INPUTS), *(np.array(sizes, float) for sizes in structure.factors))
    rounded = [
        (_rounded(kernel / number[:, None], dtype), _rounded(bias, dtype))
        for (kernel, bias), number in zip(layers, copies, strict=True)
    ]
    inputs = _rounded(inputs, dtype)
    network = Network(rounded, inputs, np.zeros(0), dtype, kind)
    return network._replace(labels=_labels(rng, structure, network))


def base_layers(structure: Structure, network: Network) -> list[tuple[Real, Real]]:
    """Kernel and bias of every layer of the base network, in long double, where the products are exact."""
    copies = (np.ones(INPUTS), *(np.array(sizes) for sizes in structure.factors))
    return [
        (kernel.astype(np.longdouble) * number[:, None], bias.astype(np.longdouble))
        for (kernel, bias), number in zip(network.layers, copies, strict=True)
    ]


def _make_special(rng, kind, layers, inputs, structure):
    """Change ordinary parameters into those of a kind."""
    sign = rng.choice([-1.0, 1.0])
    hidden = len(layers) - 1
    if kind == "one saturated layer":
        layer = int(rng.integers(hidden))
        layers[layer][1][...] += sign * rng.uniform(4, 45)
    if kind == "several saturated layers":
        for kernel, bias in layers[:hidden]:
            bias += rng.choice([-1.0, 1.0]) * rng.uniform(4, 45)
            kernel *= rng.uniform(0.3, 2)
    if kind == "dead units":
        layers[int(rng.integers(hidden))][1][0] = -rng.uniform(20, 90)
    if kind == "zero pre-activations":
        layers[0][1][...] = 0
        inputs[int(rng.integers(SAMPLES))] = 0
    if kind == "cancelling logits":
        size = 10.0 ** rng.uniform(3, 7)
        kernel, bias = layers[hidden - 1]
        kernel[:], bias[:] = kernel[:, :1], bias[:1]
        reader = layers[hidden][0]
        reader[0] += size
        reader[-1] -= size if len(reader) > 1 else 0
    if kind == "loud outgoing weights":
        layers[hidden][0][...] *= 10.0 ** rng.uniform(2, 5)
    if kind == "any scale":
        layers = [(kernel * 10.0 ** rng.uniform(-6, 6), bias * 10.0 ** rng.uniform(-6, 6)) for kernel, bias in layers]
    if kind == "equal units":
        layers[0][0][:], layers[0][1][:] = layers[0][0][:, :1], layers[0][1][:1]
    if kind == "no outgoing weights":
        layers[int(rng.integers(1, len(layers)))][0][0] = 0
    if kind == "large inputs":
        inputs = inputs * 10.0 ** rng.uniform(1, 4)
    if kind == "fitted" and structure.loss != "mse":
        layers[hidden] = (layers[hidden][0] * 20, layers[hidden][1] * 20)
    return layers, inputs


def _labels(rng: np.random.Generator, structure: Structure, network: Network) -> np.ndarray:
    """Random labels, or those that a fitted network gives."""
    layers, hidden = base_layers(structure, network), network.inputs.astype(np.longdouble)
    for kernel, bias in layers[:-1]:
        hidden = FUNCTIONS[structure.activation](hidden @ kernel + bias)[0]
    outputs = (hidden @ layers[-1][0] + layers[-1][1]).astype(np.float64)
    is_fitted = network.kind == "fitted"
    if structure.loss == "mse":
        return outputs if is_fitted else rng.normal(size=outputs.shape)
    return outputs.argmax(axis=1) if is_fitted else rng.integers(structure.outputs, size=SAMPLES)


def _rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest numbers of a type, in float64; numbers too large for it become its largest."""
    largest = float(jnp.finfo(dtype).max)
    return np.clip(array, -largest, largest).astype(jnp.dtype(dtype)).astype(np.float64)


def signal_of(structure: Structure, labels: np.ndarray) -> Callable[[Real], Real]:
    """`outputs -> dL/d(outputs)` in long double."""
    if structure.loss == "mse":
        return lambda outputs: squared_error_signal(outputs, labels)
    if structure.loss == "hinge":
        return lambda outputs: hinge_signal(outputs, labels)
    smoothing = SMOOTHING if structure.loss == "smoothed" else 0.0
    return lambda outputs: cross_entropy_signal(outputs, labels, smoothing)
