"""Batches, inputs and tolerances as a user gives them: arrays of numbers, or one sentence about what they are."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def label_arrays(labels: Any) -> list[Any]:
    """The arrays of labels that are a tree (a mapping or named tuple), or the labels themselves."""
    return jax.tree.leaves(labels) if isinstance(labels, Mapping) or hasattr(labels, "_fields") else [labels]


def as_numbers(what: str, given: Any) -> jax.Array:
    """Samples along the leading axis as an array of numbers.

    Raises:
        ValueError: what is given is no array of numbers, or holds no sample.
    """
    array = given if isinstance(given, jax.Array) else np.asarray(given)
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        kind = type(given).__name__
        raise ValueError(f"{what}: a {kind} of type {array.dtype}; must be an array of numbers, a row per sample")
    if array.ndim == 0 or len(array) == 0:
        raise ValueError(f"{what}: shape {array.shape}; must hold at least one sample, along its leading axis")
    return jnp.asarray(array)


def as_batch(given: Any) -> tuple[jax.Array, Any]:
    """Inputs and labels as arrays.

    Raises:
        ValueError: no pair, or one that does not hold arrays of numbers.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise ValueError(f"batch is a {type(given).__name__}: batch must be (inputs, labels) with one label per input")
    inputs, labels = given
    leaves = [as_numbers("labels", leaf) for leaf in label_arrays(labels)]
    is_tree = len(leaves) != 1 or label_arrays(labels)[0] is not labels
    made = jax.tree.unflatten(jax.tree.structure(labels), leaves) if is_tree else leaves[0]
    return as_numbers("inputs", inputs), made


def check_leaves(inputs: Any, labels: Any) -> None:
    """Refuse inputs and labels, trees of arrays, that are not numbers for the same samples. Under a trace, too.

    Raises:
        ValueError: an entry that is no array of numbers; no sample; labels for more or fewer samples than there are.
    """
    sizes = {_num_samples("inputs", leaf) for leaf in jax.tree.leaves(inputs)}
    if len(sizes) != 1:
        raise ValueError(f"inputs for {sorted(sizes)} samples: must be arrays with one row per sample, equally many")
    (size,) = sizes
    for leaf in jax.tree.leaves(labels):
        if (given := _num_samples("labels", leaf)) != size:
            raise ValueError(f"labels for {given} samples and inputs for {size}: give one label per input")


def _num_samples(what: str, given: Any) -> int:
    """Rows of one array; keys of random numbers count as numbers."""
    array = given if isinstance(given, jax.Array) else np.asarray(given)
    is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
    if not (is_key or jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        kind = type(given).__name__
        raise ValueError(f"{what}: a {kind} of type {array.dtype}; must be an array of numbers, a row per sample")
    if array.ndim == 0 or array.shape[0] == 0:
        raise ValueError(f"{what} of shape {array.shape} have no samples: give at least one, along the leading axis")
    return array.shape[0]


def check_tolerance(tolerance: Any) -> None:
    """Refuse a tolerance that is no number from 0 on; None is the default of whoever asks.

    Raises:
        ValueError: it is.
    """
    is_number = isinstance(tolerance, int | float | np.number) or getattr(tolerance, "ndim", None) == 0
    if tolerance is not None and not (is_number and tolerance >= 0):
        raise ValueError(f"tolerance={tolerance!r}: must be a number from 0 on, or None for what rounding can do")
