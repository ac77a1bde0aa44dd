"""Activation theory as a list of parts: tables, spectra of samples, correlations of a network in training."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.activation_theory.config import Config
from lopjax.activations import Activation, activation
from lopjax.data import load
from lopjax.losses import accuracy, mean_cross_entropy
from lopjax.models import mlp
from lopjax.runs.schedule import Part
from lopjax.theory import (
    activation_moments,
    alpha,
    correlation_report,
    exact_rank_gain,
    fixed_points,
    kernel_gap,
    rank_gain,
)

TABLE = ("relu", "tanh", "gelu", "sigmoid", "selu", "elu", "silu")
PRINTED_ALPHA = {"relu": 0.5, "tanh": 0.6667, "gelu": 0.5449}
FORMULAS = {"corrected": "corrected", "leading_log": "appendix, leading log", "linear": "main text, 1 + αε"}


def parts(config: Config, setup: None) -> list[Part]:
    """One record per measurement, in double precision; no state passes from one to the next."""

    def part(what: str, measure: Callable[[], dict[str, Any]]) -> Part:
        def do(state: Any) -> tuple[tuple[()], list[dict[str, Any]]]:
            with jax.enable_x64(True):
                return (), [{"what": what, **measure()}]

        return Part(what, 1, do, lambda: (), num_records=1, is_start=True)

    return [
        part("tables", partial(measure, config.num_equicorrelated)),
        part("spectra", lambda: sampled_spectra(config)._asdict()),
        part("training", partial(train_and_probe, config)),
    ]


def alpha_table() -> list[dict[str, Any]]:
    """Alpha of every activation of the table, both kinds, beside what the paper prints."""
    return [
        {
            "activation": name,
            "alpha": float(alpha(activation(name))),
            "centred_alpha": float(alpha(activation(name), centred=True)),
            "printed": PRINTED_ALPHA.get(name),
            "error": float(activation_moments(activation(name)).error),
        }
        for name in TABLE
    ]


def fixed_point_table() -> list[dict[str, Any]]:
    """Fixed points of the uncentred kernel maps, with multipliers."""
    names = (*TABLE, "softplus", "exp")
    return [{"activation": name, **point._asdict()} for name in names for point in fixed_points(activation(name))]


def gain_table(num_units: int, exponents: Sequence[int] = (1, 2, 3, 4, 6, 8)) -> list[dict[str, Any]]:
    """Exact ln(er(C_f) / er(C)) of equicorrelated units, and each formula as a multiple of it.

    ReLU is not here: its alpha is 0, and so is every formula. tanh(10 z) stands for a large alpha, 4.77.
    """
    steep = Activation("tanh(10z)", lambda z: jnp.tanh(10 * z), (0.0,))
    rows = []
    for f in (activation("tanh"), activation("gelu"), steep):
        strength = alpha(f)
        for exponent in exponents:
            eps = 10.0**-exponent
            exact = float(jnp.log(exact_rank_gain(num_units, eps, kernel_gap(f, eps))))
            gains = {name: float(jnp.log(rank_gain(num_units, eps, strength, name))) / exact for name in FORMULAS}
            rows.append({"activation": f.name, "eps": eps, "exact": exact, **gains})
    return rows


def measure(num_units: int) -> dict[str, list[dict[str, Any]]]:
    """Measure the numbers of the documentation's tables."""
    return {"alpha": alpha_table(), "fixed_points": fixed_point_table(), "rank_gain": gain_table(num_units)}


class Spectra(NamedTuple):
    """Eigenvalues of sampled second-moment matrices, relative to the largest, and how many are not rounding."""

    eigenvalues: dict[str, Any]
    ranks: dict[str, int]


def sampled_spectra(config: Config) -> Spectra:
    """Send rank-deficient Gaussian samples through activations: the paper's hard-rank experiment."""
    generator = np.random.default_rng(config.seed)
    mixing = generator.standard_normal((config.rank, config.num_units))
    mixing /= np.linalg.norm(mixing, axis=0)
    z = generator.standard_normal((config.num_samples, config.rank)) @ mixing
    spectra, ranks = {}, {}
    for name in ("identity", "relu", "tanh", "gelu", "sigmoid", "elu"):
        singular = np.linalg.svd(np.asarray(activation(name)(jnp.asarray(z))), compute_uv=False)
        spectra[name] = ((singular / singular[0]) ** 2).tolist()
        ranks[name] = int(np.sum(singular > singular[0] * max(z.shape) * np.finfo(float).eps))
    return Spectra(spectra, ranks)


def train_and_probe(config: Config, every: int = 20) -> dict[str, Any]:
    """Train an MLP on the digits and measure the correlations of its units on 500 training images along the way.

    Returns:
        Steps, the test accuracy at the end, and every field of the report as (times, layers).
    """
    data = load("digits")
    model = mlp((8, 8, 1), (64,) * 5, 10)
    layers = model.wiring.cloneable  # one site each, of the same name
    optimizer = optax.sgd(0.1)

    def inputs(images):
        return images.astype(jnp.float32) / 127.5 - 1

    def step(carry, batch):
        variables, state = carry
        images, labels = batch

        def loss(params):
            return mean_cross_entropy(model.apply({**variables, "params": params}, inputs(images)).logits, labels)

        updates, state = optimizer.update(jax.grad(loss)(variables["params"]), state)
        return ({**variables, "params": optax.apply_updates(variables["params"], updates)}, state), None

    @jax.jit
    def run(variables, images, labels, probed, order):
        def chunk(carry, chosen):
            taps = model.apply(carry[0], inputs(probed)).taps
            reports = [correlation_report(taps[layer].post) for layer in layers]
            carry, _ = jax.lax.scan(lambda c, i: step(c, (images[i], labels[i])), carry, chosen)
            return carry, jax.tree.map(lambda *layers: jnp.stack(layers), *reports)

        (variables, _), reports = jax.lax.scan(chunk, (variables, optimizer.init(variables["params"])), order)
        return variables, reports

    with jax.enable_x64(False):
        images, labels = jnp.asarray(data.train_images), jnp.asarray(data.train_labels)
        init_key, order_key = jax.random.split(jax.random.key(config.seed))
        chunks = config.train_steps // every
        order = jax.random.randint(order_key, (chunks, every, 32), 0, len(images))
        variables, reports = run(model.init(init_key), images, labels, images[:: len(images) // 500], order)
        logits = model.apply(variables, inputs(jnp.asarray(data.test_images))).logits
        score = float(accuracy(logits, jnp.asarray(data.test_labels)))
    fields = {name: np.asarray(value).tolist() for name, value in reports._asdict().items()}
    return {"steps": (np.arange(chunks) * every).tolist(), "test_accuracy": score, "layers": list(layers), **fields}
