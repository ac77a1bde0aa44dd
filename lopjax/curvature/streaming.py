"""Means over a data set too large for one pass, in batches of a fixed size."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from lopjax.arguments.integers import as_integer
from lopjax.arguments.numbers import takes_numbers
from lopjax.curvature.products import Params, hvp


@takes_numbers(data=None)
def mean_over_batches(function: Callable[[PyTree], PyTree], data: PyTree, batch_size: int) -> PyTree:
    """Mean over a data set of a quantity that is itself a mean over the samples of a batch.

    `(1/N) sum_b n_b function(batch_b)`, with n_b the size of batch b; the last batch has the remaining samples and is
    weighted by its size. Equal to `function(data)`, up to rounding, for losses, gradients, Hessian and Gauss-Newton
    products of losses in which samples do not interact (so not under batch normalisation in training mode).

    Compiled as one loop that needs the memory of one batch. Under `jax.jit` pass `data` as an argument rather than
    closing over it, or it is compiled as a constant.

    Args:
        function: `batch -> pytree of float arrays`, a mean over the samples of the batch.
        data: a pytree of arrays of any dtype whose first axis indexes the N samples.
        batch_size: number of samples in a batch, at most N.

    Returns:
        The mean, a tree like the value of `function`, same dtypes; summed in at least float32.

    Raises:
        ValueError: `batch_size` is not a positive integer, or the first axes of `data` differ or are empty.

    Example:
        >>> mean_over_batches(jnp.mean, jnp.arange(7.0), batch_size=3).item()
        3.0
    """
    num_samples = _num_samples(data)
    batch_size = as_integer(batch_size, 1, f"batch_size={batch_size}: must be a positive integer")
    batch_size = min(batch_size, num_samples)
    num_full, remainder = divmod(num_samples, batch_size)

    def batch_mean(start: int | Array, size: int) -> PyTree:
        return function(jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(jnp.asarray(x), start, size), data))

    def add(total: PyTree, start: int | Array, size: int) -> PyTree:
        return jax.tree.map(lambda sum_, x: sum_ + size * x.astype(sum_.dtype), total, batch_mean(start, size))

    shapes = jax.eval_shape(lambda: batch_mean(0, batch_size))
    # A running sum in 16 bits would stop growing after a few hundred batches.
    total = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)
    total, _ = jax.lax.scan(
        lambda total, index: (add(total, index * batch_size, batch_size), None), total, jnp.arange(num_full)
    )
    if remainder:
        total = add(total, num_full * batch_size, remainder)
    return jax.tree.map(lambda x, shape: (x / num_samples).astype(shape.dtype), total, shapes)


@takes_numbers(params=None, vector=None)
def hvp_over_batches(
    batch_loss: Callable[[Params, PyTree], Array], params: Params, vector: Params, data: PyTree, batch_size: int
) -> Params:
    """Hessian-vector product of the mean loss over a data set, one batch at a time.

    Args:
        batch_loss: `(params, batch) -> scalar`, the mean over the samples of the batch.
        params: the point.
        vector: the direction: same tree, shapes and dtypes as `params`.
        data: a pytree of arrays whose first axis indexes the samples.
        batch_size: number of samples in a batch; the last one may be smaller and is weighted by its size.

    Returns:
        The product, a tree like `params`.

    Raises:
        ValueError: as in `mean_over_batches` and `hvp`.
    """
    return mean_over_batches(
        lambda batch: hvp(lambda params: batch_loss(params, batch), params, vector), data, batch_size
    )


def _num_samples(data: PyTree) -> int:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(data)]
    lengths = {shape[0] if shape else 0 for shape in shapes}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"data has arrays of shapes {shapes}: their first axes must have one common, positive length; "
            "put the samples first"
        )
    return lengths.pop()
