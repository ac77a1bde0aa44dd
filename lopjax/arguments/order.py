"""One order of arguments everywhere, `(model, variables, batch, ..., loss=)`; the old one warns for one release."""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

Arguments = dict[str, Any]


def takes_old_order(
    old: str,
    is_old: Callable[[tuple[Any, ...], Arguments], bool],
    adapt: Callable[[Arguments], Arguments] = lambda given: given,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: still accept the arguments in the order of the release before, with a warning that says the new one.

    Args:
        old: names of the positional arguments in the old order, separated by blanks.
        is_old: (positional, named arguments) -> whether they are in the old order, which their types tell. Arguments
            with a name that only the old order has are, too.
        adapt: old arguments by name -> new arguments by name, where names have changed.

    Raises:
        TypeError: from the decorated function: more positional arguments than the old order has, or one given twice.
    """
    names = old.split()

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        new = set(inspect.signature(function).parameters)

        @functools.wraps(function)
        def either_order(*args: P.args, **kwargs: P.kwargs) -> R:
            if not is_old(args, kwargs) and set(kwargs) <= new:
                return function(*args, **kwargs)
            current = _spoken(function)
            if len(args) > len(names) or set(names[: len(args)]) & set(kwargs):
                raise TypeError(f"the arguments do not fit {current}, nor the old order ({', '.join(names)})")
            warnings.warn(
                f"the arguments of {function.__name__} have a new order, {current}; "
                f"the old one, ({', '.join(names)}), works for one more release",
                DeprecationWarning,
                stacklevel=2,
            )
            return function(**adapt(dict(zip(names, args, strict=False)) | kwargs))  # pyright: ignore[reportCallIssue]

        return either_order

    return decorate


def _spoken(function: Callable[..., Any]) -> str:
    """`name(a, b, *, loss=...)`: what comes first, and the loss, which is passed by name."""
    parameters = inspect.signature(function).parameters.values()
    first = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    named = ["loss=..."] if any(each.name == "loss" and each.kind is each.KEYWORD_ONLY for each in parameters) else []
    return f"{function.__name__}({', '.join(first + (['*', *named] if named else []))})"


def third_is(is_old: Callable[[Any], bool]) -> Callable[[tuple[Any, ...], Arguments], bool]:
    """Whether the third positional argument, which is the batch today, is something else."""
    return lambda args, named: len(args) > 2 and is_old(args[2])


def third_is_mapping_or_no_batch(args: tuple[Any, ...], named: Arguments) -> bool:
    """Whether units come third, where the batch is today, or no batch is given at all, not even `None`."""
    return isinstance(args[2], Mapping) if len(args) > 2 else "batch" not in named


def loss_is_first(args: tuple[Any, ...], named: Arguments) -> bool:
    """Whether the loss comes first, where the model is today, and not by name."""
    return bool(args) and callable(args[0]) and "loss" not in named


def no_batch(given: Arguments) -> Arguments:
    """A batch that was left out is `None`."""
    return {"batch": None, **given}


def renamed(**names: str) -> Callable[[Arguments], Arguments]:
    """Old names of arguments to new ones."""
    return lambda given: {names.get(name, name): value for name, value in given.items()}


def packed(inputs: str) -> Callable[[Arguments], Arguments]:
    """Inputs (under their old name) and labels, once two arguments, as one batch."""

    def adapt(given: Arguments) -> Arguments:
        if not {inputs, "labels"} <= set(given):
            return given
        others = {name: value for name, value in given.items() if name not in (inputs, "labels")}
        return {**others, "batch": (given[inputs], given["labels"])}

    return adapt
