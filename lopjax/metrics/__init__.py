"""Symptoms of lost plasticity: functions from an array of activations (or backward signals) to one number.

Every function takes ``h`` of shape ``(samples, units)``. Bring convolutional maps and token sequences to that
shape first, units last: ``h.reshape(-1, h.shape[-1])`` for channels-last arrays. All functions are pure, keep
fixed shapes (so they work under ``jit`` and ``vmap``), compute in the dtype of ``h`` but at least in float32, and
are finite for finite input of any size, from the smallest subnormal number to the largest. A NaN or an infinity in
``h`` gives NaN: a diverged network must not look healthy.

Some names mean several things in the literature; here each meaning has its own (see the rank functions). Under
one ``jit`` XLA computes a decomposition once, however many of these functions use it.
"""

from lopjax.metrics.clones import cloning_r2, partition_r2
from lopjax.metrics.gaussianity import excess_kurtosis, ks_non_gaussianity
from lopjax.metrics.ranks import effective_rank, numerical_rank, renyi2_rank, srank, stable_rank
from lopjax.metrics.units import (
    dead_fraction,
    dead_units,
    dormant_fraction,
    dormant_scores,
    duplicate_fraction,
    saturated_fraction,
)

__all__ = [
    "cloning_r2",
    "dead_fraction",
    "dead_units",
    "dormant_fraction",
    "dormant_scores",
    "duplicate_fraction",
    "effective_rank",
    "excess_kurtosis",
    "ks_non_gaussianity",
    "numerical_rank",
    "partition_r2",
    "renyi2_rank",
    "saturated_fraction",
    "srank",
    "stable_rank",
]
