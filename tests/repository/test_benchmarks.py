"""The benchmarks run, and count what they say they count; nothing here looks at a clock."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from benchmarks import continual
from benchmarks.harness import markdown, median
from benchmarks.models import SHAPES, multiply_adds, options_of
from lopjax import models
from lopjax.models import mlp
from lopjax.training import init_state, train_step


@pytest.mark.parametrize("name", SHAPES)
def test_multiply_adds_are_those_that_xla_counts(name):
    """Two operations a multiply-add, and those of norms and activations; products with padding are left out."""
    constructor, options, _ = SHAPES[name]
    model = getattr(models, constructor)((32, 32, 3), num_classes=10, **options)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    # Lowered for an accelerator, where convolutions are single operations.
    lowered = jax.jit(lambda variables, x: model.apply(variables, x).logits).trace(variables, x)
    flops = lowered.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"]
    assert multiply_adds(name, options) == pytest.approx(flops / 2, rel=0.2)
    # The control: a tiny network of the same kind is another number.
    assert multiply_adds(name, options_of(name, is_small=True)) < 0.1 * flops


def test_the_multiply_adds_of_resnet18_are_the_published_ones():
    assert multiply_adds("resnet18", options_of("resnet18", is_small=False)) == 555_422_720


def test_tables_and_medians():
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert markdown(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def numbers(tree) -> list[float]:
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in numbers(value)]
    if isinstance(tree, list):
        return [number for value in tree for number in numbers(value)]
    return [tree] if isinstance(tree, float) else []


def report(tmp_path: Path, module: str, *flags: str) -> tuple[dict, str]:
    """The JSON file and what was printed."""
    path = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", module, *flags, "--output", str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TFDS_DATA_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    assert numbers(found)
    assert all(math.isfinite(number) for number in numbers(found))
    return found, done.stdout


@pytest.mark.slow
def test_every_architecture_is_timed(tmp_path):
    found, text = report(
        tmp_path, "benchmarks.models", "--small", "--steps", "1", "--repeats", "1", "--seeds", "1", "2"
    )
    assert len(found["table"]) == 2 * len(SHAPES)
    assert found["machine"]["matmul_gflops"] > 0
    for row in found["table"].values():
        assert row["seconds"] > 0
        assert row["fraction_of_peak"] > 0
    assert all(name in text for name in SHAPES)


@pytest.mark.slow
def test_training_is_timed_on_random_images_where_there_is_no_data(tmp_path):
    found, text = report(tmp_path, "benchmarks.training", "--images", "256", "--repeats", "1", "--rounds", "1")
    assert found["measured"]["epoch 5x128"][0]["images"] == "random images"
    assert found["measured"]["epoch 5x128"][0]["steps"] == 2
    assert found["values"]["peak memory"] > 0.1
    assert "noisy step / step" in text


def test_operations_of_a_continual_step_are_those_of_its_products():
    """By XLA's count for a network of the same shape: what is left is activations, the loss and Adam, a tenth."""
    batch, (inputs, *widths, outputs), _ = continual.SHAPES["gaussian"]
    model, optimizer = mlp((inputs,), tuple(widths), outputs, activation="tanh", norm="none"), optax.adam(1e-3)
    state = jax.eval_shape(lambda key: init_state(model.init(key), optimizer), jax.random.key(0))
    shapes = jax.ShapeDtypeStruct((batch, inputs), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    lowered = jax.jit(lambda state, batch: train_step(model, optimizer, state, batch)[0]).lower(state, shapes)
    flops = lowered.cost_analysis()["flops"]
    assert 0.85 * flops < continual.step_flops("gaussian") < flops


@pytest.mark.slow
def test_a_continual_step_is_timed_by_clock_and_processor(tmp_path):
    flags = ("--shapes", "gaussian", "--steps", "2", "--repeats", "1", "--rounds", "1", "--cores", "1")
    found, text = report(tmp_path, "benchmarks.continual", *flags)
    assert found["table"]["gaussian"]["lopjax_cpu"] > 0
    assert "floor ms" in text


@pytest.mark.slow
def test_noise_is_timed_piece_by_piece(tmp_path):
    found, text = report(tmp_path, "benchmarks.noise", "--width", "8", "--steps", "2", "--turns", "2")
    assert list(found["steps"]) == ["plain step", "noisy step", "noisy step, jax.random.normal"]
    assert all(len(turns) == 2 for title in ("pieces", "steps") for turns in found[title].values())
    assert "with standard_normal" in text
