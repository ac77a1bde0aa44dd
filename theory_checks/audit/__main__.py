"""Run the audit: `python -m theory_checks.audit [--networks N] [--seed S]`. Exit status 1 if a verdict is false."""

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from theory_checks.quick import QUICK_COMPILATION

if TYPE_CHECKING:
    from theory_checks.audit.tally import Tally

os.environ.setdefault("XLA_FLAGS", QUICK_COMPILATION)


@dataclass(frozen=True)
class Arguments:
    """Compare verdicts and counts on random networks with long double or dense float64; false ones must be none."""

    networks: int = 2100
    """How many networks in all."""
    seed: int = 0
    """Seed of everything random."""
    structures: int = 40
    """How many architectures with closed-form blocks; each is compiled once. Other kinds add about ten."""


def main() -> int:
    """Parse, run, print; return the exit status."""
    import jax
    import tyro

    arguments = tyro.cli(Arguments, prog="python -m theory_checks.audit")
    jax.config.update("jax_enable_x64", True)
    from theory_checks.audit.everything import run_audit
    from theory_checks.audit.tally import Tally

    tally = Tally()
    for name, part in run_audit(arguments.networks, arguments.seed, arguments.structures):
        tally.add(part)
        for line in part.wrong:
            print(f"FALSE: {line}\n", flush=True)
        networks, undecided = sum(part.networks.values()), sum(part.undecided.values())
        print(f"{name}: {networks} networks, {undecided} undecided, {len(part.wrong)} false", flush=True)
    print_shares(tally)
    networks, eigenvalues = sum(tally.networks.values()), sum(tally.eigenvalues.values())
    print(f"{networks} networks, {eigenvalues} eigenvalues: {len(tally.wrong)} false")
    return 1 if tally.wrong else 0


def print_shares(tally: "Tally") -> None:
    """Print how often no verdict was given, per method, kind of network and type."""
    print(
        f"{'method':<15}{'parameters':<26}{'type':<10}{'networks':>9}{'undecided':>11}{'eigenvalues':>13}{'undecided':>11}"
    )
    for key in sorted(tally.networks):
        networks, eigenvalues = tally.networks[key], tally.eigenvalues[key]
        shares = (tally.undecided[key] / networks, tally.unsigned[key] / eigenvalues if eigenvalues else 0.0)
        counted = (f"{eigenvalues:>13}{f'{100 * shares[1]:.1f} %':>11}") if eigenvalues else ""
        print(f"{key[0]:<15}{key[1]:<26}{key[2]:<10}{networks:>9}{f'{100 * shares[0]:.1f} %':>11}{counted}")


if __name__ == "__main__":
    sys.exit(main())
