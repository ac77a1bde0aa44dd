"""Stability of the manifolds that trap training: how the loss curves normal to them, and how fast training escapes."""

from lopjax.stability.blocks import SpaceBlocks, UnitBlocks, unit_blocks, unit_blocks_of_clones
from lopjax.stability.classify import classify
from lopjax.stability.escape import escape_time, kick_components
from lopjax.stability.escape_along import escape_time_along
from lopjax.stability.escape_law import (
    HeavyBall,
    Law,
    UnitLaw,
    departure_probability,
    deviation_covariance,
    escape_law,
    simulated_departures,
)
from lopjax.stability.escape_under_noise import (
    DecayingNoise,
    escape_probability,
    escape_quantiles,
    first_passage_times,
    noise_variances,
    propagated_covariance,
    weighted_chi_square_tail,
)
from lopjax.stability.kicks import FreeKick, RankCeiling, free_kick, rank_ceiling
from lopjax.stability.linearised import linearised, linearised_gradient, split
from lopjax.stability.lyapunov import LyapunovEstimate, noise_exponent, transverse_lyapunov
from lopjax.stability.verdicts import Stability, StabilityReport
from lopjax.stability.weight_decay import (
    Attraction,
    DecayedClones,
    DecayThreshold,
    critical_weight_decay,
    decayed_clones,
    weight_decay_threshold,
)

__all__ = [
    "Attraction",
    "DecayThreshold",
    "DecayedClones",
    "DecayingNoise",
    "FreeKick",
    "HeavyBall",
    "Law",
    "LyapunovEstimate",
    "RankCeiling",
    "SpaceBlocks",
    "Stability",
    "StabilityReport",
    "UnitBlocks",
    "UnitLaw",
    "classify",
    "critical_weight_decay",
    "decayed_clones",
    "departure_probability",
    "deviation_covariance",
    "escape_law",
    "escape_probability",
    "escape_quantiles",
    "escape_time",
    "escape_time_along",
    "first_passage_times",
    "free_kick",
    "kick_components",
    "linearised",
    "linearised_gradient",
    "noise_exponent",
    "noise_variances",
    "propagated_covariance",
    "rank_ceiling",
    "simulated_departures",
    "split",
    "transverse_lyapunov",
    "unit_blocks",
    "unit_blocks_of_clones",
    "weight_decay_threshold",
    "weighted_chi_square_tail",
]
