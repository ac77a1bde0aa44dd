"""Ways off the manifold of clones, simulated: momentum, overshoot, noise, free kicks; and decay, the way back.

In all of these checks the base network is at a critical point, so that linear theory predicts when clones leave; a
simulation of gradient descent shows when they do.
"""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from scipy.special import erfcinv

from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.losses import mean_squared_error, of_parameters
from lopjax.manifolds import cloned_manifold
from lopjax.model import Model, Params, Variables
from lopjax.stability import (
    DecayingNoise,
    HeavyBall,
    departure_probability,
    escape_law,
    escape_quantiles,
    escape_time,
    noise_variances,
    rank_ceiling,
    simulated_departures,
    unit_blocks,
)
from theory_checks.architectures import random_variables
from theory_checks.check import Check, Row, Size
from theory_checks.critical import critical, critical_base, departures, first_outside
from theory_checks.decay import check_decay_makes_clones
from theory_checks.degenerate import check_degenerate
from theory_checks.moving import check_moving_base

OURS = "lopjax; the decomposition into unit blocks answers an open question of arXiv 2510.00304, section 4"


# --- Momentum and overshoot ------------------------------------------------------------------------------------------


def check_momentum(size: Size) -> list[Row]:
    """Steps until kicked clones are apart under heavy-ball momentum, and on both sides of the edge of overshoot."""
    point, radius = critical(2), 1e-3
    kick = 1e-5 * np.random.default_rng(0).normal(size=len(point.modes)) / len(point.modes) ** 0.5
    rows, start = [], point.flat + kick @ point.modes
    settings = ((0.2, 0.9), (0.05, 0.99)) if size == "small" else ((0.2, 0.5), (0.2, 0.9), (0.05, 0.9), (0.05, 0.99))
    for rate, momentum in settings:
        distances = departures(point.loss, start, point.flat, point.modes, 1_000, rate, momentum)
        measured = first_outside(distances, radius)
        with_momentum = float(escape_time(point.eigenvalues, kick, radius, rate, momentum=momentum))
        name = f"eta = {rate}, beta = {momentum}"
        rows.append(
            Row(f"{name}: {measured:.0f} steps measured, predicted minus that", abs(with_momentum - measured), 1)
        )
        rescaled = float(escape_time(point.eigenvalues, kick, radius, rate / (1 - momentum)))
        rows.append(Row(f"{name}: rate over 1 - beta in place of momentum", abs(rescaled - measured), 1, control=True))
    momentum, upwards = 0.5, np.where(np.arange(len(kick)) == len(kick) - 1, 1e-6, 0.0)

    def confined(vector: jax.Array) -> jax.Array:
        """The loss without its motion along the manifold, whose own edge comes first."""
        across = (vector - point.flat) @ point.modes.T
        return point.loss(point.flat + across @ point.modes)

    for share, leaves in ((1.1, True), (0.9, False)):
        rate = share * 2 * (1 + momentum) / point.eigenvalues[-1]
        run = departures(confined, point.flat + upwards @ point.modes, point.flat, point.modes, 15, rate, momentum)
        predicted = float(escape_time(point.eigenvalues[-1:], [1e-6], 1e-5, rate, momentum=momentum))
        name = f"eta lambda_max at {share} of 2 (1 + beta)"
        if leaves:
            gap = abs(predicted - first_outside(run, 1e-5))
            rows.append(Row(f"{name}: predicted minus measured steps of {predicted:.0f}", gap, 1))
        rows.append(Row(f"{name}: largest distance in 15 steps", float(run.max()), 1e-5, ">=", control=not leaves))
    return rows


# --- Decaying noise --------------------------------------------------------------------------------------------------


def _noisy_escapes(factor: int, noise: DecayingNoise, radius: float, runs: int, steps: int) -> np.ndarray:
    """Whether each run of gradient descent with isotropic noise is outside after each step, `(steps, runs)`."""
    point = critical(2, factor)

    @jax.jit
    def run() -> jax.Array:
        def step(places: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
            draw = jax.random.normal(jax.random.fold_in(jax.random.key(1), t), places.shape)
            moved = places - noise.learning_rate * jax.vmap(jax.grad(point.loss))(places)
            moved = moved + noise.scale * noise.decay**t * draw
            return moved, jnp.linalg.norm((moved - point.flat) @ point.modes.T, axis=1) >= radius

        starts = jnp.broadcast_to(point.flat, (runs, len(point.flat)))
        return jax.lax.scan(step, starts, jnp.arange(steps))[1]

    return np.asarray(run())


def check_decaying_noise(size: Size) -> list[Row]:
    """Shares of runs that are outside at the steps at which 10, 50 and 90 per cent of them should be."""
    runs, radius, noise = (60 if size == "small" else 1_000), 1e-3, DecayingNoise(0.1, 1e-5, decay=0.98)
    rows = []
    for factor in (4,) if size == "small" else (2, 4):
        base, variables, batch = critical_base(2)
        blocks = unit_blocks(base, variables, batch, factor, loss=mean_squared_error).spaces["hidden_0"]
        values = blocks.eigenvalues.ravel()
        times = np.repeat(blocks.multiplicity, blocks.dimension)
        levels = np.array([0.1, 0.5, 0.9])
        predicted = escape_quantiles(values, times, radius, noise, levels)
        outside = _noisy_escapes(factor, noise, radius, runs, int(predicted[-1])).mean(axis=1)
        for level, step in zip(levels, predicted, strict=True):
            error = abs(outside[int(step) - 1] - level) / (level * (1 - level) / runs) ** 0.5
            what = f"n = {factor}, step {step:.0f}: outside minus {level:.0%}, in standard errors"
            rows.append(Row(what, error, 4.0))
        # One mode alone is outside with probability erfc(R / (sqrt(2) s)).
        deviations = np.sqrt(noise_variances(values.min(), np.arange(1, len(outside) + 1), noise)[:, 0])
        alone = int(np.argmax(deviations >= radius / (2**0.5 * erfcinv(0.1))))
        error = abs(outside[alone] - 0.1) / (0.09 / runs) ** 0.5
        rows.append(Row(f"n = {factor}, step {alone + 1}: from the fastest mode alone", error, 4.0, control=True))
    return rows


# --- The law of R² ---------------------------------------------------------------------------------------------------


def _losses_of_r2(noise: HeavyBall, scales: Params, runs: int, steps: int) -> np.ndarray:
    """1 - R² of the clones along runs of gradient descent with noise and momentum, `(steps, runs)`, by numpy's sums."""
    point = critical(2)
    per_entry = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.ones_like, point.cloned["params"]))[0]
    per_entry = (
        noise.noise_scale
        * jax.flatten_util.ravel_pytree(
            jax.tree.map(lambda leaf, scale: leaf * scale, point.unravel(per_entry), scales)
        )[0]
    )

    def activations(place: jax.Array) -> jax.Array:
        variables = {**point.cloned, "params": point.unravel(place)}
        return point.wide.apply(variables, point.batch[0]).taps["hidden_0"].post

    @jax.jit
    def run() -> jax.Array:
        def step(state: tuple[jax.Array, jax.Array], t: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            places, momenta = state
            draw = jax.random.normal(jax.random.fold_in(jax.random.key(2), t), places.shape)
            gradients = jax.vmap(jax.grad(point.loss))(places) + per_entry * noise.noise_decay**t * draw
            momenta = noise.momentum * momenta + gradients
            places = places - noise.learning_rate * momenta
            return (places, momenta), jax.vmap(activations)(places)

        starts = jnp.broadcast_to(point.flat, (runs, len(point.flat)))
        return jax.lax.scan(step, (starts, jnp.zeros_like(starts)), jnp.arange(steps))[1]

    h = np.asarray(run())
    pairs = h.reshape(*h.shape[:3], -1, 2)
    within = ((pairs - pairs.mean(axis=-1, keepdims=True)) ** 2).sum(axis=(2, 3, 4))
    return within / ((h - h.mean(axis=-1, keepdims=True)) ** 2).sum(axis=(2, 3))


def check_law_of_r2(size: Size) -> list[Row]:
    """Shares of runs whose R² is below a level at a step, and ever: momentum, and noise unequal and dying away."""
    runs, steps, every = (200, 60, 20) if size == "small" else (2_000, 200, 20)
    descent = HeavyBall(0.1, 2e-4, noise_decay=0.99, momentum=0.5)
    base, variables, batch = critical_base(2)
    point, rows = critical(2), []
    scales = jax.tree.map(lambda leaf: float(leaf.size), point.cloned["params"])
    law = escape_law(base, variables, batch, 2, loss=mean_squared_error, gradient_norms=scales)
    measured = _losses_of_r2(descent, scales, runs, steps)
    simulated = np.asarray(simulated_departures(law, descent, jax.random.key(0), every, steps // every, 4 * runs))
    recorded = measured[every - 1 :: every]
    for level in (0.2, 0.5, 0.8):
        threshold = float(np.quantile(simulated[:, -1], 1 - level))
        predicted = departure_probability(law, threshold, steps, descent)
        error = (predicted * (1 - predicted) / runs) ** 0.5
        outside = float((measured[-1] >= threshold).mean())
        rows.append(
            Row(
                f"outside at step {steps}: minus {predicted:.1%}, in standard errors",
                abs(outside - predicted) / error,
                4.0,
            )
        )
        ever = float((simulated >= threshold).any(axis=1).mean())
        share = float((recorded >= threshold).any(axis=0).mean())
        rows.append(Row(f"outside at a record: minus {ever:.1%}, in standard errors", abs(share - ever) / error, 4.0))
    # The same noise on all arrays, of the size that the bias has.
    equal = {space: each._replace(noise=jnp.full_like(each.noise, each.noise[0])) for space, each in law.items()}
    threshold = float(np.quantile(simulated[:, -1], 0.5))
    wrong = departure_probability(equal, threshold, steps, descent)
    error = abs(float((measured[-1] >= threshold).mean()) - wrong) / (0.25 / runs) ** 0.5
    rows.append(Row("the same noise on all arrays, in standard errors", error, 4.0, control=True))
    return rows


# --- Free kicks ------------------------------------------------------------------------------------------------------


def _rank_gained(variables: Variables, base: Model, batch: tuple[jax.Array, jax.Array], factor: int) -> int:
    """Rank that a random free kick on all clones and one gradient step add to the activations, to first order."""
    wide, cloned = widen(base, factor), clone_variables(variables, base.wiring, factor)
    manifold = cloned_manifold(cloned["params"], wide.wiring, uniform_partition(wide.wiring, factor))
    drawn = random_variables(wide, seed=9)["params"]
    kick = jax.tree.map(jnp.subtract, drawn, manifold.project(drawn))
    kick = {**kick, "hidden_0": jax.tree.map(jnp.zeros_like, kick["hidden_0"])}
    loss = of_parameters(wide, cloned, batch, loss=mean_squared_error)
    inputs = jnp.asarray(np.random.default_rng(1).normal(size=(200, 2)))

    def activations(size: jax.Array) -> jax.Array:
        kicked = jax.tree.map(lambda leaf, change: leaf + size * change, cloned["params"], kick)
        stepped = jax.tree.map(jnp.subtract, kicked, jax.grad(loss)(kicked))
        return wide.apply({**cloned, "params": stepped}, inputs).taps["hidden_0"].post

    before, change = jax.jit(lambda: jax.jvp(activations, (0.0,), (1.0,)))()
    with_kick = np.linalg.svd(before + change, compute_uv=False)
    return int((with_kick > 1e-10 * with_kick[0]).sum()) - int(np.linalg.matrix_rank(before))


def check_rank_ceiling(size: Size) -> list[Row]:
    """Rank that a free kick and a step give back, against sum min(n - 1, rank B): at a critical point and beside it."""
    factor, rows = 4 if size == "small" else 8, []
    for outputs in (2, 1):
        base, variables, batch = critical_base(outputs)
        moved = {**variables, "params": jax.tree.map(lambda leaf: leaf + 0.3, variables["params"])}
        points = (("critical base", variables), ("base beside it", moved))
        for where, point in points if outputs == 2 or size == "full" else points[:1]:
            wide, cloned = widen(base, factor), clone_variables(point, base.wiring, factor)
            loss = of_parameters(wide, cloned, batch, loss=mean_squared_error)
            partition = uniform_partition(wide.wiring, factor)
            ceiling = rank_ceiling(loss, cloned["params"], wide.wiring, partition, "hidden_0").ceiling
            gained, name = _rank_gained(point, base, batch, factor), f"{outputs} outputs, {where}"
            rows.append(Row(f"{name}: rank gained, minus the ceiling of {ceiling}", abs(gained - ceiling), 0))
            at_most = 3 * (outputs - 1)
            rows.append(
                Row(f"{name}: rank gained, one less than outputs per unit", gained, at_most, "<=", point is moved)
            )
    return rows


CHECKS: tuple[Check, ...] = (
    Check(
        "escape.momentum",
        "With heavy-ball momentum the component of a kick grows by the roots of r² - (1 + beta - eta lambda) r + beta; "
        "clones also leave by overshooting, at eta lambda_max > 2 (1 + beta).",
        OURS,
        check_momentum,
        "Momentum frees clones sooner, but not as a learning rate divided by 1 - beta would: with beta = 0.99 that is "
        "several times off.",
    ),
    Check(
        "escape.decaying_noise",
        "Under isotropic noise that dies away the clones of a critical base are outside a radius R after T steps with "
        "the probability P(sum_k s_k²(T) chi²_(m_k) >= R²), every eigenvalue counted n - 1 times.",
        OURS,
        check_decaying_noise,
        "Whether a schedule of noise is enough to free clones by the end of a task can be computed beforehand. It is a "
        "statement about each step, not about ever having left, and about noise of the same size on all parameters.",
    ),
    Check(
        "escape.law_of_r2",
        "With momentum, and noise that has its own size on every array and dies away, 1 - R² of the clones of a "
        "critical base is a quadratic form of a Gaussian whose covariance the modes of M_j propagate: "
        "P(1 - R² >= q) = P(sum mu_k chi² >= q), mu_k the eigenvalues of F^(1/2) C F^(1/2); a first passage is that of "
        "the simulated linear process.",
        OURS,
        check_law_of_r2,
        "How surely clones have escaped by a step can be computed from the curvature, the gradients' norms and the "
        "activations at cloning, in the units in which escape is measured.",
    ),
    Check(
        "escape.moving_base",
        "While a base trains on, with minibatches and momentum, deviations v of its clones obey v <- v - eta m, "
        "m <- beta m + H_t v, H_t the Hessian of the step's batch at the moving base, up to terms of higher order in "
        "v.",
        "the variational equation along a trajectory; for minibatches arXiv 2306.04251",
        check_moving_base,
        "Linear theory needs no critical point and no average over batches; curvature frozen at the cloning is not "
        "enough on a base that trains on.",
    ),
    Check(
        "escape.degenerate",
        "At weights of 0 the normal Hessian of clones is 0 where there are three layers of weights; kicks grow all the "
        "same, in a number of steps that is a power of their size, here 1 over it, and linear theory predicts none.",
        "arXiv 2605.01288, for small weights in deep networks; its clones: lopjax",
        check_degenerate,
        "A verdict NEUTRAL, or an infinite escape time, is no promise that clones stay: they may leave late, and later "
        "by far for a smaller kick.",
    ),
    Check(
        "escape.rank_ceiling",
        "A free kick and one gradient step restore at most sum_j min(n_j - 1, rank B_j) dimensions of the activations"
        " to first order; at a critical point, rank B_j is at most the number of outputs minus one for each unit whose"
        " outgoing weights are not all 0.",
        OURS,
        check_rank_ceiling,
        "With one output, or at the end of training, a kick of outgoing weights restores no rank at once; incoming"
        " weights must be kicked, or the task must change.",
    ),
    Check(
        "escape.decay_makes_clones",
        "Weight decay merges the units of a smooth network into fewer and fewer distinct ones, to a number at which"
        " the clones attract by their blocks.",
        OURS,
        check_decay_makes_clones,
        "Loss of plasticity by cloning needs no clones at the start: decay beyond the threshold produces them, from "
        "every random start that was tried.",
    ),
)
"""From the way out to the way back."""
