"""Constructors that say how they were called, so that a run folder can make its networks again."""

import inspect
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any, ParamSpec

from lopjax.model import Constructor, Model

P = ParamSpec("P")


def recorded(make: Callable[P, Model]) -> Callable[P, Model]:
    """Decorate a function of one's own that makes a `Model`: the model, resized or not, says how it was made.

    The function must be importable where the run is read, `package.module:function`, and be pure: the same arguments
    make the same network. Its arguments are what JSON can hold, functions and dataclasses that can be imported.

    Raises:
        ValueError: a function with arguments that have no names.

    Example:
        >>> from lopjax.models import mlp
        >>> mlp((4,), (6,), 2).constructor.make
        'lopjax.models.mlp:mlp'
    """
    signature = inspect.signature(make)
    nameless = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)
    if any(parameter.kind in nameless for parameter in signature.parameters.values()):
        raise ValueError(f"{make.__qualname__}{signature}: every argument must have a name to be recorded under")
    others = [name for name, one in signature.parameters.items() if one.kind is inspect.Parameter.VAR_KEYWORD]

    @wraps(make)
    def constructor(*args: P.args, **kwargs: P.kwargs) -> Model:
        model = make(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        for name in others:
            arguments |= arguments.pop(name)
        named = tuple((name, _frozen(value)) for name, value in arguments.items())
        return _constructed(model, Constructor(f"{make.__module__}:{make.__qualname__}", named))

    return constructor


def _constructed(model: Model, constructor: Constructor) -> Model:
    try:
        return _cached(model, constructor)
    except TypeError:  # an argument that cannot be hashed: another object each time, with the same compiled functions
        return _cached.__wrapped__(model, constructor)


@cache
def _cached(model: Model, constructor: Constructor) -> Model:
    def resize(sizes: Mapping[str, int]) -> Model:
        return _constructed(model.resize(sizes), constructor)

    return model._replace(resize=resize, constructor=constructor)


def _frozen(value: Any) -> Any:
    """Lists as tuples, so that they can be hashed."""
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value
