"""How far a dead unit is from waking up: radii on data, and interval bounds over all inputs of a box.

Both need the unit's pre-activation as an affine function of what it reads, `z = <w, h_prev> + b`. The labels of the
wiring say where this is so (`Label.source`); for a convolution, h_prev is the patch that it reads at one position.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from lopjax.activations import activation
from lopjax.arguments.misfits import described, in_a_sentence
from lopjax.arguments.numbers import check_numbers, takes_numbers
from lopjax.arguments.promotion import standard_promotion
from lopjax.model import Params
from lopjax.wiring import Label, Wiring, at_path, plain_kernel, standard_layout


class PlainLayer(NamedTuple):
    """A layer whose output is the pre-activation of a site.

    Attributes:
        kernel: `(..., sources, units)`, whatever the layout of the parameter.
        bias: `(units,)`; zeros if the layer has none.
        label: the kernel's label, with its source and window.
        has_bias: whether the bias is a parameter.
    """

    kernel: jax.Array
    bias: jax.Array
    label: Label
    has_bias: bool = True


def plain_layer(params: Params, wiring: Wiring, site: str) -> PlainLayer | None:
    """The layer that alone computes a site's pre-activation, or `None` if something stands in between."""
    own = plain_kernel(wiring, site)
    if own is None:
        return None
    wiring.labels_of(params)  # raises if they do not match
    kernel = standard_layout(own.label, at_path(params, own.kernel[1:]))
    bias = jnp.zeros(kernel.shape[-1], kernel.dtype) if own.bias is None else at_path(params, own.bias[1:])
    return PlainLayer(kernel, bias, own.label, own.bias is not None)


def apply_layer(layer: PlainLayer, kernel: jax.Array, sources: jax.Array) -> Float[Array, "batch *positions units"]:
    """The layer's linear part with another kernel of the same form.

    Args:
        layer: supplies the window.
        kernel: `(..., units)`.
        sources: `(batch, ...)`, the activations that the layer reads; an input may come unflattened.
    """
    sources = sources.astype(kernel.dtype)
    if layer.label.window is None:
        contracted = kernel.ndim - 1
        if sources.shape[sources.ndim - contracted :] != kernel.shape[:-1]:
            sources = jnp.reshape(sources, (sources.shape[0], *kernel.shape[:-1]))
        return jnp.tensordot(sources, kernel, contracted)
    last = kernel.ndim - 1
    spatial = tuple(range(1, last))
    channels_last = jax.lax.ConvDimensionNumbers(
        (0, last, *spatial), (last, last - 1, *range(last - 1)), (0, last, *spatial)
    )
    window = layer.label.window
    return jax.lax.conv_general_dilated(
        sources, kernel, window.strides, window.padding, dimension_numbers=channels_last
    )


def source_norms(layer: PlainLayer, sources: jax.Array) -> Float[Array, "samples"]:
    """How far a unit change of (w, b) can move z at every sample and position: `||(h_prev, 1)||`.

    `||h_prev||` for a layer without bias.
    """
    ones = jnp.ones((*layer.kernel.shape[:-1], 1), layer.kernel.dtype)
    sources = jnp.asarray(sources, layer.kernel.dtype)
    # On the scale of each sample: where squares vanish, without a bias no change would seem to wake the unit.
    largest = jnp.max(jnp.abs(sources), axis=tuple(range(1, sources.ndim)), keepdims=True)
    lengths = jnp.sqrt(apply_layer(layer, ones, jnp.square(sources / jnp.where(largest > 0, largest, 1))))
    lengths = lengths * jnp.reshape(largest, (-1, *[1] * (lengths.ndim - 1)))
    return jnp.ravel(jnp.hypot(lengths, jnp.asarray(float(layer.has_bias), lengths.dtype)))


def rounding_level(layer: PlainLayer, eps: float) -> float:
    """Bound on the rounding error of a pre-activation, over `|W| |h_prev| + |b|`: `(n + 2) eps` for n summands."""
    return (int(np.prod(layer.kernel.shape[:-1])) + 2) * eps


def summand_sizes(layer: PlainLayer, sources: jax.Array) -> Float[Array, "batch *positions units"]:
    """`|W| |h_prev| + |b|`: the size to which the rounding of a pre-activation is proportional."""
    return apply_layer(layer, jnp.abs(layer.kernel), jnp.abs(sources)) + jnp.abs(layer.bias)


def _check_norms(pre: Any, norms: Any) -> None:
    """Refuse norms that are not one for each sample: a single one would be taken for all."""
    if jnp.shape(norms) != jnp.shape(pre)[:1]:
        raise ValueError(f"norms has shape {jnp.shape(norms)}: must be one for each of {jnp.shape(pre)[0]} samples")


@takes_numbers(pre=2, norms=1)
@standard_promotion()
def revival_radius(pre: Float[Array, "samples units"], norms: Float[Array, "samples"]) -> Float[Array, "units"]:
    """How much a unit's incoming parameters may change before it can wake up.

    `r = min_x -z(x) / ||(h_prev(x), 1)||`: with h_prev fixed, a ReLU unit stays dead on these samples under every
    change of (w, b) of Euclidean norm below r, and some change of norm r reaches z = 0. Zero or negative for a unit
    that is alive. Without a bias the norm is `||h_prev||`, and where that is 0 no change wakes the unit.

    Args:
        pre: pre-activations z, positions counted as samples.
        norms: `||(h_prev, 1)||`, or `||h_prev||`: see `source_norms`; for a convolution h_prev is the patch.
    """
    _check_norms(pre, norms)
    pre, norms = _at_least_single(pre), _at_least_single(norms)[:, None]
    _check_samples(pre)
    radius = jnp.where(norms == 0, jnp.inf, -pre / jnp.where(norms == 0, 1, norms))
    return jnp.min(jnp.where(jnp.isnan(pre), jnp.nan, radius), axis=0)


@takes_numbers(pre=2, norms=1, weight_norms=1)
@standard_promotion()
def joint_margin(
    pre: Float[Array, "samples units"],
    norms: Float[Array, "samples"],
    weight_norms: Float[Array, "units"],
    parameter_change: jax.typing.ArrayLike,
    source_change: jax.typing.ArrayLike,
) -> Float[Array, "units"]:
    """How far a unit stays from being active when it and everything upstream of it change at once.

    `min_x -z - ||d(w,b)|| ||(h_prev,1)|| - (||w|| + ||d(w,b)||) ||dh_prev||`: positive means dead on every sample.

    Args:
        pre: pre-activations z.
        norms: `||(h_prev, 1)||`.
        weight_norms: `||w||`, without the bias.
        parameter_change: bound on the norm of the change of (w, b), per unit or one for all.
        source_change: bound on the norm of the change of h_prev, on every sample.
    """
    _check_norms(pre, norms)
    if jnp.shape(weight_norms) != jnp.shape(pre)[1:]:
        raise ValueError(
            f"weight_norms has shape {jnp.shape(weight_norms)}: must be one for each of {jnp.shape(pre)[1]} units"
        )
    pre, norms, weight_norms = (_at_least_single(each) for each in (pre, norms, weight_norms))
    _check_samples(pre)
    sources = (weight_norms + parameter_change) * source_change
    return jnp.min(-pre - parameter_change * norms[:, None] - sources, axis=0)


def _at_least_single(array: Array) -> Array:
    """The array in at least float32: 16 bits could round a radius up."""
    return jnp.asarray(array).astype(jnp.promote_types(array.dtype, jnp.float32))


def _check_samples(pre: Array) -> None:
    if not len(pre):
        raise ValueError("there are no samples: a radius needs at least one")


def dead_by_sign(
    layer: PlainLayer,
    wiring: Wiring,
    input_box: tuple[ArrayLike, ArrayLike] | None,
    silent: np.ndarray | None = None,
    is_dead_at_zero: bool = True,
) -> np.ndarray:
    """Which units are dead by signs alone, whatever the data and the weights upstream: h_prev >= 0, w <= 0, b <= 0.

    Then z <= 0 however it is rounded, and the derivative of `jax.nn.relu` is 0 there, also at 0.

    Args:
        layer: the layer.
        wiring: its wiring.
        input_box: a network input counts as non-negative if its lower bound says so.
        silent: `(source units,)`, whether each is 0 and stays so: weights from such units may have any sign, and a unit
            that reads nothing else needs no condition on h_prev.
        is_dead_at_zero: whether the derivative is 0 at z = 0 as well. That of `jnp.maximum(z, 0)` is 1/2 there, and
            then b must be negative.
    """
    source = layer.label.source
    if source in dict(wiring.sites):
        bound = activation(wiring.site(source).activation).lower_bound
        reads_non_negative = bound is not None and bound >= 0
    else:
        reads_non_negative = input_box is not None and bool((np.asarray(input_box[0]) >= 0).all())
    weights, bias = np.asarray(layer.kernel), np.asarray(layer.bias)
    if silent is None:
        is_blocked = reads_non_negative & (weights.reshape(-1, len(bias)) <= 0).all(axis=0)
    else:
        heard = np.compress(~silent, weights, axis=-2).reshape(-1, len(bias))
        is_blocked = (heard == 0).all(axis=0) | (reads_non_negative & (heard <= 0).all(axis=0))
    return is_blocked & (bias <= 0 if is_dead_at_zero else bias < 0)


@standard_promotion()
def interval_bounds(
    params: Params,
    wiring: Wiring,
    site: str,
    input_box: tuple[ArrayLike, ArrayLike],
    tolerance: float | None = None,
) -> tuple[Float[Array, "*positions units"], Float[Array, "*positions units"]]:
    """Bounds on the pre-activations of a site over all inputs of a box, by interval arithmetic.

    `z_max = W+ h_max + W- h_min + b` (W+ and W- the positive and negative parts), layer by layer; activations must be
    monotone. In general not tight. Sound for the network as it computes: by default the intervals are widened, layer by
    layer, by a bound on the rounding errors of the network and of the bounds.

    Args:
        params: parameters.
        wiring: their wiring.
        site: the site.
        input_box: lower and upper bounds, each shaped like one input.
        tolerance: intervals are widened by this times `|W| max|h| + |b|`; default `2 (n + 3) eps` for n summands. With
            0 the bounds are those of exact arithmetic, which a network with rounding may exceed.

    Returns:
        Lower and upper bounds.

    Raises:
        ValueError: a norm, pooling or a residual sum on the path to the site, an activation that is not monotone, or
            bounds that are no box of inputs.
    """
    _check_box(*input_box)
    layer = plain_layer(params, wiring, site)
    if layer is None:
        raise ValueError(
            f"interval bounds at site {site!r}: its pre-activation is not one labelled layer applied to activations "
            "(a norm, pooling or a sum stands in between); certify on a batch instead"
        )
    source, eps = layer.label.source, float(jnp.finfo(layer.kernel.dtype).eps)
    if source not in dict(wiring.sites):
        lower, upper = (jnp.asarray(bound, layer.kernel.dtype)[None] for bound in input_box)
    else:
        entry = activation(wiring.site(source).activation)
        if not entry.is_monotone:
            what = "is not monotone" if entry.is_monotone is False else "does not say that it is monotone (is_monotone)"
            raise ValueError(f"interval bounds through site {source!r}: activation {entry.name!r} {what}")
        lower, upper = interval_bounds(params, wiring, source, input_box, tolerance)
        lower, upper = (entry(bound)[None] for bound in (lower, upper))
        if not entry.rounds_nothing and tolerance is None:
            # Exponentials are accurate to a few units in the last place only, and not always monotone at that level.
            slack = 8 * eps * (1 + jnp.maximum(jnp.abs(lower), jnp.abs(upper)))
            lower, upper = lower - slack, upper + slack
    widening = 2 * rounding_level(layer, eps) + 2 * eps if tolerance is None else tolerance
    with in_a_sentence(f"the layer of site {site!r} does not take {described(lower[0])}", "give bounds like one input"):
        return _propagate(layer, lower, upper, widening)


def _check_box(lower: ArrayLike, upper: ArrayLike) -> None:
    check_numbers("lower bounds", lower)
    check_numbers("upper bounds", upper)
    if jnp.shape(lower) != jnp.shape(upper):
        raise ValueError(
            f"lower bounds {jnp.shape(lower)}, upper {jnp.shape(upper)}: both must be shaped like one input"
        )
    is_traced = any(isinstance(bound, Tracer) for bound in (lower, upper))
    if not is_traced and np.any(np.asarray(lower, np.float64) > np.asarray(upper, np.float64)):
        raise ValueError("input_box: a lower bound lies above its upper one: give (lower, upper)")


def _propagate(layer: PlainLayer, lower: jax.Array, upper: jax.Array, tolerance: float) -> tuple[jax.Array, jax.Array]:
    positive, negative = jnp.maximum(layer.kernel, 0), jnp.minimum(layer.kernel, 0)
    largest = jnp.maximum(jnp.abs(lower), jnp.abs(upper))
    slack = tolerance * (apply_layer(layer, jnp.abs(layer.kernel), largest) + jnp.abs(layer.bias))
    low = apply_layer(layer, positive, lower) + apply_layer(layer, negative, upper) + layer.bias - slack
    high = apply_layer(layer, positive, upper) + apply_layer(layer, negative, lower) + layer.bias + slack
    return low[0], high[0]
