"""All symptoms of a network on one batch: the metrics on activations and backward signals at every site.

Nothing here knows the architecture: `lopjax.signals.observe` makes activations and signals.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lopjax.arguments.order import packed, takes_old_order, third_is
from lopjax.cloning import Partition
from lopjax.losses import mean_cross_entropy
from lopjax.metrics import SITE_METRICS, SiteActivity, SiteMetric, partition_r2
from lopjax.model import Model, Variables, samples_by_units
from lopjax.signals import observe

Symptoms = dict[str, dict[str, Float[Array, ""]]]
"""`{metric: {site: value}}`, with the mean over sites under the name `"mean"`."""

NO_METRICS: Mapping[str, SiteMetric] = MappingProxyType({})
_WANTS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_R2_OF = {"r2_forward": "post", "r2_backward": "signal"}


@takes_old_order(
    "model variables inputs labels loss partition", third_is(lambda each: hasattr(each, "shape")), packed("inputs")
)
def symptoms(
    model: Model,
    variables: Variables,
    batch: tuple[jax.Array, Any],
    *,
    loss: Callable[[jax.Array, Any], jax.Array] = mean_cross_entropy,
    partition: Partition | None = None,
    metrics: Mapping[str, SiteMetric] = NO_METRICS,
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
        metrics: metrics of your own, by name: functions of a `SiteActivity` that return one number.

    Returns:
        `{metric: {site: scalar, ..., "mean": scalar}}`.

    Raises:
        ValueError: the partition names an unknown unit space, or not one cluster for each unit of a space; a metric of
            your own has the name of one of the library's, does not return one real number, or cannot be compiled.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lopjax.models import mlp
        >>> model = mlp((2,), (3,), 2)
        >>> batch = jnp.ones((4, 2)), jnp.zeros(4, int)
        >>> own = {"largest": lambda site: jnp.abs(site.post).max()}
        >>> variables = model.init(jax.random.key(0))
        >>> table = jax.jit(lambda v: symptoms(model, v, batch, metrics=own))(variables)
        >>> sorted(table["largest"])
        ['hidden_0', 'mean']
    """
    _check_names(metrics)
    partition = partition or {}
    for space in partition:
        model.wiring.size(space)  # raises for an unknown one
    observed = observe(model, variables, batch, loss=loss, dropout_rate=0.0)
    assert observed.signals is not None
    # Sites of one shape are measured by one vmapped program: compiling the metrics is what a short run waits for.
    alike: dict[tuple[tuple[int, ...], tuple[int, ...] | None], list[str]] = {}
    active: dict[str, SiteActivity] = {}
    for site, tap in observed.taps.items():
        active[site] = SiteActivity(*map(samples_by_units, (tap.pre, tap.post, observed.signals[site].post)))
        clusters = tuple(partition[tap.space]) if tap.space in partition else None
        alike.setdefault((active[site].post.shape, clusters), []).append(site)
    measured: dict[str, dict[str, jax.Array]] = {}
    for (_, clusters), sites in alike.items():
        stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *(active[site] for site in sites))
        values = jax.vmap(lambda site, clusters=clusters: _site_symptoms(site, clusters, metrics))(stacked)
        measured |= {site: {name: v[i] for name, v in values.items()} for i, site in enumerate(sites)}
    table: Symptoms = {}
    for site in observed.taps:
        for metric, value in measured[site].items():
            table.setdefault(metric, {})[site] = value
    for values in table.values():
        values["mean"] = jnp.mean(jnp.stack(list(values.values())))
    return table


def _site_symptoms(
    site: SiteActivity, clusters: Sequence[int] | None, own: Mapping[str, SiteMetric]
) -> dict[str, jax.Array]:
    """Every metric of one site."""
    measured = {name: metric(site) for name, metric in SITE_METRICS.items()}
    if clusters is not None:
        measured |= {name: partition_r2(getattr(site, field), clusters) for name, field in _R2_OF.items()}
    return measured | {name: _own_number(name, metric, site) for name, metric in own.items()}


def _check_names(own: Mapping[str, SiteMetric]) -> None:
    if taken := sorted({*SITE_METRICS, *_R2_OF} & set(own)):
        raise ValueError(f"metrics={taken}: metrics of the library have these names; choose others")


def _own_number(name: str, metric: SiteMetric, site: SiteActivity) -> Float[Array, ""]:
    """A user's metric as a number of the type of the activations; counts and truth values are numbers, too."""
    try:
        value: Any = metric(site)
    except _WANTS_VALUES as error:
        raise ValueError(
            f"metrics[{name!r}] asks for the value of an array while it is compiled (float, int, bool, `if` or NumPy "
            "of it): must compute with jax.numpy and return an array"
        ) from error
    if jnp.shape(value) or jnp.iscomplexobj(value):
        kind = f"shape {jnp.shape(value)} and dtype {jnp.result_type(value)}"
        raise ValueError(f"metrics[{name!r}] returned an array of {kind}: must be one real number per site")
    return jnp.asarray(value).astype(site.post.dtype)
