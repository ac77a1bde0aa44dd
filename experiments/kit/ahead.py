"""Compilation on a separate thread, in parallel with the main thread."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def compiled_ahead(function: Any, *shapes: Any) -> Callable[..., Any]:
    """Start compiling a jitted function now; its first call waits for this and finds the program in jit's cache.

    XLA compiles a program on one core. A program that a short run needs only after its first steps is compiled on
    another core while the first steps are compiled and executed.

    Args:
        function: a function from `jax.jit`.
        shapes: its arguments, as arrays or `jax.ShapeDtypeStruct`s; other shapes are compiled when they occur.

    Returns:
        The function. If compilation fails it is tried again, and raises, when the function is called.
    """
    pool = ThreadPoolExecutor(max_workers=1)
    compiled = pool.submit(lambda: function.lower(*shapes).compile())
    pool.shutdown(wait=False)

    def call(*args: Any) -> Any:
        compiled.exception()  # waits; two threads would compile it twice
        return function(*args)

    return call
