"""Moved to `lopjax.cloning`; this name goes with the next release."""

import warnings

from lopjax.cloning import ClonesFound, cluster_rows, find_clones, refine_partition, unit_coordinates

__all__ = ["ClonesFound", "cluster_rows", "find_clones", "refine_partition", "unit_coordinates"]

warnings.warn("lopjax.finding has moved to lopjax.cloning", DeprecationWarning, stacklevel=2)
