"""Networks in a run folder: the function that made each and its arguments, in JSON, from which it is rebuilt."""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from lopjax.model import Model
from lopjax.runs.errors import RunFolderError
from lopjax.runs.plain import plain, short, tagged, untagged

_OBJECT = "$object"


def recipe_of(model: Model, make: str | Callable[..., Model] | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe from which `network_of` makes the model, as plain JSON.

    Args:
        model: the network.
        make: the function that makes it, up to numbers of units, or its name as `package.module:function`; by default
            `model.constructor`.
        arguments: arguments of `make`, by name.

    Raises:
        ValueError: the model does not record how it was made, or rebuilding it gives a different network.
    """
    if make is None:
        if model.constructor is None:
            raise ValueError(
                "the network does not say how it was made; give make='package.module:function' and its arguments, or "
                "decorate that function with lopjax.models.recorded"
            )
        make, arguments = model.constructor.make, dict(model.constructor.arguments)
    recipe = {
        "make": reference_to(resolved(make) if isinstance(make, str) else make),
        "arguments": {name: _encoded(value, name) for name, value in arguments.items()},
        "sizes": {space: model.wiring.size(space) for space in model.wiring.cloneable},
    }
    if network_of(recipe).wiring != model.wiring:
        raise ValueError(f"{recipe['make']} with {short(dict(arguments))} makes another network than the one to record")
    return recipe


def network_of(recipe: Mapping[str, Any]) -> Model:
    """The network of a recipe. Runs the function that the recipe names.

    Raises:
        RunFolderError: the function does not exist, or refuses the arguments; the message says which and why.
    """
    make = recipe["make"]
    try:
        arguments = {name: _decoded(value) for name, value in recipe["arguments"].items()}
        base = resolved(make)(**arguments)
        sizes = {space: size for space, size in recipe["sizes"].items() if base.wiring.size(space) != size}
        return base.resize(sizes) if sizes else base
    except (ImportError, TypeError, ValueError, KeyError) as error:
        raise RunFolderError(f"{make}: cannot make the network again ({type(error).__name__}: {error})") from error


def reference_to(value: Any) -> str:
    """`package.module:name` of a function or class, with the shortest module path that exports it under its name.

    Raises:
        ValueError: it cannot be imported, because it was defined inside a function or in a script.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module == "__main__":
        specification = getattr(sys.modules["__main__"], "__spec__", None)
        module = None if specification is None else specification.name
    if not module or not name or "<" in name:
        raise ValueError(
            f"{short(value)}: cannot be imported by name, so it could not be found again; define it at the top level "
            "of an importable module"
        )
    parts = module.split(".")
    # A top-level package may only re-export names, as `lopjax` does: they belong to its subpackages.
    for length in range(min(2, len(parts)), len(parts) + 1):
        reference = f"{'.'.join(parts[:length])}:{name}"
        # `python -m package.module` has loaded it as __main__, so the module of that name has another copy.
        if _found(reference) is value or (length == len(parts) and value.__module__ == "__main__"):
            return reference
    raise ValueError(f"{short(value)}: is not what {module}:{name} refers to, so it could not be found again")


def resolved(reference: str) -> Any:
    """The function or class of a reference.

    Raises:
        ImportError: it does not exist.
        ValueError: the reference is malformed.
    """
    module, separator, name = reference.partition(":")
    if not separator or not module or not name:
        raise ValueError(f"make={reference!r}: must have the form 'package.module:function'")
    value = importlib.import_module(module)
    for part in name.split("."):
        if not hasattr(value, part):
            raise ImportError(f"{module} has no {name}")
        value = getattr(value, part)
    return value


def _found(reference: str) -> Any:
    try:
        return resolved(reference)
    except ImportError:
        return None


def _encoded(value: Any, where: str) -> Any:
    """An argument as plain JSON; functions and dataclasses by their names."""
    if isinstance(value, Mapping):
        return {name: _encoded(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encoded(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return {_OBJECT: reference_to(type(value)), "fields": _encoded(fields, where)}
    if callable(value):
        return {_OBJECT: reference_to(value)}
    return plain(value, where, not_finite=tagged)


def _decoded(value: Any) -> Any:
    """The argument; lists become tuples, which can be hashed."""
    if isinstance(value, list):
        return tuple(_decoded(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    if _OBJECT in value:
        function = resolved(value[_OBJECT])
        return function(**_decoded(value["fields"])) if "fields" in value else function
    plainly = untagged(value)
    return {name: _decoded(item) for name, item in value.items()} if isinstance(plainly, Mapping) else plainly
