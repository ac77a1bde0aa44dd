"""Spectrum and inertia of the block M = [[A, B], [B', 0]] of one unit, in float64 on the host."""

import numpy as np

from lopjax.stability.report import SIGNED_FROM, SignCounts, count_signs

Matrix = np.ndarray


def block_eigenvalues(curvature: Matrix | None, coupling: Matrix) -> np.ndarray:
    """All eigenvalues of `M = [[A, B], [B', 0]]`, ascending.

    With A = 0 they are plus and minus the singular values of B and zeros, so a thin decomposition of B is enough.

    Args:
        curvature: A, `(p, p)` symmetric; `None` for zero.
        coupling: B, `(p, q)`.
    """
    p, q = coupling.shape
    if curvature is None:
        singular = np.linalg.svd(coupling, compute_uv=False)
        return np.sort(np.concatenate([-singular, np.zeros(p + q - 2 * len(singular)), singular]))
    return np.linalg.eigvalsh(np.block([[symmetric(curvature), coupling], [coupling.T, np.zeros((q, q))]]))


def block_inertia(curvature: Matrix | None, coupling: Matrix, tolerance: float) -> SignCounts:
    """Inertia of `M = [[A, B], [B', 0]]` by Sylvester's law.

    B is p x q of rank r, Z an orthonormal basis of ker B' (p - r columns):
    `n_plus = r + n_plus(Z'AZ)`, `n_minus = r + n_minus(Z'AZ)`, `n_zero = n_zero(Z'AZ) + q - r`. This decides signs that
    eigenvalues cannot: with A of size 1 and a singular value s of B, M has an eigenvalue near -s², which drowns in
    rounding long before s does. Any B that is certainly not zero makes a saddle.

    Args:
        curvature: A, `(p, p)` symmetric; `None` for zero.
        coupling: B, `(p, q)`.
        tolerance: rounding of both, in the spectral norm.

    Returns:
        The counts. A singular value between the tolerance and ten times it leaves the eigenvalues that it may move
        undecided.
    """
    p, q = coupling.shape
    if curvature is None:
        singular = np.linalg.svd(coupling, compute_uv=False)
        strong, weak = _split(singular, tolerance)
        return SignCounts(strong, strong, p + q - 2 * (strong + weak), 2 * weak)
    left, singular, _ = np.linalg.svd(coupling, full_matrices=False)
    strong, weak = _split(singular, tolerance)
    complement = np.linalg.qr(left[:, :strong], mode="complete")[0][:, strong:]
    curvature = symmetric(curvature)
    # Rounding turns the kernel of B' by up to tolerance / (smallest singular value kept), and Z'AZ with it.
    turned = 2 * np.linalg.norm(curvature) * tolerance / singular[strong - 1] if strong else 0.0
    rest = count_signs(np.linalg.eigvalsh(complement.T @ curvature @ complement), tolerance, turned)
    zero_below = q - strong
    unsure = min(weak, zero_below) + min(weak, rest.zero)
    return SignCounts(strong + rest.plus, strong + rest.minus, rest.zero + zero_below - unsure, rest.undecided + unsure)


def structural_zeros(p: int, q: int, has_curvature: bool) -> int:
    """Zero eigenvalues that M has whatever the numbers: B leaves `|p - q|` directions, or `q - p` next to an A."""
    return max(q - p, 0) if has_curvature else abs(p - q)


def symmetric(matrix: Matrix) -> Matrix:
    """Symmetric part, in float64."""
    return (matrix + matrix.T) / 2


def _split(singular: np.ndarray, tolerance: float) -> tuple[int, int]:
    """How many singular values are certainly not zero, and how many are neither."""
    strong = int(np.count_nonzero((singular >= SIGNED_FROM * tolerance) & (singular > tolerance)))
    return strong, int(np.count_nonzero(singular > tolerance)) - strong
