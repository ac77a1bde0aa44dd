"""Small programs that run once, made ready in half the time. No result depends on it.

Nearly all the time of the tests and of the theory checks goes into making such programs, by the thousand. The few that
run for long say so.
"""

import threading
from importlib.metadata import version

QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
"""XLA_FLAGS with which small programs that run once compile in half the time."""

# The newer emitters of fused loops take two to three times as long to compile as the older ones. jaxlib 0.11 has no
# others, and an unknown flag ends the process.
if tuple(int(number) for number in version("jaxlib").split(".")[:2]) < (0, 11):
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"

THOROUGH_COMPILATION: dict[str, bool | int] = {"xla_backend_optimization_level": 3}
"""`compiler_options` of `jax.jit` for one program that runs for long: it undoes those flags, and then runs four to ten
times as fast."""

if "fusion_emitters" in QUICK_COMPILATION:
    THOROUGH_COMPILATION["xla_cpu_use_fusion_emitters"] = True

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
