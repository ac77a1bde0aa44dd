"""Networks and variables as a user gives them: a `Model` and what its `init` gives, or a sentence about what to do."""

from collections.abc import Mapping
from typing import Any


def check_model(model: Any) -> None:
    """Refuse a network of another kind: a module, its `apply`, or what `trace_model` returns with the model inside.

    Raises:
        ValueError: it is none of ours.
    """
    kind = type(model).__name__
    if all(hasattr(type(model), name) for name in ("model", "split", "merge")):
        raise ValueError(f"model is a {kind}: pass the model in it, t.model, with the variables t.split(params)")
    # Asked of the type: a Flax module answers for its instance with a complaint about `setup`.
    if not all(hasattr(type(model), name) for name in ("apply", "wiring", "resize")):
        raise ValueError(
            f"model is a {kind}: must be a lopjax Model: one of lopjax.models, or, of a network of your own, t.model "
            "with the variables t.split(params), where t = lopjax.trace_model(apply, params, inputs)"
        )


def check_network(model: Any, variables: Any) -> None:
    """Refuse what is no `Model`, and variables without parameters. Only types are looked at: under a trace, too.

    Args:
        model: should be a `lopjax.Model`.
        variables: should be what its `init` gives, a mapping with an entry "params".

    Raises:
        ValueError: another kind of network; variables without an entry "params", such as the parameters alone.
    """
    check_model(model)
    if not isinstance(variables, Mapping) or "params" not in variables:
        given = (
            f"have the keys {list(variables)}"
            if isinstance(variables, Mapping)
            else f"are a {type(variables).__name__}"
        )
        raise ValueError(f'the variables {given}: must be what model.init gives, {{"params": parameters, ...}}')
