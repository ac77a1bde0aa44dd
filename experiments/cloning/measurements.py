"""What is measured at every record, as pure functions of the variables of a base and its clone."""

from collections.abc import Callable
from typing import Any

import jax

from experiments.cloning.setup import Setup
from experiments.kit.own_metrics import own_metrics
from lopjax.cloning import uniform_partition
from lopjax.losses import cross_entropy
from lopjax.manifolds import cloned_manifold, tangency_residual, tree_norm
from lopjax.probes import symptoms
from lopjax.training import evaluate

Measurements = dict[str, jax.Array]


def make_measure(setup: Setup) -> Callable[[Any, Any, Any, Any], Measurements]:
    """How one lane is measured.

    Returns:
        `measure(base, clone, probe, test)`: variables of the base and of the clone (None before cloning: then only the
        test set is used), images and labels of the probe batch and of the test set.
    """
    partition, metrics = uniform_partition(setup.wide.wiring, setup.config.factor), own_metrics(setup.config.metrics)

    def measure(base: Any, clone: Any, probe: Any, test: Any) -> Measurements:
        inputs, labels = setup.preprocess.inputs(probe[0]), probe[1]
        networks = [("base", setup.base, base, None)]
        networks += [] if clone is None else [("clone", setup.wide, clone, partition)]
        measured = {}
        for name, model, variables, clusters in networks:
            values = evaluate(model, variables, test, setup.preprocess)
            measured |= {f"{name}/test_{key}": value for key, value in values.items()}
            if clone is None:
                continue
            table = symptoms(model, variables, (inputs, labels), partition=clusters, metrics=metrics)
            for metric, sites in table.items():
                measured |= {f"{name}/{metric}/{site}": value for site, value in sites.items()}
        if clone is not None:
            difference = setup.base.apply(base, inputs).logits - setup.wide.apply(clone, inputs).logits
            measured["logit_difference"] = abs(difference).max()
            measured |= confinement(setup, clone, (inputs, labels))
        return measured

    return measure


def confinement(setup: Setup, variables: Any, batch: Any) -> dict[str, jax.Array]:
    """How far parameters and gradient of the clone are from the manifold: norms of the violating parts, relative.

    RE: incoming totals differ inside a cluster; CE: outgoing totals do; BC: anything does (docs/theory/cloning.md).
    """
    params = variables["params"]
    manifold = cloned_manifold(params, setup.wide.wiring, uniform_partition(setup.wide.wiring, setup.config.factor))
    assert manifold.normals is not None  # every cloned manifold has them
    gradient = jax.grad(cross_entropy(setup.wide, variables, batch))(params)
    size = tree_norm(params)
    return {
        "clone/re_residual": tree_norm(manifold.normals.incoming.project(params)) / size,
        "clone/ce_residual": tree_norm(manifold.normals.outgoing.project(params)) / size,
        "clone/bc_residual": tangency_residual(manifold, params),
        "clone/tangency_residual": tangency_residual(manifold, gradient),
    }
