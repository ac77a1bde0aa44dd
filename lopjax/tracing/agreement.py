"""Labels written by hand and the wiring read from the program: do they agree?"""

from typing import Any

import jax
import jax.numpy as jnp

from lopjax.model import Model
from lopjax.tracing.traced import Traced, trace_model
from lopjax.wiring import In, Wiring


def wiring_agrees(model: Model, inputs: Any = None, *, check: bool = False) -> tuple[str, ...]:
    """Compare the labels of a model with what is read from its program.

    Names do not matter. The program may reveal more than the labels (a unit space where they have none, or a space that
    can be cloned where they say permutable): that is returned. It must not contradict them.

    Args:
        model: a labelled model.
        inputs: a batch of two or more; shapes suffice. Without it two inputs of the model's own shape.
        check: also verify the wiring that is read (`trace_model`).

    Returns:
        One sentence for each axis about which the program reveals more; empty if the two agree.

    Raises:
        ValueError: a contradiction; one line for each, with the claims of the labels and of the program. No inputs, and
            a model that does not say what they look like (tokens).

    Example:
        >>> import jax.numpy as jnp
        >>> from lopjax.models import mlp
        >>> wiring_agrees(mlp((4,), (3,), 2), jnp.ones((2, 4)))
        ()
    """
    if inputs is None:
        if model.input_shape is None:
            raise ValueError("this model does not say what its inputs look like: pass a batch of two, shapes suffice")
        inputs = jax.ShapeDtypeStruct((2, *model.input_shape), jnp.result_type(float))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    traced = trace_model(lambda variables, x: model.apply(variables, x).logits, shapes, inputs, check=check)
    faults, more = _compare(model.wiring, traced)
    if faults:
        raise ValueError("\n".join(["labels and program contradict each other:", *(f"  {each}" for each in faults)]))
    return tuple(more)


def _compare(labels: Wiring, traced: Traced) -> tuple[list[str], list[str]]:
    traced_wiring = traced.model.wiring
    by_hand: dict[str, str] = {}
    by_program: dict[str, str] = {}
    faults, more = [], []
    read = dict(traced_wiring.labels)
    for path, label in labels.labels:
        if path not in read or len(read[path].axes) != len(label.axes):
            faults.append(f"{'/'.join(path)}: {label.axes} by its label, cut into pieces by the program")
            continue
        for index, (one, other) in enumerate(zip(label.axes, read[path].axes, strict=True)):
            where = f"{'/'.join(path)}, axis {index}"
            is_free = one is not None and one.space not in labels.fixed
            is_found = other is not None and other.space not in traced_wiring.fixed
            if not is_free and not is_found:
                continue
            if one is None or not is_free:
                more.append(f"{where}: {one} by its label, {other} by the program")
                continue
            if other is None or not is_found or (_role(one) != _role(other) and one.space in labels.cloneable):
                reason = "" if other is None else f" ({dict(traced_wiring.reasons).get(other.space, '')})"
                faults.append(f"{where}: {one} by its label, {other}{reason} by the program")
                continue
            same = by_hand.setdefault(one.space, other.space) == other.space
            if not same or by_program.setdefault(other.space, one.space) != one.space:
                faults.append(f"{where}: {one} by its label, {other} by the program, which is another space elsewhere")
    for space, other in by_hand.items():
        if space in labels.cloneable and other not in traced_wiring.cloneable:
            faults.append(f"{space}: cloneable by the labels, {traced_wiring.why_not_cloneable(other)} by the program")
        if space not in labels.cloneable and other in traced_wiring.cloneable:
            more.append(f"{space}: permutable by the labels, cloneable by the program")
    return faults, more


def _role(axis: Any) -> bool:
    return isinstance(axis, In)
