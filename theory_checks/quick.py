"""Small programs that run once, made ready in half the time. No result depends on it.

Nearly all the time of the tests and of the theory checks goes into making such programs, by the thousand. The few that
run for long say so.
"""

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
