"""Judge random networks twice, by the library and in long double, and compare."""

import jax.numpy as jnp
import numpy as np

from lopjax.losses import mean_cross_entropy, mean_squared_error
from lopjax.models import mlp
from lopjax.stability import UnitBlocks, unit_blocks_of_clones
from theory_checks.audit.draws import (
    INPUTS,
    KINDS,
    Network,
    Structure,
    base_layers,
    draw_network,
    draw_structure,
    mean_hinge,
    mean_smoothed_cross_entropy,
    signal_of,
)
from theory_checks.audit.oracle import TrueBlock, falsehoods, true_blocks
from theory_checks.audit.tally import Tally

LOSSES = {
    "cross_entropy": mean_cross_entropy,
    "smoothed": mean_smoothed_cross_entropy,
    "mse": mean_squared_error,
    "hinge": mean_hinge,
}
DTYPES = ("float64", "float32", "float64", "float32", "float64", "bfloat16", "float16")


def audit(num_networks: int, seed: int, num_structures: int = 60, first_structure: int = 0) -> Tally:
    """Draw, judge and compare; every structure is compiled once, its parameters change.

    Args:
        num_networks: how many networks in all.
        seed: seed of everything random.
        num_structures: how many architectures, at most.
        first_structure: index of the first: depth and activation go by the index.
    """
    rng, tally = np.random.default_rng(seed), Tally()
    structures = [draw_structure(rng, first_structure + index) for index in range(num_structures)]
    for number in range(num_networks):
        structure = structures[number % num_structures]
        network = draw_network(rng, structure, str(rng.choice(KINDS)), str(rng.choice(DTYPES)))
        compare(structure, network, tally, f"network {number} (seed {seed})")
    return tally


def compare(structure: Structure, network: Network, tally: Tally, name: str) -> None:
    """Add one network to a tally."""
    blocks, key = judge(structure, network), ("unit_blocks", network.kind, network.dtype)
    eigenvalues = undecided = 0
    for layer, true_units in enumerate(truth_of(structure, network)):
        space = blocks.spaces.get(f"hidden_{layer}")
        if space is None:
            continue
        for unit, true_block in enumerate(true_units):
            report = space.reports[unit]
            eigenvalues += len(true_block.eigenvalues)
            undecided += report.n_undecided
            wrong = falsehoods(report, true_block, structure.activation)
            if space.is_dead[unit] and np.abs(true_block.eigenvalues).max() > true_block.noise:
                wrong.append("called dead")
            if wrong:
                tally.wrong.append(
                    f"{name}, {network.kind}, {network.dtype}, {structure}, hidden_{layer} unit {unit}: "
                    f"{', '.join(wrong)}; {report}; true {true_block}"
                )
    total = blocks.total
    tally.count(key, total.verdict, eigenvalues, undecided)
    if (total.exact and total.n_undecided) or (total.verdict.name == "NEUTRAL" and "kink" in total.note):
        tally.wrong.append(f"{name}: total {total}")


def truth_of(structure: Structure, network: Network) -> list[list[TrueBlock]]:
    """The blocks of every unit, layer by layer, in long double."""
    return true_blocks(
        base_layers(structure, network),
        structure.activation,
        signal_of(structure, network.labels),
        network.inputs,
        [np.array(sizes) for sizes in structure.factors],
    )


def cluster_ids(structure: Structure) -> dict[str, tuple[int, ...]]:
    """Cluster of every unit of the wide network, per layer."""
    return {
        f"hidden_{layer}": tuple(int(i) for i in np.repeat(np.arange(len(sizes)), sizes))
        for layer, sizes in enumerate(structure.factors)
    }


def judge(structure: Structure, network: Network) -> UnitBlocks:
    """The library's answer, about the wide network with clusters of the structure's sizes."""
    ids = cluster_ids(structure)
    wide = mlp(
        (INPUTS,),
        tuple(len(units) for units in ids.values()),
        structure.outputs,
        activation=structure.activation,
    )
    partition = {space: units for space, units in ids.items() if len(set(units)) < len(units)}
    variables = {"params": clone_layers(network, structure)}
    batch = jnp.asarray(network.inputs), jnp.asarray(network.labels)
    return unit_blocks_of_clones(wide, variables, batch, partition, loss=LOSSES[structure.loss])


def clone_layers(network: Network, structure: Structure) -> dict:
    """Parameters of the wide network, in the network's type."""
    names = [*(f"hidden_{layer}" for layer in range(len(structure.widths))), "classes"]
    copies, params = np.ones(INPUTS, int), {}
    for index, (name, (kernel, bias)) in enumerate(zip(names, network.layers, strict=True)):
        targets = np.array(structure.factors[index]) if index < len(structure.factors) else np.ones(len(bias), int)
        params[name] = {
            "kernel": jnp.asarray(np.repeat(np.repeat(kernel, copies, axis=0), targets, axis=1), network.dtype),
            "bias": jnp.asarray(np.repeat(bias, targets), network.dtype),
        }
        copies = targets
    return params
