"""Generalisation against plasticity: does what improves the first task cost the next (arXiv 2510.00304, mechanism 3)?

Weight decay, longer training, the scale of the initial weights and label smoothing are swept, one at a time, on a task
with noisy labels. Of every network: test accuracy, distance of its units to the manifolds of clones, rank, and how fast
it learns the next task. All lanes of an activation are one program. On two CPU cores:

    python -m experiments.generalisation
    python -m experiments.generalisation --preset full    # ten more seeds, wider networks
"""

from experiments.generalisation.config import PRESETS
from experiments.kit.experiment import Experiment, late

EXPERIMENT = Experiment(
    name="generalisation",
    description=str(__doc__),
    presets=PRESETS,
    build=late("experiments.generalisation.setup:build"),
    parts=late("experiments.generalisation.parts:parts"),
    summary=late("experiments.generalisation.report:summarise"),
    table=late("experiments.generalisation.report:table"),
    figures=late("experiments.generalisation.figures:figures"),
    texts=late("experiments.generalisation.report:texts"),
    networks=lambda config, setup: setup.models,
    probe=lambda config, setup: setup.train,
)
