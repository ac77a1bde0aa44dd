"""Rows of functions of one array, or a few: metrics, losses of outputs, theory, spectra, curves and noise."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from input_table import TYPES, Row, Subject
from lopjax import certificates, cloning, data, detection, losses, manifolds, metrics, stability, theory
from lopjax.cloning import make_clusters
from lopjax.detection import Multiples
from lopjax.models import convolve
from lopjax.stability import DecayingNoise
from lopjax.wiring import Window

NO_LABELS = {"labels": "there are none"}
NO_WIDTH = {"wrong width": "any length is right"}
NO_BATCH = dict.fromkeys(("no samples", "one sample"), "there are no samples")
NO_UNITS = dict.fromkeys(("no units", "one unit"), "there are no units")

# --- Activations (samples, units) -------------------------------------------------------------------------------------

SAMPLES = Subject(
    {"h": np.array([[1.0, 2, -1], [0, -1, 2], [-2, 1, 1], [3, -2, 1], [1, 1, -3]])},
    scaled=("h",),
    samples={"h": 0},
    units={"h": 1},
    carriers=("h",),
    numbers=("h",),
    ranked=("h",),
    excused=NO_LABELS | NO_WIDTH,
)
METRICS = {
    "cloning_r2": lambda h: metrics.cloning_r2(h, 1),
    "dead_fraction": metrics.dead_fraction,
    "dead_units": metrics.dead_units,
    "dormant_fraction": metrics.dormant_fraction,
    "dormant_scores": metrics.dormant_scores,
    "duplicate_fraction": metrics.duplicate_fraction,
    "effective_rank": metrics.effective_rank,
    "excess_kurtosis": partial(metrics.excess_kurtosis, constant_tolerance=0.0),
    "ks_non_gaussianity": partial(metrics.ks_non_gaussianity, constant_tolerance=0.0),
    "numerical_rank": metrics.numerical_rank,
    "partition_r2": lambda h: metrics.partition_r2(h, (0, 0, 1)[: h.shape[1]] if np.ndim(h) == 2 else (0, 0, 1)),
    "renyi2_rank": metrics.renyi2_rank,
    "saturated_fraction": lambda h: metrics.saturated_fraction(h, h),
    "srank": metrics.srank,
    "stable_rank": metrics.stable_rank,
}
_ALL_METRICS = jax.jit(lambda h: {name: metric(h) for name, metric in METRICS.items()})


def metric(name):
    """One of them; where all are defined one program computes all of them, for all rows."""

    def call(h):
        is_ordinary = isinstance(h, np.ndarray) and h.ndim == 2 and h.size and h.dtype.kind in "fiV"
        return _ALL_METRICS(h)[name] if is_ordinary else METRICS[name](h)

    return call


ABSOLUTE = {"tiny": "zero is a tolerance in the units of h: 1e-12 is dead, in double precision a unit of it is not"}
MISSING = {"nan": "a record that is not a number is missing", "inf": "and so is one that is not finite"}
ALLOWED = {
    "dead_units": {"nan": "not dead; `dead_fraction` says that it is not known", "inf": "not dead"},
}
ROWS = {f"metrics.{name}": Row(metric(name), SAMPLES, rtol=1e-4, allowed=ALLOWED.get(name, {})) for name in METRICS}
ROWS |= {
    "theory.correlation_report": Row(lambda h: tuple(theory.correlation_report(h)), SAMPLES, rtol=1e-4),
    "detection.nearest_units": Row(
        lambda h: detection.nearest_units(h, Multiples(False, False)).distance, SAMPLES, rtol=1e-3
    ),
    "cloning.cluster_rows": Row(
        lambda h: cloning.cluster_rows(h, np.full(np.shape(h)[0] if np.ndim(h) else 1, 1e-3)),
        SAMPLES,
        is_judge=True,
        allowed={"nan": "a row that is not finite equals no other", "inf": "likewise"},
    ),
}

# --- Outputs and labels -----------------------------------------------------------------------------------------------

OUTPUTS = Subject(
    {"y": np.array([[1.0, 2], [0, -1], [-2, 1]]), "t": np.array([0, 1, 1])},
    cast=("y",),
    scaled=("y",),
    samples={"y": 0, "t": 0},
    carriers=("y",),
    numbers=("y", "t"),
    ranked=("y",),
    labels="t",
    excused={**NO_UNITS, **NO_WIDTH},
)
TARGETS = Subject(
    {"y": np.array([[1.0, 2], [0, -1], [-2, 1]]), "t": np.array([[0.0, 1], [1, 1], [2, 0]])},
    scaled=("y", "t"),
    samples={"y": 0, "t": 0},
    units={"y": 1, "t": 1},
    width={"t": 1},
    carriers=("y", "t"),
    numbers=("y", "t"),
    ranked=("y", "t"),
    excused=NO_LABELS,
)


def masked(function):
    def call(y, t):
        return function(y, losses.Masked(t, np.ones(np.shape(y), bool)))

    return call


NEVER_RIGHT = {"labels": "a label that is no class is never right"}
ROWS |= {
    "losses.mean_cross_entropy": Row(losses.mean_cross_entropy, OUTPUTS),
    "losses.accuracy": Row(losses.accuracy, OUTPUTS, allowed=NEVER_RIGHT),
    "losses.masked_cross_entropy": Row(masked(losses.masked_cross_entropy), OUTPUTS),
    "losses.masked_accuracy": Row(masked(losses.masked_accuracy), OUTPUTS, allowed=NEVER_RIGHT),
    "losses.mean_squared_error": Row(losses.mean_squared_error, TARGETS),
}

# --- Vectors of eigenvalues, and curves -------------------------------------------------------------------------------

VECTOR = Subject(
    {"v": np.array([-1.0, 2])},
    scaled=("v",),
    units={"v": 0},
    carriers=("v",),
    numbers=("v",),
    ranked=("v",),
    excused=NO_LABELS | NO_WIDTH | NO_BATCH,
)
CURVE = Subject(
    {"v": np.array([1.0, 2, 2, 4, 8, 16])},
    scaled=("v",),
    samples={"v": 0},
    carriers=("v",),
    numbers=("v",),
    ranked=("v",),
    excused=NO_LABELS | NO_WIDTH | NO_UNITS,
)
ANY_RANK = {"wrong rank": "elementwise, of any rank"}
NOISE = DecayingNoise(0.125, 1.0, 0.5)


def like(v, value):
    """An array of the same shape; of what is no array, one of two."""
    return np.full(np.shape(v) if np.ndim(v) else 2, value)


ROWS |= {
    "stability.escape_time": Row(lambda v: stability.escape_time(v, like(v, 2.0), 512.0, 0.125), VECTOR),
    "stability.noise_variances": Row(lambda v: stability.noise_variances(v, [3], NOISE), VECTOR, rtol=1e-5),
    "stability.escape_probability": Row(
        lambda v: stability.escape_probability(v, like(v, 1), 2.0, [3], NOISE), VECTOR, rtol=1e-5
    ),
    "stability.escape_quantiles": Row(
        lambda v: stability.escape_quantiles(v, like(v, 1), 2.0, NOISE, max_steps=64), VECTOR
    ),
    "stability.first_passage_times": Row(
        lambda v: stability.first_passage_times(v, like(v, 1), 1.0, NOISE, 3, 5, jax.random.key(0)), VECTOR
    ),
    "stability.weighted_chi_square_tail": Row(
        lambda v: stability.weighted_chi_square_tail(v if np.asarray(v).dtype.kind == "U" else v * v, 3.0),
        VECTOR,
        rtol=1e-5,
    ),
    "stability.critical_weight_decay": Row(stability.critical_weight_decay, VECTOR),
    "detection.trend": Row(lambda v: tuple(detection.trend(v)), CURVE, rtol=1e-4, allowed=MISSING),
    "detection.measured_rate": Row(lambda v: tuple(detection.measured_rate(v, 2)), CURVE, rtol=1e-3, allowed=MISSING),
    "detection.trap_forecast": Row(
        lambda v: detection.trap_forecast(v, -1.0).steps, CURVE, rtol=1e-4, excused=ANY_RANK
    ),
    "detection.score_indicator": Row(
        lambda v: tuple(detection.score_indicator([v, v], np.arange(1, 1 + np.size(v)), [np.inf, 3])), CURVE
    ),
    "manifolds.cluster_mean": Row(
        lambda v: manifolds.cluster_mean(v, 0, make_clusters((0, 0)[: np.size(v)])),
        VECTOR,
        excused=ANY_RANK,
    ),
    "cloning.mean_over_clusters": Row(
        lambda v: cloning.mean_over_clusters(v, 0, make_clusters((0, 0)[: np.size(v)])),
        VECTOR,
        excused=ANY_RANK,
    ),
}
SQUARE = Subject(
    {"h": np.array([[2.0, 1], [1, -1]])},
    scaled=("h",),
    carriers=("h",),
    numbers=("h",),
    ranked=("h",),
    width={"h": 1},
    excused=NO_LABELS | NO_BATCH | NO_UNITS,
)
PRE = Subject(
    {"pre": np.array([[-1.0, 2, -4], [-2, -1, -1]]), "norms": np.array([2.0, 1])},
    scaled=("pre",),
    samples={"pre": 0, "norms": 0},
    units={"pre": 1},
    width={"norms": 0},
    carriers=("pre", "norms"),
    numbers=("pre", "norms"),
    ranked=("pre", "norms"),
    excused=NO_LABELS,
)
CORRELATION = Subject(
    {"c": np.array([[1.0, 0, -1], [0, 1, 0], [-1, 0, 1]])},
    carriers=("c",),
    numbers=("c",),
    ranked=("c",),
    width={"c": 1},
    excused=NO_LABELS | NO_BATCH | NO_UNITS | dict.fromkeys(("tiny", "huge"), "a correlation has no scale"),
)
ROWS |= {
    "stability.propagated_covariance": Row(
        lambda h: stability.propagated_covariance(h, np.ones((3, 2, 2)), 0.125), SQUARE, rtol=1e-5
    ),
    "certificates.revival_radius": Row(lambda pre, norms: certificates.revival_radius(pre, norms), PRE),
    "certificates.joint_margin": Row(
        lambda pre, norms: certificates.joint_margin(pre, norms, np.ones(np.shape(pre)[-1:]), 0.125, 0.25), PRE
    ),
    "theory.activation_covariance": Row(lambda c: theory.activation_covariance(jax.nn.relu, c), CORRELATION, rtol=1e-5),
    "theory.hard_rank": Row(lambda c: theory.hard_rank(c, tolerance=1e-3), CORRELATION),
}

# --- Numbers of theory ------------------------------------------------------------------------------------------------

NUMBER = Subject(
    {"s": np.array([1.0, 0])},
    carriers=("s",),
    numbers=("s",),
    excused=NO_LABELS | NO_WIDTH | NO_BATCH | {"wrong rank": "elementwise, of any rank"},
    scaled=("s",),
    units={"s": 0},
)
POSITIVE = Subject(**{**vars(NUMBER), "arrays": {"s": np.array([1.0, 2])}})
CORRELATIONS = Subject(
    **{**vars(NUMBER), "scaled": (), "excused": {**NUMBER.excused, "tiny": "a correlation", "huge": "a correlation"}}
)
SCALAR = {**dict.fromkeys(("no units", "one unit"), "of one number")}


def first(function):
    return lambda s: function(s[0] if isinstance(s, np.ndarray) else s)


ROWS |= {
    "theory.activation_moments": Row(
        lambda s: tuple(theory.activation_moments(jnp.tanh, s, order=8)), POSITIVE, rtol=1e-4
    ),
    "theory.alpha": Row(lambda s: theory.alpha(jnp.tanh, s, order=8), POSITIVE, rtol=1e-4),
    "theory.alpha_gradient": Row(
        first(lambda s: theory.alpha_gradient(jnp.tanh, s, order=8)), POSITIVE, rtol=1e-4, excused=SCALAR
    ),
    "theory.closed_form_kernel": Row(lambda s: theory.closed_form_kernel("relu", s), CORRELATIONS, rtol=1e-4),
    "theory.equicorrelated_effective_rank": Row(
        lambda s: theory.equicorrelated_effective_rank(4, s), CORRELATIONS, rtol=1e-4
    ),
    "theory.exact_rank_gain": Row(lambda s: theory.exact_rank_gain(4, s, s), CORRELATIONS, rtol=1e-4),
    "theory.frozen_fraction": Row(lambda s: theory.frozen_fraction(jnp.tanh, s), POSITIVE, rtol=1e-4),
    "theory.frozen_fraction_bounds": Row(
        lambda s: tuple(theory.frozen_fraction_bounds(jnp.tanh, s)), POSITIVE, rtol=1e-4
    ),
    "theory.gaussian_expectation": Row(
        lambda s: theory.gaussian_expectation(jnp.abs, kinks=s, order=8).value, POSITIVE, rtol=1e-4, excused=SCALAR
    ),
    "theory.hermite_coefficients": Row(
        lambda s: theory.hermite_coefficients(lambda z: s[0] * z, 2, order=8), POSITIVE, rtol=1e-4, excused=SCALAR
    ),
    "theory.iterate_map": Row(lambda s: theory.iterate_map(lambda rho: rho**2, s, 2), CORRELATIONS, rtol=1e-4),
    "theory.kernel_gap": Row(lambda s: theory.kernel_gap(jnp.tanh, s, order=8), CORRELATIONS, rtol=1e-4),
    "theory.kernel_map": Row(lambda s: theory.kernel_map(jnp.tanh, s, order=8), CORRELATIONS, rtol=1e-4),
    "theory.kernel_series": Row(lambda s: theory.kernel_series(s, 0.5), POSITIVE, rtol=1e-4),
    "theory.kernel_slope": Row(lambda s: theory.kernel_slope(jnp.tanh, s, order=8), CORRELATIONS, rtol=1e-4),
    "theory.rank_gain": Row(lambda s: theory.rank_gain(4, s, s), POSITIVE, rtol=1e-4),
    "theory.shifted_relu_alpha": Row(theory.shifted_relu_alpha, NUMBER, rtol=1e-4),
    "theory.split_rule": Row(lambda s: tuple(theory.split_rule(s, 4)), POSITIVE, rtol=1e-4),
}

# --- Images -----------------------------------------------------------------------------------------------------------

IMAGES = Subject(
    {"images": np.arange(48, dtype=np.uint8).reshape(2, 4, 3, 2)},
    cast=(),
    samples={"images": 0},
    numbers=("images",),
    ranked=("images",),
    excused=NO_LABELS | NO_WIDTH | NO_UNITS | dict.fromkeys((*TYPES, "tiny", "huge", "nan", "inf"), "8-bit images"),
)
KERNEL = Subject(
    {"x": np.arange(36.0).reshape(2, 3, 3, 2) - 9, "kernel": np.arange(24.0).reshape(2, 2, 2, 3) - 9},
    scaled=("x",),
    samples={"x": 0},
    units={"kernel": 3},
    width={"kernel": 2},
    carriers=("x", "kernel"),
    numbers=("x", "kernel"),
    ranked=("x", "kernel"),
    excused=NO_LABELS,
)
KEY = jax.random.key(0)
ROWS |= {
    "models.convolve": Row(lambda x, kernel: convolve(x, kernel, Window((1, 1), ((0, 0), (0, 0)))), KERNEL),
    "data.augment": Row(lambda images: data.augment(KEY, images, 1), IMAGES),
    "data.random_crop": Row(lambda images: data.random_crop(KEY, images, 1), IMAGES),
    "data.random_flip": Row(lambda images: data.random_flip(KEY, images), IMAGES),
    "data.normalize": Row(lambda images: data.normalize(images, (0.5, 0.25), (0.5, 2.0)), IMAGES),
    "data.channel_statistics": Row(data.channel_statistics, IMAGES),
    "data.take_batch": Row(lambda images: data.take_batch(images, np.arange(2), np.array([1, 0])), IMAGES),
}


# --- Where a value is right, or there is nothing to call --------------------------------------------------------------

ONE = {"wrong rank": "one number is as good as a list of one"}
for name, reasons in {
    "stability.noise_variances": ONE,
    "stability.escape_probability": ONE,
    "stability.escape_quantiles": ONE,
    "stability.critical_weight_decay": {"wrong rank": "the smallest of all, of any rank"},
    "stability.weighted_chi_square_tail": {"wrong rank": "leading axes are a batch"},
}.items():
    ROWS[name] = replace(ROWS[name], allowed={**ROWS[name].allowed, **reasons})
ROWS["theory.hermite_coefficients"] = replace(
    ROWS["theory.hermite_coefficients"], excused=SCALAR | {"strings": "the array is inside the user's own function"}
)
