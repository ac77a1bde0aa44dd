"""Compilation on a thread of its own, beside what the main thread does."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def compiled_ahead(function: Any, *shapes: Any) -> Callable[..., Any]:
    """Start compiling a jitted function now; its first call waits for that and finds the program in jit's cache.

    XLA compiles a program on one core. What a short run needs only after its first steps is compiled on another core
    while the first steps are compiled and taken.

    Args:
        function: from `jax.jit`.
        shapes: what it will be called with, as arrays or `jax.ShapeDtypeStruct`s; other shapes are compiled when
            they come.

    Returns:
        The function. Compilation that fails is tried again, and raises, where it is called.
    """
    pool = ThreadPoolExecutor(max_workers=1)
    compiled = pool.submit(lambda: function.lower(*shapes).compile())
    pool.shutdown(wait=False)

    def call(*args: Any) -> Any:
        compiled.exception()  # waits; two threads would compile it twice
        return function(*args)

    return call
