"""Continual learning of language: do the symptoms of images and their remedies carry over to a causal transformer?

It predicts the next token of text that ships with Python: of sources that change from task to task, or of one text
whose words are renamed at every task (arXiv 2410.20098, at a smaller scale). Beside it, for every task, a network is
drawn anew and sees the same batches: the growing difference between the two *is* loss of plasticity. On two CPU cores:

    python -m experiments.language                           # sources, bytes, two methods: within a minute
    python -m experiments.language --preset permuted_words   # seven methods, one setting each, five seeds
    python -m experiments.language --preset tuning_1         # to tuning_4: the settings that are tried, on two seeds
    python -m experiments.language --preset tuned            # eight methods, the best setting of each, five other seeds
    python -m experiments.language --preset tied             # token embeddings that make the logits, too
    python -m experiments.cloning --model gpt                # such a network, cloned

A complete run is shown, not repeated. An interrupted one goes on with --resume and ends with the same bits.
"""

from experiments.kit.experiment import Experiment, late
from experiments.language.config import PRESETS

EXPERIMENT = Experiment(
    name="language",
    description=str(__doc__),
    presets=PRESETS,
    build=late("experiments.language.setup:build"),
    parts=late("experiments.language.setup:parts"),
    summary=late("experiments.language.report:summarise"),
    table=late("experiments.language.report:table"),
    figures=late("experiments.language.figures:figures"),
    networks=lambda config, setup: {"network": setup.run.model},
    probe=lambda config, setup: setup.run.problem.probe,
    is_spread=True,
)
