"""Metrics from their definitions: numpy and scipy, float64, one unit or one sample at a time."""

import numpy as np
import scipy.stats


def entropy_rank(weights):
    shares = weights[weights > 0] / weights.sum()
    return np.exp(-(shares * np.log(shares)).sum())


def rank_oracles(h):
    values = np.linalg.svd(h, compute_uv=False)
    variances = np.linalg.svd(h - h.mean(axis=0), compute_uv=False) ** 2
    return {
        "effective_rank": entropy_rank(values),
        "effective_rank_covariance": entropy_rank(variances),
        "effective_rank_second_moment": entropy_rank(values**2),
        "renyi2_rank": variances.sum() ** 2 / (variances**2).sum(),
        "stable_rank": np.linalg.norm(h) ** 2 / np.linalg.norm(h, ord=2) ** 2,
        "numerical_rank": np.linalg.matrix_rank(h),
        "srank": 1 + np.flatnonzero(np.cumsum(values) >= 0.99 * values.sum())[0],
    }


def between_cluster_share(h, clusters):
    """R² from the other side of the law of total variance: explained over total, sample by sample."""
    clusters, between, total = np.asarray(clusters), 0.0, 0.0
    for row in h:
        for label in np.unique(clusters):
            members = row[clusters == label]
            between += len(members) * (members.mean() - row.mean()) ** 2
        total += len(row) * row.var()
    return between / total


def numpy_samples(array) -> np.ndarray:
    array = np.asarray(array)
    return np.concatenate([array[index] for index in np.ndindex(array.shape[:-2])]) if array.ndim > 2 else array


def metrics_in_numpy(z: np.ndarray, h: np.ndarray, e: np.ndarray) -> dict[str, float]:
    """The definitions, written out in float64: z pre-activations, h activations, e backward signal."""
    z, h, e = (array.astype(np.float64) for array in (z, h, e))
    spectrum = np.linalg.svd(h, compute_uv=False)
    shares = spectrum[spectrum > 0] / spectrum.sum()
    covariance = np.cov(h.T)
    directions = h / np.maximum(np.linalg.norm(h, axis=0), 1e-300)
    standard = (z - z.mean(axis=0)) / z.std(axis=0)
    return {
        "effective_rank": np.exp(-np.sum(shares * np.log(shares))),
        "stable_rank": np.sum(spectrum**2) / spectrum[0] ** 2,
        "renyi2_rank": np.trace(covariance) ** 2 / np.sum(covariance**2),
        "numerical_rank": np.linalg.matrix_rank(h.astype(np.float32)),
        "srank": 1 + np.flatnonzero(np.cumsum(spectrum) >= 0.99 * spectrum.sum())[0],
        "dormant_fraction": np.mean(np.abs(h).mean(axis=0) <= 0.025 * np.abs(h).mean()),
        "dead_fraction": np.mean(np.mean(np.abs(h) <= 1e-7, axis=0) > 0.95),
        "duplicate_fraction": np.mean((np.triu(directions.T @ directions, k=1) > 0.95).any(axis=1)),
        "saturated_fraction": np.mean(np.mean(np.abs(e) < 1e-4 * np.abs(h).mean(axis=0), axis=0) > 0.99),
        "ks_non_gaussianity": np.mean([scipy.stats.kstest(unit, "norm").statistic for unit in standard.T]),
        "excess_kurtosis": np.mean(np.abs(np.mean(standard**4, axis=0) - 3)),
    }


def r2_in_numpy(h: np.ndarray, factor: int) -> float:
    clusters = h.reshape(len(h), -1, factor)
    within = np.sum((clusters - clusters.mean(axis=2, keepdims=True)) ** 2)
    return 1 - within / np.sum((h - h.mean(axis=1, keepdims=True)) ** 2)
