"""Checks of the activation theory: kernel maps, alpha, fixed points, effective and hard rank, frozen limits."""

from theory_checks import activation_alpha, activation_kernels, activation_ranks
from theory_checks.check import Check

CHECKS: tuple[Check, ...] = (*activation_kernels.CHECKS, *activation_alpha.CHECKS, *activation_ranks.CHECKS)
