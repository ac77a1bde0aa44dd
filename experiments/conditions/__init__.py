"""Conditions: which architectures, losses and data make the manifold of clones stable (arXiv 2510.00304, section 5).

Twenty random networks per condition, at random points, at critical points of the base, where the task is fitted, after
its labels have changed and under weight decay: the verdict on the clones that the network would have, beside what a
theorem says about it. Where theory is silent, nothing is predicted.

    python -m experiments.conditions            # 150 CPU seconds, compilation included
"""

from experiments.conditions.config import PRESETS
from experiments.kit.experiment import Experiment, late

EXPERIMENT = Experiment(
    name="conditions",
    description=str(__doc__),
    presets=PRESETS,
    build=late("experiments.conditions.networks:build"),
    parts=late("experiments.conditions.parts:parts"),
    summary=late("experiments.conditions.report:summarise"),
    table=late("experiments.conditions.report:table"),
    figures=late("experiments.conditions.report:figures"),
    texts=late("experiments.conditions.report:texts"),
)
