"""Stability of the manifolds that trap training: which way the loss curves off them, and how fast one escapes."""

from lopjax.stability.classification import classify
from lopjax.stability.report import Stability, StabilityReport
from lopjax.stability.unit_blocks import SpaceBlocks, UnitBlocks, unit_blocks, unit_blocks_of_clones

__all__ = [
    "SpaceBlocks",
    "Stability",
    "StabilityReport",
    "UnitBlocks",
    "classify",
    "unit_blocks",
    "unit_blocks_of_clones",
]
