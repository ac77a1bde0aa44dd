"""Stability of the cloned 5x128 network, a million parameters, over 10,000 random images: `benchmarks.stability`."""

from typing import Any

from benchmarks import stability
from benchmarks.gpu.section import Task


def run(task: Task) -> None:
    """The closed form in both types, then `classify` of a small clone in double precision."""
    import jax

    samples, width = (64, 4) if task.is_small else (10_000, 128)
    for dtype in ("float64",) if task.is_small else ("float64", "float32"):

        def measure(dtype: str = dtype) -> dict[str, Any]:
            with jax.enable_x64(dtype == "float64"):
                return chosen(stability.closed_form(dtype, samples, width, repeats=1))

        task.attempt(f"unit blocks, {dtype}", measure)
    if not task.is_small:

        def dense() -> dict[str, Any]:
            with jax.enable_x64(True):
                return chosen(stability.dense_classify(1))

        task.attempt("classify, dense, float64", dense)


def chosen(found: dict[str, Any]) -> dict[str, Any]:
    """The columns of the table."""
    return {
        "parameters": found["num_params"],
        "s": found["seconds"],
        "first call, s": found.get("first_seconds"),
        "gradient pass, s": found.get("gradient_pass_seconds"),
        "verdict": found["verdict"],
        "inertia (+, -, 0)": " ".join(map(str, found["inertia"])),
        "note": "random images",
    }
