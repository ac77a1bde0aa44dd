"""E7, activation theory: how non-linearity makes and loses rank (arXiv 2510.00304, figures A.1 to A.4).

    python -m experiments.activation_theory          # under a minute on two CPU cores

writes six figures (PNG and PDF), results.json and tables.md to runs/activation_theory/quick. The tables are those of
docs/theory/activation.md. Expected: alpha of ReLU 0, tanh 0.17780723, GELU 0.07203160.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

TABLE = ("relu", "tanh", "gelu", "sigmoid", "selu", "elu", "silu")
PRINTED_ALPHA = {"relu": 0.5, "tanh": 0.6667, "gelu": 0.5449}
FORMULAS = {"corrected": "corrected", "leading_log": "appendix, leading log", "linear": "main text, 1 + αε"}


@dataclass(frozen=True)
class Config:
    """E7: alpha, kernel maps, rank recovery and frozen fractions of activations, and correlations of a trained MLP."""

    num_samples: int = 10_000
    """Samples of the hard-rank experiment."""
    num_units: int = 50
    """Units of the hard-rank experiment."""
    rank: int = 10
    """Rank of their pre-activations."""
    num_equicorrelated: int = 100
    """Units of the effective-rank experiment."""
    grid: int = 19
    """Points per axis of the heat maps over scale and shift."""
    depth: int = 30
    """Layers over which kernel maps are iterated."""
    train_steps: int = 2_000
    """SGD steps of the MLP on the digits."""
    seed: int = 0
    """Of samples, initialisation and batches."""
    name: str = "quick"
    """Name of the run folder."""
    root: Path = Path("runs")
    """Folder of all runs."""


def alpha_table() -> list[dict[str, Any]]:
    """Alpha of every activation of the table, both kinds, beside what the paper prints."""
    from lopjax.activations import activation
    from lopjax.theory import activation_moments, alpha

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
    from lopjax.activations import activation
    from lopjax.theory import fixed_points

    names = (*TABLE, "softplus", "exp")
    return [{"activation": name, **point._asdict()} for name in names for point in fixed_points(activation(name))]


def gain_table(num_units: int, exponents: Sequence[int] = (1, 2, 3, 4, 6, 8)) -> list[dict[str, Any]]:
    """Exact ln(er(C_f) / er(C)) of equicorrelated units, and each formula as a multiple of it.

    ReLU is not here: its alpha is 0, and so is every formula. tanh(10 z) stands for a large alpha, 4.77.
    """
    import jax.numpy as jnp

    from lopjax.activations import Activation, activation
    from lopjax.theory import alpha, exact_rank_gain, kernel_gap, rank_gain

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


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def measure(num_units: int) -> dict[str, list[dict[str, Any]]]:
    """Measure the numbers of the documentation's tables."""
    return {"alpha": alpha_table(), "fixed_points": fixed_point_table(), "rank_gain": gain_table(num_units)}


def tables(measured: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Write what `measure` returns as Markdown tables, under the same names."""
    alphas = [
        [
            row["activation"],
            # ReLU's alpha is 0 to rounding, of either sign.
            f"{row['alpha'] if abs(row['alpha']) > 1e-12 else 0.0:.8f}",
            f"{row['centred_alpha']:.8f}",
            "" if row["printed"] is None else f"{row['printed']:g}",
        ]
        for row in measured["alpha"]
    ]
    points = [
        [row["activation"], f"{row['rho']:.6f}", f"{row['multiplier']:.6f}", row["kind"]]
        for row in measured["fixed_points"]
    ]
    gains = [
        [row["activation"], f"{row['eps']:.0e}", f"{row['exact']:.4e}", *(f"{row[name]:.4f}" for name in FORMULAS)]
        for row in measured["rank_gain"]
    ]
    ratios = [f"{name} / exact" for name in FORMULAS.values()]
    return {
        "alpha": _markdown(["activation", "α, uncentred", "α, centred", "printed in the paper"], alphas),
        "fixed_points": _markdown(["activation", "fixed point ρ", "multiplier", "kind"], points),
        "rank_gain": _markdown(["activation", "ε", "exact ln gain", *ratios], gains),
    }


class Spectra(NamedTuple):
    """Eigenvalues of sampled second-moment matrices, relative to the largest, and how many are not rounding."""

    eigenvalues: dict[str, Any]
    ranks: dict[str, int]


def sampled_spectra(config: Config) -> Spectra:
    """Send rank-deficient Gaussian samples through activations: the paper's hard-rank experiment."""
    import jax.numpy as jnp
    import numpy as np

    from lopjax.activations import activation

    generator = np.random.default_rng(config.seed)
    mixing = generator.standard_normal((config.rank, config.num_units))
    mixing /= np.linalg.norm(mixing, axis=0)
    z = generator.standard_normal((config.num_samples, config.rank)) @ mixing
    spectra, ranks = {}, {}
    for name in ("identity", "relu", "tanh", "gelu", "sigmoid", "elu"):
        singular = np.linalg.svd(np.asarray(activation(name)(jnp.asarray(z))), compute_uv=False)
        spectra[name] = (singular / singular[0]) ** 2
        ranks[name] = int(np.sum(singular > singular[0] * max(z.shape) * np.finfo(float).eps))
    return Spectra(spectra, ranks)


def train_and_probe(config: Config, every: int = 20) -> dict[str, Any]:
    """Train an MLP on the digits and measure the correlations of its units on 500 training images along the way.

    Returns:
        Steps, the test accuracy at the end, and every field of the report as (times, layers).
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from lopjax.data import load
    from lopjax.losses import accuracy, mean_cross_entropy
    from lopjax.models import mlp
    from lopjax.theory import correlation_report

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
            return mean_cross_entropy(model.apply({**variables, "params": params}, inputs(images))[0], labels)

        updates, state = optimizer.update(jax.grad(loss)(variables["params"]), state)
        return ({**variables, "params": optax.apply_updates(variables["params"], updates)}, state), None

    @jax.jit
    def run(variables, images, labels, probed, order):
        def chunk(carry, chosen):
            taps = model.apply(carry[0], inputs(probed))[2]
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
        logits = model.apply(variables, inputs(jnp.asarray(data.test_images)))[0]
        score = float(accuracy(logits, jnp.asarray(data.test_labels)))
    fields = {name: np.asarray(value) for name, value in reports._asdict().items()}
    return {"steps": np.arange(chunks) * every, "test_accuracy": score, "layers": layers, **fields}


def run(config: Config) -> tuple[Path, dict[str, Any]]:
    """Measure everything, write figures, tables and numbers; return the folder and the numbers."""
    from experiments import activation_figures as figures

    folder = config.root / "activation_theory" / config.name
    folder.mkdir(parents=True, exist_ok=True)
    spectra, trained = sampled_spectra(config), train_and_probe(config)
    measured = measure(config.num_equicorrelated)
    figures.hard_rank(folder / "a1_hard_rank", spectra.eigenvalues, spectra.ranks, config.rank)
    figures.effective_rank(folder / "a2_effective_rank", config.num_equicorrelated)
    figures.frozen_against_alpha(folder / "a3_frozen_fraction")
    figures.heat_maps(folder / "a4_heat_maps", config.grid)
    figures.kernel_maps(folder / "kernel_maps", config.depth)
    figures.correlations_in_training(folder / "correlations_in_training", trained)
    (folder / "tables.md").write_text("\n".join(tables(measured).values()))
    numbers = {
        "config": {**asdict(config), "root": str(config.root)},
        **measured,
        "hard_ranks": spectra.ranks,
        "trained_mlp": {
            "test_accuracy": trained["test_accuracy"],
            "layers": trained["layers"],
            **{field: [trained[field][i].tolist() for i in (0, -1)] for field in ("polarisation", "near_zero")},
            "near_one": [trained["near_one"][i].tolist() for i in (0, -1)],
            "near_one_at_its_peak": trained["near_one"].max(axis=0).tolist(),
            "constant_fraction": [trained["constant_fraction"][i].tolist() for i in (0, -1)],
        },
    }
    temporary = folder / "results.tmp"
    temporary.write_text(json.dumps(numbers, indent=1) + "\n")
    os.replace(temporary, folder / "results.json")
    return folder, numbers


def main() -> None:
    """Parse, run, print the table of alphas and where the files are."""
    import tyro

    config = tyro.cli(Config, prog="python -m experiments.activation_theory")

    # Most of the time is compilation of small programs, which optimises nothing that matters here.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    import jax

    jax.config.update("jax_enable_x64", True)
    from rich.console import Console
    from rich.table import Table

    folder, numbers = run(config)
    table = Table(title="alpha = E f'² / E f² - 1", title_justify="left")
    for column in ("activation", "uncentred", "centred", "printed in the paper", "relative error"):
        table.add_column(column, justify="left" if column == "activation" else "right")
    for row in numbers["alpha"]:
        printed = "" if row["printed"] is None else f"{row['printed']:g}"
        table.add_row(
            row["activation"],
            f"{row['alpha'] if abs(row['alpha']) > 1e-12 else 0.0:.8f}",
            f"{row['centred_alpha']:.8f}",
            printed,
            f"{row['error']:.0e}",
        )
    console = Console()
    console.print(table)
    console.print(f"test accuracy of the probed MLP: {numbers['trained_mlp']['test_accuracy']:.3f}")
    for path in sorted(folder.iterdir()):
        console.print(f"  {path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
