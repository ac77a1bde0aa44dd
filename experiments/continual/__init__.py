"""Continual learning (arXiv 2510.00304, section 3): does a network lose plasticity, where in it, and what helps?

A network meets one task after the other. Beside it, for every task, a network of the same kind is drawn anew and sees
the same batches: the growing difference between the two *is* loss of plasticity; a harder task is not. Symptoms are
measured on a fixed probe and, marked as such, on the stream. What to expect, on two CPU cores:

    python -m experiments.continual                        # mixtures of Gaussians, tanh, Adam: lost within 8 tasks
    python -m experiments.continual --preset gaussian      # 100 tasks, 5 seeds: half an hour
    python -m experiments.continual --model cnn            # or resnet18, vit: a small one on digits, to see it work
    python -m experiments.continual --preset tiny_imagenet --net.norm batch   # 40 tasks x 5 classes, 3 seeds: hours

A complete run is shown, not repeated. An interrupted one goes on with --resume and ends with the same bits.
"""

from experiments.continual.config import PRESETS
from experiments.kit.experiment import Experiment, late

EXPERIMENT = Experiment(
    name="continual",
    description=str(__doc__),
    presets=PRESETS["mlp"],
    variants=PRESETS,
    build=late("experiments.continual.setup:build"),
    parts=late("experiments.continual.parts:parts"),
    summary=late("experiments.continual.report:summarise"),
    table=late("experiments.continual.report:table"),
    figures=late("experiments.continual.figures:figures"),
    networks=lambda config, setup: {"network": setup.model},
    probe=late("experiments.continual.setup:recorded_probe"),
    is_spread=True,
)
