"""JAX's strict modes, and the tools of the library that do not depend on them."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def standard_promotion() -> Iterator[None]:
    """JAX's default promotion of types and ranks inside, whatever mode the caller has set.

    For whole analyses, which nobody differentiates or compiles into a program of their own; as a decorator:
    `@standard_promotion()`.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
