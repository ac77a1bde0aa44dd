"""`classify` against the blocks in long double, on the networks whose blocks are known in closed form."""

import jax.numpy as jnp
import numpy as np

from lopjax.losses import of_parameters
from lopjax.manifolds import cloned_manifold
from lopjax.models import mlp
from lopjax.stability import StabilityReport, classify
from theory_checks.audit.draws import INPUTS, KINDS, Network, Structure, draw_network, draw_structure
from theory_checks.audit.oracle import TrueBlock, falsehoods
from theory_checks.audit.running import LOSSES, clone_layers, cluster_ids, truth_of
from theory_checks.audit.tally import Tally

DTYPES = ("float64", "float32", "float64", "float64")


def audit_classify(num_networks: int, seed: int, num_structures: int) -> Tally:
    """Dense eigenvalues of the cloned network, counted by the library, against long double.

    Args:
        num_networks: how many.
        seed: seed of everything random.
        num_structures: how many architectures.
    """
    rng, tally = np.random.default_rng([seed, 1]), Tally()
    structures = [draw_structure(rng, index) for index in range(num_structures)]
    for number in range(num_networks):
        structure = structures[number % num_structures]
        network = draw_network(rng, structure, KINDS[number % len(KINDS)], DTYPES[number % len(DTYPES)])
        report, block = classify_dense(structure, network), whole_spectrum(structure, network)
        key = ("classify", network.kind, network.dtype)
        tally.count(key, report.verdict, len(block.eigenvalues), max(report.n_undecided, 0))
        for falsehood in falsehoods(report, block, structure.activation):
            tally.wrong.append(f"{key} {number} (seed {seed}), {structure}: {falsehood}; {report}; true {block}")
    return tally


def classify_dense(structure: Structure, network: Network) -> StabilityReport:
    """The library's answer about the cloned network."""
    ids = cluster_ids(structure)
    wide = mlp((INPUTS,), tuple(map(len, ids.values())), structure.outputs, activation=structure.activation)
    partition = {space: units for space, units in ids.items() if len(set(units)) < len(units)}
    params = clone_layers(network, structure)
    labels = network.labels.astype(network.dtype) if structure.loss == "mse" else network.labels
    batch = jnp.asarray(network.inputs, network.dtype), jnp.asarray(labels)
    loss = of_parameters(wide, {"params": params}, batch, loss=LOSSES[structure.loss])
    return classify(loss, params, cloned_manifold(params, wide.wiring, partition))


def whole_spectrum(structure: Structure, network: Network) -> TrueBlock:
    """Every block n_j - 1 times, and a zero for every gauge direction."""
    values, blocks = [], truth_of(structure, network)
    for units, sizes in zip(blocks, structure.factors, strict=True):
        values += [block.eigenvalues for block, copies in zip(units, sizes, strict=True) for _ in range(copies - 1)]
    num_gauge = sum(
        sum(n - 1 for n in before) * sum(n - 1 for n in after)
        for before, after in zip(structure.factors, structure.factors[1:], strict=False)
    )
    every = [block for units in blocks for block in units]
    return TrueBlock(
        eigenvalues=np.sort(np.concatenate([*values, np.zeros(num_gauge)])),
        noise=max(block.noise for block in every),
        radius=np.inf,
        is_kinked=any(block.is_kinked for block in every),
    )
