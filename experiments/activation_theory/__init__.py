"""Activation theory: how non-linearity makes and loses rank (arXiv 2510.00304, figures A.1 to A.4).

    python -m experiments.activation_theory          # under a minute on two CPU cores

Draws six figures and writes tables.md, whose tables are those of docs/theory/activation.md. Expected: alpha of ReLU 0,
tanh 0.17780723, GELU 0.07203160.
"""

from experiments.activation_theory.config import PRESETS
from experiments.kit.experiment import Experiment, late

EXPERIMENT = Experiment(
    name="activation_theory",
    description=str(__doc__),
    presets=PRESETS,
    build=lambda config, resources: None,
    parts=late("experiments.activation_theory.parts:parts"),
    summary=late("experiments.activation_theory.report:summarise"),
    table=late("experiments.activation_theory.report:table"),
    figures=late("experiments.activation_theory.figures:figures"),
    texts=late("experiments.activation_theory.report:texts"),
    # Most of the time goes into compiling small programs, whose optimisation gains nothing here.
    environment={"XLA_FLAGS": "--xla_backend_optimization_level=0"},
)
