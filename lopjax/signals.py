"""What flows through a network on one batch: loss, logits, activations, backward signals and the gradient.

`observe` is the only place where this is computed. Training steps return it, symptoms of lost plasticity and
certificates are read from it, and interventions decide by it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lopjax.arguments.networks import check_network
from lopjax.losses import loss_of, mean_cross_entropy, pair
from lopjax.model import Model, Params, Taps, Variables, outputs_of


class Observed(NamedTuple):
    """A network seen on one batch. Under `jax.jit`, what is not used is not computed.

    Attributes:
        loss: the mean loss.
        logits: `(batch, classes)`.
        taps: pre- and post-activations of every site.
        signals: taps of the same shapes, dL/d(pre) and dL/d(post), which carry the 1/N of the mean loss; None unless
            they were asked for.
        gradient: gradient of the loss with respect to the parameters, a tree like them.
        batch: `(inputs, labels)`, as the network saw it.
        task: where a stream of tasks was (`lopjax.training.Task`); None outside a stream.
        variables: the variables after the forward pass: in train mode batch statistics are updated.
    """

    loss: Float[Array, ""]
    logits: jax.Array
    taps: Taps
    signals: Taps | None
    gradient: Params
    batch: tuple[PyTree, PyTree]
    task: Any
    variables: Variables


def observe(
    model: Model,
    variables: Variables,
    batch: tuple[PyTree, PyTree],
    *,
    loss: Callable[[jax.Array, Any], jax.Array] = mean_cross_entropy,
    train: bool = False,
    key: jax.Array | None = None,
    dropout_rate: jax.typing.ArrayLike | None = None,
    signals: bool = True,
    task: Any = None,
) -> Observed:
    """One forward and one backward pass. Pure; use under jit.

    Zero perturbations are added at every site; the gradient with respect to them is the backward signal there. Without
    `signals` nothing is added, and the pass is that of plain training.

    Args:
        model: any model.
        variables: its variables.
        batch: `(inputs, labels)`: `(batch, *input_shape)`, and what `loss` takes besides the logits.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        train: train mode.
        key: for dropout; needed where it draws.
        dropout_rate: overrides the model's own; may be traced. 0 for none.
        signals: whether backward signals are wanted.
        task: passed on.

    Raises:
        ValueError: no inputs and labels for the same samples, at least one; inputs that the network does not take,
            labels that the loss does not.
    """
    check_network(model, variables)
    inputs, labels = pair(batch)

    def forward(params: Params, perturbations: Taps | None) -> tuple[jax.Array, tuple[jax.Array, Variables, Taps]]:
        logits, updated, taps = outputs_of(
            model,
            {**variables, "params": params},
            inputs,
            train=train,
            key=key,
            perturbations=perturbations,
            dropout_rate=dropout_rate,
        )
        return loss_of(loss, logits, labels), (logits, updated, taps)

    zeros = None
    if signals:
        shapes = jax.eval_shape(forward, variables["params"], None)[1][2]
        zeros = jax.tree.map(lambda tap: jnp.zeros(tap.shape, tap.dtype), shapes)
    (value, (logits, updated, taps)), (gradient, backward) = jax.value_and_grad(forward, argnums=(0, 1), has_aux=True)(
        variables["params"], zeros
    )
    return Observed(value, logits, taps, backward, gradient, batch, task, updated)
