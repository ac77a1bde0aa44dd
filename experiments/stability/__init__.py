"""Stability of the manifold of clones while a task is fitted, and after its labels change.

At recorded epochs of a base network's training: what would become of a clone made now? The curvature M_j of every unit
across the manifold of clones, its class and exact inertia (closed form; with a norm, bounds from Hessian products).

    python -m experiments.stability                  # digits, under a minute
    python -m experiments.stability --preset cifar10 # 5 x 128 on CIFAR-10, 10,000 images, docs/stability.md
"""

from experiments.kit.experiment import Experiment, late
from experiments.stability.config import PRESETS

EXPERIMENT = Experiment(
    name="stability",
    description=str(__doc__),
    presets=PRESETS,
    build=late("experiments.stability.parts:build"),
    parts=late("experiments.stability.parts:parts"),
    summary=late("experiments.stability.report:summarise"),
    table=late("experiments.stability.report:table"),
    figures=late("experiments.stability.report:figures"),
    networks=lambda config, setup: {"network": setup.model},
    probe=late("experiments.stability.parts:probe"),
)
