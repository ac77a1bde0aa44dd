"""Losses: means over samples, of logits and of parameters. Of sequences every position is a sample."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from lopjax.arguments.batches import as_batch, as_numbers, check_leaves, label_arrays
from lopjax.arguments.misfits import described, in_a_sentence
from lopjax.arguments.networks import check_network
from lopjax.arguments.numbers import check_numbers
from lopjax.arguments.order import loss_is_first, takes_old_order
from lopjax.model import Model, Params, Variables, outputs_of
from lopjax.tolerance import TWO_ORDERS_OF_SUMMATION

Batch = tuple[Any, Any]
"""Inputs, arrays of JAX or NumPy, and what a loss takes besides the logits."""


def mean_cross_entropy(logits: Float[Array, "*samples classes"], labels: Int[Array, "*samples"]) -> Float[Array, ""]:
    """Softmax cross-entropy with integer labels, in nats, averaged over samples (and positions).

    NaN, and so is the gradient, if a label is no class, 0..classes-1: under jit nothing can be refused, a negative
    index would count from the last class, and a sample beyond it would drop out of the gradient alone.

    Raises:
        ValueError: labels that are not one integer per sample.
    """
    _check_classes(logits, labels)
    if not jnp.issubdtype(jnp.result_type(logits), jnp.floating):
        raise ValueError(f"outputs {described(logits)}: logits must be floating point")
    is_class = (labels >= 0) & (labels < logits.shape[-1])
    # Added, not chosen, so that the NaN comes back in the gradient; adding 0 changes no bit.
    logits = logits + jnp.where(is_class, 0, jnp.nan).astype(logits.dtype)[..., None]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def mean_squared_error(
    outputs: Float[Array, "samples outputs"], targets: Float[Array, "samples outputs"]
) -> Float[Array, ""]:
    """Half the squared distance to the target, summed over outputs and averaged over samples: 1/(2N) sum |y - t|².

    Raises:
        ValueError: targets of another shape, which NumPy's rules might stretch to that of the outputs.
    """
    check_numbers("outputs", outputs)
    check_numbers("targets", targets)
    if jnp.shape(outputs) != jnp.shape(targets) or jnp.ndim(outputs) == 0:
        raise ValueError(
            f"targets {described(targets)} with outputs {described(outputs)}: must have one shape, a row per sample"
        )
    return 0.5 * jnp.mean(jnp.sum(jnp.square(outputs - targets), axis=-1))


def accuracy(logits: Float[Array, "*samples classes"], labels: Int[Array, "*samples"]) -> Float[Array, ""]:
    """Fraction of samples whose largest logit is the label's; NaN if a largest logit is not finite.

    A NaN among the logits would win the comparison, and a diverged network have the accuracy of guessing its class. A
    logit of minus infinity only rules its class out. A label that is no class is never right.

    Raises:
        ValueError: labels that are not one integer per sample.
    """
    _check_classes(logits, labels)
    is_right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.promote_types(logits.dtype, jnp.float32))
    return jnp.mean(jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), is_right, jnp.nan))


def _check_classes(logits: Any, labels: Any) -> None:
    """Refuse labels that are not one integer for each sample (and position)."""
    check_numbers("outputs", logits)
    logits_shape, labels_shape = jnp.shape(logits), jnp.shape(labels)
    is_integer = hasattr(labels, "dtype") and jnp.issubdtype(labels.dtype, jnp.integer)
    if not is_integer or not logits_shape or labels_shape != logits_shape[:-1]:
        raise ValueError(
            f"labels {described(labels)} with outputs {described(logits)}: must be one integer class per sample"
        )


class Masked(NamedTuple):
    """Labels of samples among a part of the classes: those of their task.

    Attributes:
        labels: integers, among the classes of the mask.
        mask: the classes that compete.
    """

    labels: Int[Array, " samples"]
    mask: Bool[Array, "samples classes"]


def masked_cross_entropy(logits: Float[Array, "samples classes"], labels: Masked) -> Float[Array, ""]:
    """`mean_cross_entropy` among the classes of each sample's mask: the other logits get no gradient."""
    _check_mask(logits, labels)
    return mean_cross_entropy(_within(logits, labels), labels.labels)


def masked_accuracy(logits: Float[Array, "samples classes"], labels: Masked) -> Float[Array, ""]:
    """`accuracy` among the classes of each sample's mask."""
    _check_mask(logits, labels)
    return accuracy(_within(logits, labels), labels.labels)


def _check_mask(logits: Any, labels: Any) -> None:
    """Refuse a mask that does not say of every sample and class whether it competes."""
    check_numbers("outputs", logits)
    is_masked = isinstance(labels, Masked) and jnp.shape(labels.mask) == jnp.shape(logits)
    if not is_masked or not jnp.issubdtype(jnp.result_type(labels.mask), jnp.bool_):
        raise ValueError(
            f"labels {', '.join(map(described, jax.tree.leaves(labels)))} with outputs {described(logits)}: must be "
            "Masked(labels, mask), the mask true where a class competes, with the outputs' shape"
        )


def _within(logits: jax.Array, labels: Masked) -> jax.Array:
    return jnp.where(labels.mask, logits, -jnp.inf)


@takes_old_order("loss model variables batch train", loss_is_first)
def of_parameters(
    model: Model,
    variables: Variables,
    batch: Batch,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    train: bool = False,
) -> Callable[[Params], jax.Array]:
    """A loss of logits and labels as a pure function of the parameters: what the curvature tools take.

    Args:
        model: the network.
        variables: supply everything but the parameters (batch statistics; `{}` where there are none). Parameters in
            them are ignored.
        batch: `(inputs, labels)`, held fixed.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        train: in train mode batch norm uses the statistics of this batch (and couples its samples); dropout is off.

    Returns:
        `params -> scalar`.

    Raises:
        ValueError: no inputs and labels for the same samples; from the function: inputs that the network does not take,
            labels that the loss does not.
    """
    # Variables may be those besides the parameters alone; of a network without any, {}.
    is_rest = isinstance(variables, Mapping) and set(variables) <= {"batch_stats"}
    check_network(model, {"params": {}} if is_rest else variables)
    inputs, labels = pair(batch)

    def loss_of_params(params: Params) -> jax.Array:
        logits = outputs_of(model, {**variables, "params": params}, inputs, train=train, dropout_rate=0.0).logits
        return loss_of(loss, logits, labels)

    return loss_of_params


@takes_old_order("loss model variables batch size", loss_is_first)
def check_batch(
    model: Model,
    variables: Variables,
    batch: Batch,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    size: int = 500,
) -> None:
    """Refuse data on which no verdict can rest; nothing is compiled for it, and it must be called outside jit.

    The derivatives of a loss can be finite where the loss is not: a label that is no class drops out of the gradient.

    Args:
        model: the network.
        variables: its variables.
        batch: `(inputs, labels)`; labels may be a tree, a mapping or named tuple, of arrays with a leading axis of
            samples.
        loss: `(logits, labels) -> scalar`.
        size: the loss is evaluated on this many samples at most.

    Raises:
        ValueError: no inputs and labels of one length; inputs that are not finite; integer labels, one per sample or
            per position of it, outside the classes; a loss that is not finite.
    """
    check_network(model, variables)
    inputs, labels = as_batch(batch)
    leaves = label_arrays(labels)
    if any(jnp.shape(leaf)[:1] != inputs.shape[:1] for leaf in leaves):
        raise ValueError("batch must be (inputs, labels) with one label per input, at least one")
    check_inputs(model, variables, inputs)
    if not bool(jnp.all(jnp.isfinite(inputs))):
        raise ValueError("the inputs of the batch hold values that are not finite: every number must be")
    logits = model.apply(jax.tree.map(jnp.asarray, variables), jnp.asarray(inputs[:size])).logits
    is_classes = leaves[0] is labels and jnp.issubdtype(jnp.result_type(labels), jnp.integer)
    if is_classes and jnp.shape(labels)[1:] == logits.shape[1:-1]:
        low, high = int(jnp.min(labels)), int(jnp.max(labels))
        if low < 0 or high >= logits.shape[-1]:
            raise ValueError(f"labels {low}..{high}: must be classes, 0..{logits.shape[-1] - 1}")
    first = [jnp.asarray(leaf[:size]) for leaf in leaves]
    cut = first[0] if leaves[0] is labels else jax.tree.unflatten(jax.tree.structure(labels), first)
    value = _loss_value(loss, logits, cut)
    if not bool(jnp.all(jnp.isfinite(value))):
        raise ValueError(f"the loss is {value} on this batch: it must be finite; look at the parameters and the labels")


def check_inputs(model: Model, variables: Variables, inputs: Any) -> None:
    """Refuse inputs that a network does not take; nothing is computed.

    Raises:
        ValueError: no array of numbers, no sample, or a shape or type that is not the network's.
    """
    array = as_numbers("inputs", inputs)
    jax.eval_shape(lambda variables, array: outputs_of(model, variables, array).logits, variables, array)


def pair(batch: Any) -> tuple[Any, Any]:
    """A batch as inputs and labels, trees of arrays for the same samples. Under a trace, too.

    Raises:
        ValueError: no pair, no sample, or not one label per input.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"batch is a {type(batch).__name__}: batch must be (inputs, labels) with one label per input")
    check_leaves(*batch)
    return batch[0], batch[1]


def loss_of(loss: Callable[[Any, Any], jax.Array], logits: jax.Array, labels: Any) -> jax.Array:
    """`loss(logits, labels)`, whose labels are refused in a sentence where they do not fit.

    Raises:
        ValueError: it does not take them, or returns no single number.
    """
    check_numbers("outputs", logits)
    given = ", ".join(map(described, jax.tree.leaves(labels)))
    with in_a_sentence(
        f"the loss does not take labels {given} with outputs {list(logits.shape)}",
        "labels must be what the loss expects",
    ):
        value = loss(logits, labels)
    if jnp.shape(value):
        raise ValueError(
            f"the loss returned an array of shape {jnp.shape(value)}: must be one number, a mean over samples"
        )
    return value


# Outside jit every operation of a loss is compiled by itself: 24 programs and a second for the cross-entropy.
_loss_value = jax.jit(loss_of, static_argnums=0)


@takes_old_order("loss model variables batch size", loss_is_first)
def check_mean_over_samples(
    model: Model, variables: Variables, batch: Batch, *, loss: Callable[[jax.Array, jax.Array], jax.Array], size: int
) -> None:
    """Refuse a loss that is not a plain mean over samples, if the data come in more than one batch of `size`.

    Class weights normalised within a batch, or ignored labels, make means that depend on how the data are cut: the
    loss of all logits is compared with the mean over the batches, to 1,000 eps. Must be called outside jit.

    Args:
        model: the network.
        variables: its variables.
        batch: `(inputs, labels)`.
        loss: `(logits, labels) -> scalar`.
        size: samples per batch.

    Raises:
        ValueError: with both values, and what to do.
    """
    batch = pair(batch)
    samples = len(batch[0])
    if samples <= size:
        return
    apply = jax.jit(lambda variables, inputs: outputs_of(model, variables, inputs, dropout_rate=0.0).logits)
    starts = range(0, samples, size)
    logits = [apply(variables, jnp.asarray(batch[0][start : start + size])) for start in starts]
    parts = [
        jax.tree.map(lambda leaf, start=start: jnp.asarray(leaf[start : start + size]), batch[1]) for start in starts
    ]
    values = [float(loss_of(loss, part, labels)) for part, labels in zip(logits, parts, strict=True)]
    mean = sum(value * len(part) for value, part in zip(values, logits, strict=True)) / samples
    whole = loss(jnp.concatenate(logits), jax.tree.map(jnp.asarray, batch[1]))
    largest = max(abs(value) for value in values)
    if not abs(float(whole) - mean) <= TWO_ORDERS_OF_SUMMATION * float(jnp.finfo(whole.dtype).eps) * largest:
        raise ValueError(
            f"the loss is {float(whole):.6g} on all {samples} samples and {mean:.6g} as the mean over batches of {size}"
            f": it is no plain mean over samples; pass batch_size={samples}, or a loss that is one"
        )


def cross_entropy(
    model: Model, variables: Variables, batch: Batch, train: bool = False
) -> Callable[[Params], jax.Array]:
    """`mean_cross_entropy` on a batch as a function of the parameters; arguments as in `of_parameters`."""
    return of_parameters(model, variables, batch, loss=mean_cross_entropy, train=train)


def mse(model: Model, variables: Variables, batch: Batch, train: bool = False) -> Callable[[Params], jax.Array]:
    """`mean_squared_error` on a batch as a function of the parameters; arguments as in `of_parameters`."""
    return of_parameters(model, variables, batch, loss=mean_squared_error, train=train)
