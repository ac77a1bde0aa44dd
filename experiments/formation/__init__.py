"""Formation: do clones form by themselves (arXiv 2510.00304, section 4), and what do they cost?

Networks with one hidden layer start at random and train under weight decay, on fixed labels or on classes that are
permuted again and again. How many distinct units are left; whether their merged network attracts at that decay, as the
blocks M_j say; and how well the network learns the next task, as it is, after a free kick, or drawn anew.

    python -m experiments.formation                  # tanh and GELU, three seeds
    python -m experiments.formation --preset full    # ReLU as well, eight decays, eight seeds
"""

from experiments.formation.config import PRESETS
from experiments.kit.experiment import Experiment, late

EXPERIMENT = Experiment(
    name="formation",
    description=str(__doc__),
    presets=PRESETS,
    build=late("experiments.formation.setup:build"),
    parts=late("experiments.formation.parts:parts"),
    summary=late("experiments.formation.report:summarise"),
    table=late("experiments.formation.report:table"),
    figures=late("experiments.formation.figures:figures"),
    texts=late("experiments.formation.report:texts"),
    networks=lambda config, setup: setup.models,
    probe=lambda config, setup: setup.batch,
)
