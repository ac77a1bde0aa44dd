"""The precision of products, where a verdict depends on it."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def all_digits() -> Iterator[None]:
    """Products inside keep all digits of their type, on every device; as a decorator: `@all_digits()`.

    By default JAX multiplies float32 in TF32 on recent GPUs, and in bfloat16 on TPUs: ten bits of each factor's 23, or
    seven. Such a product is off by 1e-3 of its terms, while the tolerances of `lopjax.tolerance` allow for what float32
    rounds, 1e-5. That is fine for training, which is left alone. A sign, a rank or a certificate would claim what
    nothing has shown. On a CPU the default has all digits, and nothing is changed, so that compiled programs are
    shared with training.
    """
    if jax.default_backend() == "cpu":
        yield
        return
    with jax.default_matmul_precision("highest"):
        yield
