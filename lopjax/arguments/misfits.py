"""Errors of JAX, Flax and NumPy about arrays that do not fit, as one sentence about what was given."""

import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

# Of tracing itself, such as a branch on a traced value: nothing that other inputs would mend.
_ABOUT_TRACING = (jax.errors.ConcretizationTypeError, jax.errors.UnexpectedTracerError)
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "chex", "haiku", "equinox", "jaxtyping")
_MISFITS = (TypeError, IndexError, AssertionError, ZeroDivisionError, ValueError)


@contextmanager
def in_a_sentence(given: str, advice: str) -> Iterator[None]:
    """Say what was given and what to do where arrays do not fit; every other error passes, a network's own included.

    It costs nothing where nothing is wrong, so that it may stand around what is traced in every training step.

    Args:
        given: what does not fit, "the network does not take inputs float32[3]".
        advice: what to do.

    Raises:
        ValueError: with the first line of the error in parentheses.
    """
    try:
        yield
    except Exception as error:
        if not _is_misfit(error):
            raise
        raise ValueError(f"{given} ({first_line(error)}); {advice}") from error


def is_of_types(error: Exception) -> bool:
    """Whether an error says that types do not go together, itself or as the cause of a sentence."""
    return isinstance(error, TypeError) or isinstance(error.__cause__, TypeError)


def described(array: Any) -> str:
    """Type and shape of an array, "float32[4, 3]"; the type of anything else."""
    if not hasattr(array, "dtype"):
        return type(array).__name__
    return f"{array.dtype}{list(getattr(array, 'shape', ()))}"


def first_line(error: Exception) -> str:
    """What an error says, cut to one line of 160 characters."""
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__


def _is_misfit(error: Exception) -> bool:
    """Whether arrays do not fit, in the words of a library; what the network's author raises on purpose is none."""
    if isinstance(error, _ABOUT_TRACING):
        return False
    if type(error).__name__ == "ScopeParamShapeError":  # Flax's; Flax is not imported here
        return True
    if not isinstance(error, _MISFITS):
        return False
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    is_on_purpose = linecache.getline(frame.f_code.co_filename, line).lstrip().startswith("raise")
    return frame.f_globals.get("__name__", "").split(".")[0] in _LIBRARIES or not is_on_purpose
