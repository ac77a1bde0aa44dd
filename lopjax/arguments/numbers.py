"""Arrays of numbers, or one sentence: what JAX and NumPy say of strings names neither the argument nor the remedy."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.core import Tracer

P = ParamSpec("P")
R = TypeVar("R")
Ranks = int | tuple[int, ...] | None


def check_numbers(name: str, given: Any, ranks: Ranks = None) -> None:
    """Refuse what is no array of numbers, or has another number of axes; of a tree, every leaf. Under a trace, too.

    Args:
        name: name of the argument.
        given: what was given.
        ranks: how many axes it may have; any number if None.

    Raises:
        ValueError: it is refused.
    """
    if given is None:
        return
    # A list of numbers is an array; a list of arrays is one where an array is asked for, and a tree elsewhere.
    is_sequence = isinstance(given, list | tuple) and not hasattr(given, "_fields")
    is_array = is_sequence and (ranks is not None or not any(map(_is_node, given)))
    if not is_array and not jax.tree_util.all_leaves([given]):
        for path, leaf in jax.tree_util.tree_leaves_with_path(given):
            check_numbers(name + jax.tree_util.keystr(path), leaf, ranks)
        return
    try:
        array: Any = given if hasattr(given, "dtype") else np.asarray(given)
    except (ValueError, TypeError):  # a ragged list; a list of traced values
        array = None
    if array is None and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(given)):
        return
    if array is None or getattr(array.dtype, "kind", "V") in "USOMm":
        shown = repr(given).replace("\n", " ")[:60]
        raise ValueError(f"{name}={shown}: must be an array of numbers")
    allowed = (ranks,) if isinstance(ranks, int) else ranks
    if allowed is not None and array.ndim not in allowed:
        axes = " or ".join(map(str, allowed))
        raise ValueError(f"{name} has shape {tuple(array.shape)}: must have {axes} {'axis' if axes == '1' else 'axes'}")


def _is_node(each: Any) -> bool:
    """Whether an entry of a sequence makes it a tree: an array, or a node other than a list or tuple."""
    return hasattr(each, "dtype") or not (isinstance(each, list | tuple) or jax.tree_util.all_leaves([each]))


def check_finite(name: str, tree: Any) -> None:
    """Refuse a tree without a number, or with one that is not finite; traced values pass.

    Raises:
        ValueError: it is refused.
    """
    check_numbers(name, tree)
    leaves = jax.tree.leaves(tree)
    if not sum(np.size(leaf) for leaf in leaves):
        raise ValueError(f"{name} holds no number: give at least one")
    if not all(isinstance(leaf, Tracer) or np.isfinite(np.asarray(leaf, float)).all() for leaf in leaves):
        raise ValueError(f"{name} holds numbers that are not finite: every one must be")


def takes_numbers(**ranks: Ranks) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: refuse arguments of these names as `check_numbers` does, where the user called.

    Args:
        ranks: by name of an argument, how many axes it may have; any number if None.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        order = list(inspect.signature(function).parameters)
        places = {name: order.index(name) for name in ranks}

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name, place in places.items():
                check_numbers(name, args[place] if place < len(args) else kwargs.get(name), ranks[name])
            return function(*args, **kwargs)

        return checked

    return decorate
