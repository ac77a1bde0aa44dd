"""Same config, seed and device: the same bits, whatever the chunk length and the seeds beside, on every architecture.

As users run it, with XLA's own optimisation level, which the other tests lower: in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = {
    "mlp": 'mlp((8, 8, 1), (32,) * 3, 10, norm="batch", dropout=0.1)',
    "mlp, odd widths": 'mlp((8, 8, 1), (17, 13), 10, norm="layer", dropout=0.1)',
    "cnn": 'cnn((8, 8, 1), 10, (4, 6), 16, norm="batch", dropout=0.1)',
    "resnet18": "resnet18((8, 8, 1), 10, width=3, blocks=(1,), dropout=0.1)",
    "vit": "vit((8, 8, 1), 10, patch=4, width=16, depth=1, heads=2, dropout=0.1)",
}

TRAINED = """
import jax, jax.numpy as jnp, numpy as np
from lopjax.training.lanes import over_lanes
from lopjax.models import cnn, mlp, resnet18, vit
from lopjax.optim import noisy_sgd
from lopjax.training import Preprocess, epochs, init_state, logs_of, make_chunk, start_lanes, train_step

model = MODEL
generator = np.random.default_rng(0)
data = generator.integers(0, 256, (90, 8, 8, 1), np.uint8), generator.integers(0, 10, 90).astype(np.int32)
preprocess = Preprocess((0.3,), (0.3,), crop_padding=1, flip=True)
optimizer = lambda key: noisy_sgd(0.1, 0.05, 0.999, seed=key, momentum=0.9)

def step(state, drawn, key, index):
    state, noise_key = state
    images, labels = drawn.batch
    augment_key, dropout_key = jax.random.split(key)
    inputs = preprocess.inputs(images, augment_key)
    state, seen = train_step(model, optimizer(noise_key), state, (inputs, labels), dropout_key)
    return (state, noise_key), logs_of(seen, "loss", "accuracy")

chunk = make_chunk(step, epochs(*data, 29))

def train(seeds, cuts):
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl="philox4x32"))(jnp.array(seeds))
    lanes, start = start_lanes(over_lanes(lambda key: (init_state(model.init(key), optimizer(key)), key), 1)(keys)), 0
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
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", TRAINED.replace("MODEL", model)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "same bits"
