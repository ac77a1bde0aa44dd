"""The distribution of 1 - R² of clones under noisy heavy-ball descent, from curvature and gradients at one point."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lopjax.arguments.batches import as_batch
from lopjax.arguments.numbers import check_numbers
from lopjax.arguments.promotion import standard_promotion
from lopjax.cloning import Factor, clone_variables, uniform_partition, widen
from lopjax.cloning.programs import check_programs
from lopjax.losses import Batch, check_batch, mean_cross_entropy
from lopjax.manifolds import check_partition
from lopjax.model import Model, Params, Variables, samples_by_units
from lopjax.stability.blocks.coordinates import clone_counts, make_lift, unit_columns
from lopjax.stability.blocks.signals import LossOfLogits
from lopjax.stability.escape_under_noise import weighted_chi_square_tail


class HeavyBall(NamedTuple):
    """`m <- beta m + g + kappa theta + sigma_A gamma^t xi_t,  theta <- theta - eta m`: noisy descent with momentum.

    The noise xi is standard normal; sigma_A, on the entries of array A, is `noise_scale` times `UnitLaw.noise`.

    Attributes:
        learning_rate: eta.
        noise_scale: factor on `UnitLaw.noise`; if that is the norm of an array's gradient, the scale in
            `lopjax.optim.noisy_sgd`.
        noise_decay: gamma in [0, 1], per step.
        momentum: beta in [0, 1).
        weight_decay: kappa.
    """

    learning_rate: float
    noise_scale: float
    noise_decay: float = 1.0
    momentum: float = 0.0
    weight_decay: float = 0.0


class UnitLaw(NamedTuple):
    """Curvature, noise and 1 - R² for the clones of every unit of one space; v in R^d are coordinates of a pattern.

    Attributes:
        hessian: M_j, `(units, d, d)`.
        form: F_j, `(units, d, d)`: to leading order the space contributes `sum_j sum_patterns v' F_j v` to 1 - R².
        noise: `(d,)`: standard deviation of the noise on the gradient along every coordinate, for `noise_scale` 1.
        multiplicity: n_j - 1 patterns, `(units,)`.
    """

    hessian: Float[Array, "units d d"]
    form: Float[Array, "units d d"]
    noise: Float[Array, "d"]
    multiplicity: np.ndarray


Law = Mapping[str, UnitLaw]
"""By unit space."""


@standard_promotion()
def escape_law(
    model: Model,
    variables: Variables,
    batch: Batch,
    factor: Factor,
    *,
    loss: LossOfLogits = mean_cross_entropy,
    gradient_norms: Params | None = None,
) -> dict[str, UnitLaw]:
    """Curvature, noise and the quadratic form of 1 - R² for the clones of any base network, in eval mode.

    Units do not couple at a point of block-constant weights, so one Hessian product gives a column of every M_j, and
    one directional derivative of the activations a column of a square root of every F_j. With y_j(x) the change of unit
    j's activation, `F_j = sum_x y_j y_j' / sum_x sum_u (h_u - mean h)²`, averaged over the sites with clones: this is
    the mean over sites of 1 - R² as in `metrics.partition_r2`, for R² near 1. Patterns of outgoing weights change no
    activation.

    Args:
        model: the *base* network.
        variables: its variables.
        batch: inputs and labels.
        factor: number of clones of every unit, or `{space: number}`.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        gradient_norms: norm of the gradient of every array of the cloned network, a tree like its parameters; by
            default on this batch. For minibatches, whose gradients are larger, pass the root mean square.

    Returns:
        The law of every unit space.

    Raises:
        ValueError: as in `unit_blocks`; a site whose units are all equal, for
            which 1 - R² is 0/0.
    """
    batch = as_batch(batch)
    check_batch(model, variables, batch, loss=loss)
    check_programs(model, variables, batch, loss, is_curved=True)
    wide_model, wide = widen(model, factor), clone_variables(variables, model.wiring, factor)
    clusters = check_partition(wide_model.wiring, uniform_partition(wide_model.wiring, factor))
    columns, counts = unit_columns(wide["params"], wide_model.wiring, clusters), clone_counts(clusters)
    leaders = {space: np.unique(np.asarray(own.ids), return_index=True)[1] for space, own in clusters.items()}
    gradient, hessians, forms = _columns(wide_model, wide, batch, loss, clusters, leaders)
    if undefined := [space for space, form in forms.items() if not np.isfinite(form).all()]:
        raise ValueError(
            f"the base units of {undefined} all do the same: 1 - R² of their clones is 0/0; it needs two units"
        )
    norms = jax.tree.map(jnp.linalg.norm, gradient) if gradient_norms is None else gradient_norms
    sizes = [jnp.asarray(size) for size in jax.tree.leaves(norms)]
    return {
        space: UnitLaw(
            0.5 * (hessians[space] + jnp.swapaxes(hessians[space], 1, 2)),
            forms[space],
            jnp.concatenate([jnp.full(place.stop - place.start, sizes[place.leaf]) for place in columns[space]]),
            counts[space] - 1,
        )
        for space in clusters
    }


def _columns(
    model: Model, wide: Variables, batch: Batch, loss: LossOfLogits, clusters: Any, leaders: Mapping[str, np.ndarray]
) -> tuple[Params, dict[str, Array], dict[str, Array]]:
    """The gradient, and M_j and F_j by space, column by column for all units of all spaces at once.

    Args:
        model: the wide model.
        wide: its variables, clones of those of the base.
        batch: inputs and labels.
        loss: `(logits, labels) -> scalar`.
        clusters: clusters of every space.
        leaders: by space, the first unit of every cluster.
    """
    lift, zero = make_lift(wide["params"], model.wiring, clusters)
    lower = jax.linear_transpose(lift, zero)

    def with_params(params: Params) -> Variables:
        return {**wide, "params": params}

    def activations(params: Params) -> dict[str, Array]:
        taps = model.apply(with_params(params), batch[0]).taps
        return {site: samples_by_units(tap.post) for site, tap in taps.items() if tap.space in clusters}

    gradient = jax.grad(lambda params: loss(model.apply(with_params(params), batch[0]).logits, batch[1]))
    space_of = {site: tap.space for site, tap in model.apply(wide, batch[0]).taps.items() if tap.space in clusters}
    # Along the pattern with entries 1/sqrt(2) and -1/sqrt(2) on the first two clones.
    firsts = {site: jnp.asarray(leaders[space]) for site, space in space_of.items()}

    def column(index: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        rows = {space: jnp.zeros_like(each).at[:, index].set(1.0, mode="drop") for space, each in zero.items()}
        change = lift(rows)
        product = jax.jvp(gradient, (wide["params"],), (change,))[1]
        moved = jax.jvp(activations, (wide["params"],), (change,))[1]
        return lower(product)[0], {site: 2**0.5 * moved[site][:, first] for site, first in firsts.items()}

    @jax.jit
    def all_columns() -> tuple[Params, dict[str, Array], dict[str, Array]]:
        products, moved = jax.vmap(column)(jnp.arange(max(each.shape[1] for each in zero.values())))
        h = activations(wide["params"])
        forms = {space: jnp.zeros((each.shape[0], each.shape[1], each.shape[1])) for space, each in zero.items()}
        for site, space in space_of.items():
            dimension = zero[space].shape[1]
            total = jnp.sum(jnp.square(h[site] - h[site].mean(axis=1, keepdims=True)))
            rounding = jnp.square(100 * jnp.finfo(h[site].dtype).eps) * jnp.sum(jnp.square(h[site]))
            total = jnp.where(total > rounding, total, 0)
            y = moved[site][:dimension]
            forms[space] += jnp.einsum("axj,bxj->jab", y, y) / (total * len(space_of))
        hessians = {space: jnp.moveaxis(products[space][: each.shape[1]], 0, 2) for space, each in zero.items()}
        return gradient(wide["params"]), hessians, forms

    return all_columns()


def responses(eigenvalues: Float[np.ndarray, "..."], num_steps: int, descent: HeavyBall) -> np.ndarray:
    """Response of a mode to unit noise on the gradient after 1, 2, ... steps: `(num_steps, ...)`.

    `g(1) = -eta, g(2) = c g(1), g(s + 1) = c g(s) - beta g(s - 1)` with `c = 1 + beta - eta (lambda + kappa)`.

    Example:
        >>> responses(np.array(-1.0), 3, HeavyBall(0.5, 1.0)).tolist()
        [-0.5, -0.75, -1.125]
    """
    rates = 1 + descent.momentum - descent.learning_rate * (np.asarray(eigenvalues, np.float64) + descent.weight_decay)
    series = [np.full_like(rates, -descent.learning_rate)]
    before = np.zeros_like(rates)
    for _ in range(num_steps - 1):
        series.append(rates * series[-1] - descent.momentum * before)
        before = series[-2]
    return np.array(series)


def deviation_covariance(law: UnitLaw, num_steps: int, descent: HeavyBall) -> np.ndarray:
    """Covariance of the coordinates of a pattern after some steps, starting on the manifold: `(units, d, d)`, float64.

    Modes decouple, but their noise is correlated: in the eigenbasis V of M_j

        C_kl = (V' S² V)_kl sum_(t<T) gamma^(2t) g_k(T - t) g_l(T - t),    S = noise_scale diag(noise).

    Raises:
        ValueError: a number of steps below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: must be at least 1")
    values, vectors = np.linalg.eigh(np.asarray(law.hessian, np.float64))
    scale = descent.noise_scale * np.asarray(law.noise, np.float64)
    among_modes = np.einsum("jak,a,jal->jkl", vectors, scale**2, vectors)
    weights = descent.noise_decay ** (num_steps - np.arange(1, num_steps + 1.0))
    weighted = weights[:, None, None] * responses(values, num_steps, descent)
    covariance = among_modes * np.einsum("tjk,tjl->jkl", weighted, weighted)
    return np.einsum("jak,jkl,jbl->jab", vectors, covariance, vectors)


def departure_probability(law: Law, threshold: float, num_steps: int, descent: HeavyBall) -> float:
    """`P(1 - R² >= threshold)` after some steps, with 1 - R² a quadratic form of a Gaussian.

    It is a sum of chi-squares whose weights are the eigenvalues of `F^(1/2) C F^(1/2)`, each n_j - 1 times. Exact for a
    quadratic loss and constant noise, hence accurate near a critical point of the base. This is the probability at step
    T; for the probability of having reached the threshold *at any time* up to T use `simulated_departures`.

    Args:
        law: from `escape_law`.
        threshold: level of 1 - R² that counts as escape, such as 0.05.
        num_steps: T.
        descent: the optimizer's settings.

    Raises:
        ValueError: a threshold that is not positive; deviations that
            overflow; as in `deviation_covariance`.
    """
    weights, degrees = [], []
    for each in law.values():
        root = _square_root(np.asarray(each.form, np.float64))
        with np.errstate(over="ignore", invalid="ignore"):
            covariance = root @ deviation_covariance(each, num_steps, descent) @ root
        if not np.isfinite(covariance).all():
            raise ValueError(
                f"num_steps={num_steps}: deviations exceed the largest double by then, and linear theory has long "
                "ceased to hold; ask for fewer steps"
            )
        eigenvalues = np.linalg.eigvalsh(covariance)
        weights.append(np.maximum(eigenvalues, 0).ravel())
        degrees.append(np.repeat(each.multiplicity, eigenvalues.shape[-1]))
    return float(weighted_chi_square_tail(np.concatenate(weights), threshold, np.concatenate(degrees)))


def _square_root(matrices: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrices)
    return (vectors * np.sqrt(np.maximum(values, 0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def simulated_departures(
    law: Law, descent: HeavyBall, key: Key[Array, ""], every: int, num_records: int, num_runs: int
) -> Float[Array, "runs records"]:
    """1 - R² along simulated runs of the linear process, for first-passage times.

    Args:
        law: from `escape_law`.
        descent: how training goes.
        key: random key.
        every: steps between two records.
        num_records: records of each run; the first is at step `every`.
        num_runs: independent runs.

    Raises:
        ValueError: a law whose arrays do not fit one another.
    """
    for space, each in law.items():
        _check_law(space, each)
    patterns = tuple((space, tuple(map(int, each.multiplicity))) for space, each in law.items())
    arrays = {space: each[:3] for space, each in law.items()}
    numbers = jax.tree.map(lambda number: jnp.asarray(float(number)), descent)  # traced: one program for all
    return _departures(arrays, numbers, key, patterns, every, num_records, num_runs)


def _check_law(space: str, law: UnitLaw) -> None:
    """Refuse arrays of other shapes than those of one law: in a product an axis of length 1 fits any other."""
    for name, ranks in (("hessian", 3), ("form", 3), ("noise", 1), ("multiplicity", 1)):
        check_numbers(f"{name} of {space}", getattr(law, name), ranks)
    units, width = len(law.multiplicity), len(law.noise)
    for name, expected in {"hessian": (units, width, width), "form": (units, width, width)}.items():
        if (shape := jnp.shape(getattr(law, name))) != expected:
            raise ValueError(
                f"{name} of {space} has shape {shape}: must be {expected}, (units, d, d), as of escape_law"
            )


@partial(jax.jit, static_argnames=("patterns", "every", "num_records", "num_runs"))
def _departures(
    arrays: Mapping[str, tuple[Array, Array, Array]],
    descent: HeavyBall,
    key: Key[Array, ""],
    patterns: tuple[tuple[str, tuple[int, ...]], ...],
    every: int,
    num_records: int,
    num_runs: int,
) -> Array:
    """1 - R² at every record of every run, `(runs, records)`; see `simulated_departures`.

    Args:
        arrays: by space, M_j, F_j and the noise of every coordinate.
        descent: numbers of the optimizer, traced.
        key: random key of the noise.
        patterns: by space, the number of clones less one of every unit, static.
        every: steps between two records.
        num_records: number of records.
        num_runs: number of runs.
    """
    eta, scale, gamma, beta, kappa = descent

    def step(index: Array, state: dict[str, Any]) -> dict[str, Any]:
        moved = {}
        for number, (space, (place, momentum)) in enumerate(state.items()):
            hessian, _, noise = arrays[space]
            draw = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, index), number), place.shape)
            pull = jnp.einsum("jab,rcjb->rcja", hessian, place) + kappa * place
            momentum = beta * momentum + pull + scale * gamma**index * noise * draw
            moved[space] = place - eta * momentum, momentum
        return moved

    def record(state: dict[str, Any], first: Array) -> tuple[dict[str, Any], Array]:
        state = jax.lax.fori_loop(first, first + every, step, state)
        total = jnp.zeros(num_runs)
        for space, multiplicity in patterns:
            place, form = state[space][0], arrays[space][1]
            is_pattern = np.arange(place.shape[1])[:, None] < np.array(multiplicity)
            total += jnp.sum(jnp.einsum("rcja,jab,rcjb->rcj", place, form, place) * is_pattern, axis=(1, 2))
        return state, total

    starts = {}
    for space, multiplicity in patterns:
        shape = (num_runs, max(multiplicity), *arrays[space][0].shape[:2])
        starts[space] = jnp.zeros(shape), jnp.zeros(shape)
    return jax.lax.scan(record, starts, every * jnp.arange(num_records))[1].T
