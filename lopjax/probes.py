"""All symptoms of a network on one batch: the metrics on activations and backward signals at every site.

Nothing here knows the architecture: `lopjax.signals.observe` makes activations and signals.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopjax import metrics
from lopjax.argument_order import packed, takes_old_order, third_is
from lopjax.cloning import Partition
from lopjax.losses import mean_cross_entropy
from lopjax.model import Model, Variables, samples_by_units
from lopjax.signals import observe

Symptoms = dict[str, dict[str, Float[Array, ""]]]
"""`{metric: {site: value}}`, with the mean over sites under the name `"mean"`."""


@takes_old_order(
    "model variables inputs labels loss partition", third_is(lambda each: not isinstance(each, tuple)), packed("inputs")
)
def symptoms(
    model: Model,
    variables: Variables,
    batch: tuple[jax.Array, Any],
    *,
    loss: Callable[[jax.Array, Any], jax.Array] = mean_cross_entropy,
    partition: Partition | None = None,
) -> Symptoms:
    """Every symptom of lost plasticity, at every site and on average: one compiled call under `jax.jit`.

    Ranks, dead, dormant, duplicate and saturated fractions are those of the post-activations; the departures from a
    Gaussian those of the pre-activations. Positions, tokens and head width count as samples. Eval mode.

    Args:
        model: any model.
        variables: its variables.
        batch: inputs `(batch, *input_shape)`, and what `loss` takes besides the logits.
        loss: `(logits, labels) -> scalar`, a mean over samples; its gradient is the backward signal.
        partition: clusters of clones. If given, R² of forward activations and of backward signals inside the clusters
            is measured at the sites of every space in it (`r2_forward`, `r2_backward`).

    Returns:
        `{metric: {site: scalar, ..., "mean": scalar}}`.

    Raises:
        ValueError: the partition names an unknown unit space, or not one cluster for each unit of a space.
    """
    partition = partition or {}
    for space in partition:
        model.wiring.size(space)  # raises for an unknown one
    seen = observe(model, variables, batch, loss=loss, dropout_rate=0.0)
    assert seen.signals is not None
    # Sites of one shape are measured by one vmapped program: compiling the metrics is what a short run waits for.
    alike: dict[tuple[tuple[int, ...], tuple[int, ...] | None], list[str]] = {}
    arrays: dict[str, tuple[jax.Array, jax.Array, jax.Array]] = {}
    for site, tap in seen.taps.items():
        z, h, e = (samples_by_units(array) for array in (tap.pre, tap.post, seen.signals[site].post))
        arrays[site] = (z, h, e)
        clusters = tuple(partition[tap.space]) if tap.space in partition else None
        alike.setdefault((h.shape, clusters), []).append(site)
    measured: dict[str, dict[str, jax.Array]] = {}
    for (_, clusters), sites in alike.items():
        stacked = jax.tree.map(lambda *site_arrays: jnp.stack(site_arrays), *(arrays[site] for site in sites))
        values = jax.vmap(lambda z, h, e, clusters=clusters: _site_symptoms(z, h, e, clusters))(*stacked)
        measured |= {site: {name: v[i] for name, v in values.items()} for i, site in enumerate(sites)}
    table: Symptoms = {}
    for site in seen.taps:
        for metric, value in measured[site].items():
            table.setdefault(metric, {})[site] = value
    for values in table.values():
        values["mean"] = jnp.mean(jnp.stack(list(values.values())))
    return table


def _site_symptoms(
    z: Float[Array, "samples units"],
    h: Float[Array, "samples units"],
    e: Float[Array, "samples units"],
    clusters: Sequence[int] | None,
) -> dict[str, jax.Array]:
    """Every metric of one site, from its pre-activations, activations and backward signal dL/dh."""
    measured = {
        "effective_rank": metrics.effective_rank(h),
        "stable_rank": metrics.stable_rank(h),
        "renyi2_rank": metrics.renyi2_rank(h),
        "numerical_rank": metrics.numerical_rank(h),
        "srank": metrics.srank(h),
        "dead_fraction": metrics.dead_fraction(h),
        "dormant_fraction": metrics.dormant_fraction(h),
        "duplicate_fraction": metrics.duplicate_fraction(h),
        "saturated_fraction": metrics.saturated_fraction(h, e),
        "ks_non_gaussianity": metrics.ks_non_gaussianity(z),
        "excess_kurtosis": metrics.excess_kurtosis(z),
    }
    if clusters is not None:
        measured["r2_forward"] = metrics.partition_r2(h, clusters)
        measured["r2_backward"] = metrics.partition_r2(e, clusters)
    return measured
