"""Users' own metrics on the command line: `--metrics package.module:function`, found on Python's path."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def own_metrics(references: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """The functions by name, under which they are recorded.

    Args:
        references: `package.module:function` each. A function takes a `lopjax.metrics.SiteActivity` and returns one
            number (see `lopjax.probes.symptoms`).

    Raises:
        ValueError: a reference that cannot be read or found, or two functions with one name.
    """
    functions: dict[str, Callable[..., Any]] = {}
    for reference in references:
        module, separator, name = reference.partition(":")
        if not (module and separator and name):
            raise ValueError(f"metrics={reference!r}: must be package.module:function")
        if name in functions:
            raise ValueError(f"metrics={tuple(references)}: {name} occurs twice; each name is recorded once")
        functions[name] = _function(reference, module, name)
    return functions


def _function(reference: str, module: str, name: str) -> Callable[..., Any]:
    try:
        function = getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ValueError(f"metrics={reference!r}: there is no module {module} on Python's path") from None
    if not callable(function):
        raise ValueError(f"metrics={reference!r}: module {module} has no function {name}")
    return function
