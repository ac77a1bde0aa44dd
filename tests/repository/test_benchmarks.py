"""The benchmarks run, and count what they say they count; nothing here looks at a clock."""

import json
import math
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import continual
from benchmarks.gpu.__main__ import SECTIONS, SMOKE, run_process
from benchmarks.gpu.report import Report
from benchmarks.gpu.steps import by_patches
from benchmarks.harness import markdown, median
from benchmarks.models import SHAPES, multiply_adds, options_of
from lopjax import models
from lopjax.models import mlp
from lopjax.models.convolution import convolve
from lopjax.training import init_state, train_step
from lopjax.wiring import Window


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
def test_noise_is_timed_part_by_part(tmp_path):
    found, text = report(tmp_path, "benchmarks.noise", "--width", "8", "--steps", "2", "--turns", "2")
    assert list(found["steps"]) == ["plain step", "noisy step", "noisy step, jax.random.normal"]
    assert all(len(turns) == 2 for title in ("parts", "steps") for turns in found[title].values())
    assert "with standard_normal" in text


@pytest.mark.slow
def test_a_row_is_on_disk_when_it_is_printed(tmp_path):
    """A run that is stopped after its first row has left that row."""
    path, flags = tmp_path / "report.json", ("--small", "--steps", "1", "--repeats", "1", "--rounds", "1")
    command = [sys.executable, "-m", "benchmarks.models", "--models", "mlp 5x256", "vit", *flags, "--output", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("| mlp 5x256, 1 seed |"))
        # The file follows the line at once, and long before the next network is compiled.
        deadline = time.monotonic() + 5
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    assert list(json.loads(path.read_text())["table"]) == ["mlp 5x256, 1 seed"]


def test_patches_in_one_product_are_the_convolution():
    """With lanes, too: the road that `benchmarks/gpu.sh` measures beside grouped convolutions."""
    random, window = np.random.default_rng(0), Window((2, 1), ((1, 1), (0, 1)))
    x, kernel = random.normal(size=(2, 3, 9, 8, 4)), random.normal(size=(2, 3, 2, 4, 5))
    ours = jax.vmap(partial(by_patches, window=window))(x, kernel)
    assert np.allclose(ours, jax.vmap(partial(convolve, window=window))(x, kernel), atol=1e-4)


@pytest.mark.slow
def test_what_a_gpu_is_asked_runs_small_on_a_cpu(tmp_path):
    """Every row of every section, checks that hold, and no row that says what went wrong (but PyTorch's)."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        [str(root / "benchmarks" / "gpu.sh"), str(tmp_path), "--smoke"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert set(found) == set(SMOKE)
    assert all(row["holds"] for row in found["checks"])
    notes = [row.get("note", "") for name, rows in found.items() if not name.startswith("torch") for row in rows]
    assert not [note for note in notes if "Error" in note or "left out" in note]
    assert all(title in (tmp_path / "gpu.md").read_text() for title in {SECTIONS[name].title for name in SMOKE})


def test_a_section_beyond_its_time_is_stopped_and_keeps_its_rows(tmp_path):
    """A process that prints a row and then sleeps; its row stays, and a second one says what happened."""
    report, row = Report(tmp_path, {"rates": "Rates"}), {"section": "rates", "case": "float32", "rate": 2e12}
    script = f"import time; print('ROW ' + {json.dumps(row)!r}, flush=True); time.sleep(60)"
    run_process([sys.executable, "-c", script], ["rates"], 2, report, tmp_path)
    assert [one.get("note", "") for one in report.rows["rates"]] == ["", "the rest left out: out of time after 2 s"]
    assert report.rates() == {"float32": 2e12}
    assert "| float32 | 2,000,000,000,000 |" in (tmp_path / "gpu.md").read_text()


@pytest.mark.slow
def test_a_language_step_is_timed(tmp_path):
    found, text = report(tmp_path, "benchmarks.language", "--sizes", "small", "--steps", "2", "--repeats", "2")
    assert len(found["steps"]["small"]["milliseconds"]["lopjax"]) == 2
    assert "PyTorch / lopjax" in text
