"""Stability of the manifolds that trap training: which way the loss curves off them, and how fast one escapes."""

from lopjax.stability.classification import classify
from lopjax.stability.escape import (
    FreeKick,
    LyapunovEstimate,
    critical_weight_decay,
    escape_time,
    free_kick,
    kick_components,
    transverse_lyapunov,
)
from lopjax.stability.report import Stability, StabilityReport
from lopjax.stability.trajectory import escape_time_along
from lopjax.stability.unit_blocks import SpaceBlocks, UnitBlocks, unit_blocks, unit_blocks_of_clones

__all__ = [
    "FreeKick",
    "LyapunovEstimate",
    "SpaceBlocks",
    "Stability",
    "StabilityReport",
    "UnitBlocks",
    "classify",
    "critical_weight_decay",
    "escape_time",
    "escape_time_along",
    "free_kick",
    "kick_components",
    "transverse_lyapunov",
    "unit_blocks",
    "unit_blocks_of_clones",
]
