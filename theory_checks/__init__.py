"""Numerical checks of the theory, one file per theorem: `python -m theory_checks`.

To add a theorem: write `theory_checks/<theorem>.py` with a tuple `CHECKS` of `theory_checks.check.Check`, assumptions
and proofs in `theory_checks/proofs/<theorem>.md` (see `theory_checks.proof`), and add its name to `THEOREMS`. The
runner, its figure and `tests/repository/test_theory_checks.py` pick it up from there; its page and its rows of the
index are written by `python -m theory_checks --only <theorem> --write-docs`.
"""

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
