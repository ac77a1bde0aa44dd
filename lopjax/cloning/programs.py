"""Networks and losses on which no verdict can rest, by what their programs do."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from lopjax.curvature.programs import Program, check_derivative, check_forward_mode, read_program
from lopjax.losses import mean_cross_entropy, mean_squared_error
from lopjax.model import Model, Variables

_PLAIN = (mean_cross_entropy, mean_squared_error)
_Loss = Callable[[Any, Any], jax.Array]


def check_programs(
    model: Model, variables: Variables, batch: tuple[Any, Any], loss: _Loss, *, is_curved: bool = False
) -> None:
    """Refuse a network or a loss that rounds inside to fewer digits than its parameters, or whose derivative is none.

    The programs are traced once for each network and kind of arrays. Values are computed only where the author has
    written a derivative of his own (`jax.custom_jvp`, `stop_gradient`).

    Args:
        model: the network.
        variables: its variables.
        batch: `(inputs, labels)`, concrete.
        loss: `(logits, labels) -> scalar`.
        is_curved: whether second derivatives are needed.

    Raises:
        ValueError: says which, and what to do.
    """
    inputs, labels = jax.tree.map(jnp.asarray, (batch[0], batch[1]))
    network, of_loss = _programs(
        model, loss, *_kinds((variables, inputs, labels)), bool(jax.config.read("jax_enable_x64"))
    )
    dtype = jnp.promote_types(jnp.result_type(*jax.tree.leaves(variables["params"])), jnp.float32)
    for what, program in (("network", network), ("loss", of_loss)):
        if program.narrowest < jnp.finfo(dtype).bits:
            instead = f", or pass variables of {program.narrowest} bits" if program.narrowest >= 32 else ""
            raise ValueError(
                f"the {what} rounds to {program.narrowest} bits inside, and parameters are {dtype}: a verdict would "
                "claim digits that are lost. Take the cast out (compute_dtype='float32' in the library's models)"
                + instead
            )
        if is_curved:
            check_forward_mode(f"the {what}", program)
    if network.is_own:
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        check_derivative(
            "the network",
            lambda params: model.apply({**rest, "params": params}, _wide(inputs), dropout_rate=0.0).logits,
            variables["params"],
        )
    if of_loss.is_own:
        logits = model.apply(variables, inputs, dropout_rate=0.0).logits
        check_derivative("the loss", lambda logits: loss(logits, labels), logits)


def _wide(inputs: Any) -> Any:
    is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(lambda leaf: leaf.astype(float) if is_float(leaf) else leaf, inputs)


def _kinds(tree: Any) -> tuple[Any, tuple[Any, ...]]:
    """Structure, and shape and type of every leaf: what a program depends on."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


@lru_cache(maxsize=256)
def _programs(
    model: Model, loss: _Loss, structure: Any, kinds: tuple[Any, ...], is_x64: bool
) -> tuple[Program, Program]:
    """What was read off the forward pass and off the loss."""
    variables, inputs, labels = structure.unflatten([jax.ShapeDtypeStruct(*kind) for kind in kinds])

    def logits(variables: Variables, inputs: Any) -> jax.Array:
        return model.apply(variables, inputs, dropout_rate=0.0).logits

    network = read_program(logits, variables, inputs)
    if loss in _PLAIN:
        return network, Program(64, is_own=False, is_backward_only=False)
    return network, read_program(loss, jax.eval_shape(logits, variables, inputs), labels)
