"""Same config, seed and device: the same bits, whatever the chunk length and the seeds beside, on every architecture.

As users run it, with XLA's own optimisation level, which the other tests lower: in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from oracles.architectures import ARCHITECTURES
from oracles.training_step import STEP

MODELS = {
    "mlp": ("mlp", dict(widths=(32,) * 3)),
    "mlp, odd widths": ("mlp", dict(widths=(17, 13), norm="layer")),
    "cnn": ("cnn", dict(channels=(4, 6), dense=16)),
    "resnet18": ("resnet", dict(width=3)),
    "vit": ("vit", dict(patch=4, width=16, mlp_ratio=4.0, activation="gelu")),
    # Of those that take images; tokens do not go through the step's augmentation.
    **{
        name: (name, {})
        for name, architecture in ARCHITECTURES.items()
        if name not in ("mlp", "cnn", "resnet", "vit") and not architecture.is_of_tokens
    },
}

TRAINED = """
import sys
sys.path.insert(0, "tests")
import jax, jax.numpy as jnp, numpy as np
from lopjax.training.lanes import over_lanes
from oracles.architectures import build
from lopjax.optim import noisy_sgd
from lopjax.training import Preprocess, epochs, init_state, logs_of, make_chunk, start_lanes, train_step

model = MODEL
generator = np.random.default_rng(0)
data = generator.integers(0, 256, (90, 8, 8, 1), np.uint8), generator.integers(0, 10, 90).astype(np.int32)
optimizer = lambda key: noisy_sgd(0.1, 0.05, 0.999, seed=key, momentum=0.9)
STEP
chunk = make_chunk(step, epochs(*data, 29))

def train(seeds, cuts):
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl="philox4x32"))(jnp.array(seeds))
    lanes, start = lanes_of(keys), 0
    for length in cuts:
        lanes, _ = chunk(lanes, keys, start, length, data)
        start += length
    one = seeds.index(1)
    return [np.asarray(leaf[one]) for leaf in jax.tree.leaves(lanes.state[0].variables)]

whole = train([0, 1, 2], [8])
for seeds, cuts in (([1], [8]), ([7, 3, 1], [1, 7]), ([4, 1, 5], [3, 4, 1])):
    found = train(seeds, cuts)
    assert all(np.array_equal(a, b) for a, b in zip(whole, found, strict=True)), (seeds, cuts)
assert not all(np.array_equal(a, b) for a, b in zip(whole, train([1], [7]), strict=True))
print("same bits")
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_chunk_length_and_company_change_no_bit(model):
    name, options = model
    options = {"input_shape": (8, 8, 1), "num_classes": 10, "dropout": 0.1, **options}
    program = TRAINED.replace("MODEL", f"build({name!r}, **{options!r})").replace("STEP", STEP)
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "same bits"
