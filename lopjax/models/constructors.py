"""Constructors that record how they were called, so that networks can be rebuilt from a run folder."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

from lopjax.model import Constructor, Model

P = ParamSpec("P")


def recorded(make: Callable[P, Model]) -> Callable[P, Model]:
    """Decorate your own function that makes a `Model`, so that the model, resized or not, records how it was made.

    The function must be importable where the run is read, as `package.module:function`, and pure: the same arguments
    make the same network. Its arguments may be JSON values and importable functions and dataclasses; with an argument
    that cannot be hashed, such as a dictionary, the model does not record how it was made.

    Raises:
        ValueError: a function with arguments that cannot be passed by name.

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


# The same network is the same object, however its sizes arose; the first call that makes it is recorded.
_MADE: dict[tuple[Model, str], Model] = {}
_RECORDED: set[Model] = set()


def is_recorded(model: Model, prefix: str) -> bool:
    """Whether a model was made by a recorded constructor of this module or package, and is unchanged.

    Args:
        model: any model.
        prefix: prefix of the constructor's name, such as `"lopjax.models."`.
    """
    return model.constructor is not None and model.constructor.make.startswith(prefix) and model in _RECORDED


def _constructed(model: Model, constructor: Constructor) -> Model:
    def resize(sizes: Mapping[str, int]) -> Model:
        return _constructed(model.resize(sizes), constructor)

    try:
        hash(constructor)
    except TypeError:  # models are hashed; with such an argument (a dictionary) nothing is recorded
        return model._replace(constructor=None)
    key = model, constructor.make
    if key not in _MADE:
        _MADE[key] = model._replace(resize=resize, constructor=constructor)
        _RECORDED.add(_MADE[key])
    return _MADE[key]


def _frozen(value: Any) -> Any:
    """Lists as tuples, because models are hashed together with these arguments."""
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value
