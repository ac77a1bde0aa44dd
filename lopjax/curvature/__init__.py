"""Second derivatives without matrices: products, restrictions, extreme eigenpairs, spectral densities."""

from lopjax.curvature.blocks import BlockSpectra, block_eigenvalues
from lopjax.curvature.density import SpectralDensity, smooth_density, spectral_density
from lopjax.curvature.eigenpairs import Eigenpairs, extreme_eigenvalues
from lopjax.curvature.guards import check_loss, check_same_tree, check_size
from lopjax.curvature.products import (
    constraint_jacobian,
    dense_hessian,
    ggn_vp,
    hvp,
    per_sample_gradients,
    restrict,
)
from lopjax.curvature.streaming import hvp_over_batches, mean_over_batches

__all__ = [
    "BlockSpectra",
    "Eigenpairs",
    "SpectralDensity",
    "block_eigenvalues",
    "check_loss",
    "check_same_tree",
    "check_size",
    "constraint_jacobian",
    "dense_hessian",
    "extreme_eigenvalues",
    "ggn_vp",
    "hvp",
    "hvp_over_batches",
    "mean_over_batches",
    "per_sample_gradients",
    "restrict",
    "smooth_density",
    "spectral_density",
]
