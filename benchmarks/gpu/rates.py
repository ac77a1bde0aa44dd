"""Rates of the machine: matrix products in every type, copies, and the cost of an empty step of a compiled loop."""

from collections.abc import Callable
from typing import Any

from benchmarks import harness
from benchmarks.gpu.section import Task, seconds_a_step


def run(task: Task) -> None:
    """Rates, under the names by which the other sections read them."""
    size = 256 if task.is_small else 8192
    machine = harness.describe_machine()
    task.emit("machine", note=harness.described(machine))
    for name, dtype, precision in (
        ("float32", "float32", None),
        ("float32, highest", "float32", "highest"),
        ("bfloat16", "bfloat16", None),
        ("float64", "float64", None),
    ):
        task.attempt(name, lambda dtype=dtype, precision=precision: product(size, dtype, precision))
    task.attempt("copy", lambda: copy(2**20 if task.is_small else 2**28))
    task.attempt("rounding of a product of float32", lambda: rounding(64 if task.is_small else 1024))
    for name, (loop, steps) in loops().items():
        task.attempt(
            name,
            lambda loop=loop, steps=steps: {"us": 1e6 * seconds_a_step(loop) / steps, "note": "one addition per step"},
        )


def product(size: int, dtype: str, precision: str | None) -> dict[str, Any]:
    """Operations per second (two per multiply-add) of a square matrix product, repeated in one compiled loop."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    with jax.enable_x64(dtype == "float64"):
        a = jnp.asarray(np.random.default_rng(0).standard_normal((size, size), np.float32) / size**0.5, dtype)

        @jax.jit
        def many(a: Any, b: Any, steps: Any) -> Any:
            return jax.lax.fori_loop(0, steps, lambda _, b: jnp.matmul(a, b, precision=precision), b)

        seconds = seconds_a_step(lambda steps: many(a, a, jnp.int32(steps)))
    rate = 2 * size**3 / seconds
    return {"rate": rate, "TFLOP/s": rate / 1e12, "note": f"{size} x {size}, precision {precision or 'default'}"}


def copy(entries: int) -> dict[str, Any]:
    """Bytes per second, read and written, when adding a number to a large array."""
    import jax
    import jax.numpy as jnp

    many = jax.jit(lambda x, steps: jax.lax.fori_loop(0, steps, lambda _, x: x + 1, x))
    x = jnp.zeros(entries, jnp.float32)
    rate = 8 * entries / seconds_a_step(lambda steps: many(x, jnp.int32(steps)))
    return {"rate": rate, "TB/s": rate / 1e12, "note": "float32, read and written"}


def rounding(size: int) -> dict[str, Any]:
    """Relative error of a float32 product in default and in full precision, which shows whether TF32 is in use."""
    import jax.numpy as jnp
    import numpy as np

    a = np.random.default_rng(0).standard_normal((2, size, size)).astype(np.float32)
    exact = a[0].astype(np.float64) @ a[1].astype(np.float64)
    errors = [
        float(np.linalg.norm(np.asarray(jnp.matmul(a[0], a[1], precision=precision)) - exact) / np.linalg.norm(exact))
        for precision in (None, "highest")
    ]
    words = f"relative: {errors[0]:.1e} by default, {errors[1]:.1e} in full precision"
    return {"note": f"{words}; TF32 is {'in use' if errors[0] > 1e-5 else 'not in use'} by default"}


def loops(known: int = 1024) -> dict[str, tuple[Callable[[int], Any], int]]:
    """A nearly empty step in every kind of compiled loop, and the number of steps per call."""
    import jax
    import jax.numpy as jnp

    x = jnp.zeros(1024)
    counted = jax.jit(lambda x, steps: jax.lax.fori_loop(0, steps, lambda _, x: x + 1, x))

    def scanned(unroll: int) -> Callable[[int], Any]:
        block = jax.jit(lambda x: jax.lax.scan(lambda x, _: (x + 1, None), x, length=known, unroll=unroll)[0])

        def run(blocks: int) -> Any:
            found = x
            for _ in range(blocks):
                found = block(found)
            return found

        return run

    return {
        "step of a loop whose length is data": (lambda steps: counted(x, jnp.int32(steps)), 1),
        "step of a loop of known length": (scanned(1), known),
        "step of a loop of known length, unrolled by 8": (scanned(8), known),
    }
