"""Moved to `lopjax.cloning`; importable from here for one more release."""

from lopjax.cloning import ClonesFound, cluster_rows, find_clones, refine_partition, unit_coordinates

__all__ = ["ClonesFound", "cluster_rows", "find_clones", "refine_partition", "unit_coordinates"]
