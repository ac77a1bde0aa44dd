"""Numerical checks of the theory, one file per theorem: `python -m theory_checks`.

To add a theorem: write `theory_checks/<theorem>.py` with a tuple `CHECKS` of `theory_checks.check.Check`, assumptions
and proofs in `theory_checks/proofs/<theorem>.md` (see `theory_checks.proof`), and add its name to `THEOREMS`. The
runner, its figure and `tests/repository/test_theory_checks.py` pick it up from there; its page and its rows of the
index are written by `python -m theory_checks --only <theorem> --write-docs`.
"""

from importlib.metadata import version

THEOREMS: tuple[str, ...] = (
    "cloning",
    "confinement",
    "flatness",
    "optimizers",
    "breakers",
    "splitting",
    "resets",
    "frozen",
    "frozen_optimizers",
    "other_clones",
    "symmetry",
    "conserved",
    "lie_rank",
    "stability",
    "escape",
    "activation",
)
"""Modules of this package that hold checks, in the order in which they are printed."""

QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
"""XLA_FLAGS with which small programs that run once compile in half the time; no result depends on them."""

# The newer emitters of fused loops take two to three times as long to compile as the older ones. jaxlib 0.11 has no
# others, and an unknown flag ends the process.
if tuple(int(number) for number in version("jaxlib").split(".")[:2]) < (0, 11):
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"
