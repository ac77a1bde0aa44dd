"""JAX 0.10 writes each program down in a context of its own; here many share one, as JAX 0.12 does by itself."""

import threading

USES_OF_A_CONTEXT = 50
"""What a context holds of the programs before stays until the next one, so that it must not live for ever."""


def reuse_contexts() -> None:
    """Let many programs share what JAX needs to write one down, as JAX 0.12 does by itself.

    Before that, each program gets an MLIR context of its own, and loading the dialects into it costs two fifths of what
    a small program costs from trace to result (24 ms; 14 ms without). Where JAX does so, nothing is changed.
    """
    from jax._src.interpreters import mlir

    create = getattr(mlir, "make_ir_context", None)
    if create is None or hasattr(mlir, "_thread_local_context") or getattr(create, "reuses", False):
        return
    kept = threading.local()

    def make_ir_context():
        left = getattr(kept, "left", 0)
        if not left:
            kept.context, left = create(), USES_OF_A_CONTEXT
        kept.left = left - 1
        return kept.context

    make_ir_context.reuses = True  # pyright: ignore[reportFunctionMemberAccess]
    mlir.make_ir_context = make_ir_context
