"""One answer to "is this an integer?", the same wherever the library takes a count, a size or an index."""

from operator import index
from typing import Any

import numpy as np


def as_integer(value: Any, minimum: int, message: str) -> int:
    """A Python int from any integer: Python's, NumPy's or JAX's, as a scalar or an array without axes.

    Args:
        value: what was given; True and False, floats (2.0 too), strings and traced values are refused.
        minimum: the smallest that is allowed.
        message: text of the error, worded by the caller.

    Raises:
        ValueError: with that message.
    """
    try:
        number = None if isinstance(value, bool | np.bool_) or np.ndim(value) else index(value)
    except (TypeError, ValueError):  # a tracer raises a TypeError, a ragged list a ValueError
        number = None
    if number is None or number < minimum:
        raise ValueError(message)
    return number
