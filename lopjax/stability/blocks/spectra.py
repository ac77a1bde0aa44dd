"""Spectrum and inertia of the block M = [[A, B], [B', 0]] of one unit, in float64 on the host."""

from typing import NamedTuple

import numpy as np

from lopjax.stability.verdicts import SignCounts, count_signs
from lopjax.tolerance import CERTAIN_FROM, Threshold

Matrix = np.ndarray


def unit_eigenvalues(curvature: Matrix | None, coupling: Matrix) -> np.ndarray:
    """All eigenvalues of `M = [[A, B], [B', 0]]`, ascending.

    With A = 0 they are plus and minus the singular values of B, and zeros, so a thin decomposition of B suffices.

    Args:
        curvature: A, `(p, p)` symmetric; `None` for zero.
        coupling: B, `(p, q)`.
    """
    p, q = coupling.shape
    if curvature is None:
        singular = np.linalg.svd(coupling, compute_uv=False)
        return np.sort(np.concatenate([-singular, np.zeros(p + q - 2 * len(singular)), singular]))
    return np.linalg.eigvalsh(np.block([[symmetric(curvature), coupling], [coupling.T, np.zeros((q, q))]]))


class BlockError(NamedTuple):
    """The tolerance tau of the two parts of a block, in the spectral norm, with the rounding of their factors.

    Attributes:
        curvature: tau of A.
        coupling: tau of B.
    """

    curvature: float
    coupling: float

    @property
    def total(self) -> float:
        """Tau of M: the error of M is at most that of A plus that of B."""
        return self.curvature + self.coupling


def block_inertia(
    curvature: Matrix | None, coupling: Matrix, error: BlockError, zero_below: float = 0.0, structural: int = 0
) -> SignCounts:
    """Inertia of `M = [[A, B], [B', 0]]`, from its eigenvalues or from Sylvester's law, whichever decides more.

    B is p x q of rank r, Z an orthonormal basis of ker B' (p - r columns):
    `n_plus = r + n_plus(Z'AZ)`, `n_minus = r + n_minus(Z'AZ)`, `n_zero = n_zero(Z'AZ) + q - r`. This decides signs that
    eigenvalues cannot: with A of size 1 and a singular value s of B, M has an eigenvalue near -s², which drowns in
    rounding long before s does. Any B that is certainly nonzero makes a saddle. Eigenvalues decide where a small B
    leaves its kernel uncertain.

    Args:
        curvature: A, `(p, p)` symmetric; `None` for zero by algebra.
        coupling: B, `(p, q)`.
        error: tau of both.
        zero_below: absolute level below which an eigenvalue of uncertain sign counts as zero.
        structural: number of zeros that hold by algebra, whatever the level.

    Returns:
        The counts.
    """
    rule = Threshold(error.total, 0.0, zero_below)
    values = unit_eigenvalues(curvature, coupling)
    by_value = count_signs(values, error.total)
    plus, minus = by_value.plus, by_value.minus
    left, singular, _ = np.linalg.svd(coupling, full_matrices=False)
    strong = int(np.count_nonzero(singular > CERTAIN_FROM * error.coupling))
    if curvature is None:
        plus = minus = strong
    else:
        curvature = symmetric(curvature)
        size = float(np.linalg.norm(curvature, 2))
        firm = int(
            np.count_nonzero(
                singular > max(CERTAIN_FROM * error.coupling, (CERTAIN_FROM * error.coupling * size) ** 0.5)
            )
        )
        for rank in {strong, firm}:
            rest = _signs_on_kernel(curvature, left[:, :rank], size, error, float(singular[rank - 1]) if rank else 0.0)
            plus, minus = max(plus, rank + rest.plus), max(minus, rank + rest.minus)
    middle = values[minus : len(values) - plus]
    zero = max(int(np.count_nonzero(rule.is_zero(middle))), min(structural, len(middle)))
    return SignCounts(plus, minus, zero, len(middle) - zero)


def _signs_on_kernel(curvature: Matrix, left: Matrix, size: float, error: BlockError, weakest: float) -> SignCounts:
    """Certain signs of `Z'AZ`, Z at right angles to the columns of `left`.

    The exact B has up to `b = 10 tau` in those rows; clearing it by the part of B that is kept, whose smallest
    singular value is s, changes `Z'AZ` by at most `(2 b/s + (b/s)²) ||A||`.
    """
    turned = CERTAIN_FROM * error.coupling / weakest if weakest else 0.0
    complement = np.linalg.qr(left, mode="complete")[0][:, left.shape[1] :]
    values = np.linalg.eigvalsh(complement.T @ curvature @ complement) if complement.shape[1] else np.zeros(0)
    return count_signs(values, error.curvature, (2 * turned + turned**2) * size)


def structural_zeros(p: int, q: int, has_curvature: bool) -> int:
    """Zero eigenvalues that M has whatever its entries: `|p - q|` of them if A = 0, else `q - p` if that is positive.

    `has_curvature` may be false only where A is identically zero, as for piecewise linear functions.
    """
    return max(q - p, 0) if has_curvature else abs(p - q)


def symmetric(matrix: Matrix) -> Matrix:
    """Symmetric part, in float64."""
    return (matrix + matrix.T) / 2
