"""Symptoms of lost plasticity: functions from an array of activations (or backward signals) to one number.

Every function takes ``h`` of shape ``(samples, units)``. Reshape convolutional maps and token sequences first, units
last: ``h.reshape(-1, h.shape[-1])`` for channels-last arrays. All functions are pure, keep fixed shapes (so they work
under ``jit`` and ``vmap``), compute in the dtype of ``h`` but at least in float32, and are finite for finite input of
any size, from the smallest subnormal number to the largest. A NaN or an infinity in ``h`` gives NaN: a diverged network
must not look healthy.

Some names have several meanings in the literature; here each meaning has its own name (see the rank functions). Under
one ``jit`` XLA computes a decomposition only once, however many of these functions use it.

``SITE_METRICS`` lists what :func:`lopjax.probes.symptoms` measures at every site, and hence what a run records. A new
metric is a function in one of these modules and a row of ``SITE_METRICS``; for one of your own pass
``symptoms(metrics=)``.
"""

from collections.abc import Mapping
from types import MappingProxyType

from lopjax.metrics.clones import cloning_r2, partition_r2
from lopjax.metrics.gaussianity import excess_kurtosis, ks_non_gaussianity
from lopjax.metrics.ranks import effective_rank, numerical_rank, renyi2_rank, srank, stable_rank
from lopjax.metrics.site import SiteActivity, SiteMetric
from lopjax.metrics.units import (
    dead_fraction,
    dead_units,
    dormant_fraction,
    dormant_scores,
    duplicate_fraction,
    saturated_fraction,
)

SITE_METRICS: Mapping[str, SiteMetric] = MappingProxyType(
    {
        "effective_rank": lambda site: effective_rank(site.post),
        "stable_rank": lambda site: stable_rank(site.post),
        "renyi2_rank": lambda site: renyi2_rank(site.post),
        "numerical_rank": lambda site: numerical_rank(site.post),
        "srank": lambda site: srank(site.post),
        "dead_fraction": lambda site: dead_fraction(site.post),
        "dormant_fraction": lambda site: dormant_fraction(site.post),
        "duplicate_fraction": lambda site: duplicate_fraction(site.post),
        "saturated_fraction": lambda site: saturated_fraction(site.post, site.signal),
        "ks_non_gaussianity": lambda site: ks_non_gaussianity(site.pre),
        "excess_kurtosis": lambda site: excess_kurtosis(site.pre),
    }
)
"""Metrics measured at every site of a network, by the name under which they are recorded."""

__all__ = [
    "SITE_METRICS",
    "SiteActivity",
    "SiteMetric",
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
