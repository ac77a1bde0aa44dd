"""Run the audit: `python -m theory_checks.audit [--networks N] [--seed S]`. Exit status 1 if a verdict is false."""

import os
import sys
from dataclasses import dataclass

# What is checked does not depend on how well XLA optimises.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


@dataclass(frozen=True)
class Arguments:
    """Compare verdicts and counts on random networks with long double; false ones must be none."""

    networks: int = 2100
    """How many networks."""
    seed: int = 0
    """Of everything random."""
    structures: int = 60
    """How many architectures, at most; each is compiled once."""


def main() -> int:
    """Parse, run, print; return the exit status."""
    import jax
    import tyro

    arguments = tyro.cli(Arguments, prog="python -m theory_checks.audit")
    jax.config.update("jax_enable_x64", True)
    from theory_checks.audit.near_clones import audit_near_clones
    from theory_checks.audit.running import audit

    tally = audit(arguments.networks, arguments.seed, arguments.structures)
    wrong = [*tally.wrong, *audit_near_clones(arguments.seed)]
    for line in wrong:
        print(f"FALSE: {line}\n")
    print(f"{'parameters':<26}{'type':<10}{'networks':>9}{'undecided':>11}{'eigenvalues':>13}{'undecided':>11}")
    for key in sorted(tally.networks):
        networks, eigenvalues = tally.networks[key], tally.eigenvalues[key]
        shares = (f"{100 * tally.undecided[key] / networks:.1f} %", f"{100 * tally.unsigned[key] / eigenvalues:.1f} %")
        print(f"{key[0]:<26}{key[1]:<10}{networks:>9}{shares[0]:>11}{eigenvalues:>13}{shares[1]:>11}")
    print(f"{sum(tally.networks.values())} networks, {sum(tally.eigenvalues.values())} eigenvalues: {len(wrong)} false")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
