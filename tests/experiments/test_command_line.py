"""The command line of an experiment as a user meets it: help, mistakes of the first day, progress, what is printed."""

import io
import re
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import experiments.cloning.parts
import experiments.kit.experiment
import lopjax.data
from experiments.cloning import EXPERIMENT
from experiments.cloning.__main__ import main
from experiments.cloning.config import PRESETS, Config
from experiments.cloning.setup import build
from experiments.kit.flags import Output, parse
from experiments.kit.session import as_flags
from experiments.kit.terminal import Table, print_results, progress_bar, progress_lines
from lopjax import runs
from lopjax.data import Dataset, from_arrays
from lopjax.runs import open_run
from lopjax.training import AsStored


def dataset(num: int = 600, num_classes: int = 3, missing: int | None = None) -> Dataset:
    """Small images; with `missing`, of one class there are none."""
    labels = np.arange(num) % num_classes
    labels[labels == missing] = 0
    images = np.random.default_rng(0).integers(0, 256, (num, 4, 4, 3))
    return from_arrays(images, labels, images[:9], np.arange(9) % num_classes, num_classes)


# --- Reading flags --------------------


def test_help_is_quick_because_it_imports_no_numerical_library():
    program = (
        "import sys\n"
        "from experiments.cloning.__main__ import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'matplotlib', 'sklearn', 'tensorflow_datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--preset", "--factor", "--net.activation", "--noise-decay", "--overwrite", "quick, paper, reference"):
        assert flag in done.stdout


def test_the_first_preset_is_the_default_and_flags_override_it():
    config, output = parse(EXPERIMENT, [])
    assert config == PRESETS["mlp"]["quick"]
    assert (output.name, str(output.root), output.overwrite) == ("quick", "runs", False)
    config, output = parse(
        EXPERIMENT,
        [
            *("--preset", "paper", "--net.widths", "8", "9", "--seeds", "3", "--noise-scale", "1"),
            *("--no-augment", "--name", "mine", "--overwrite"),
        ],
    )
    assert config.net.widths == (8, 9)
    assert (config.seeds, config.noise_scale, config.augment) == ((3,), 1.0, False)
    assert (config.dataset, config.clone_length) == ("cifar10", 500)
    assert (output.name, output.overwrite) == ("mine", True)


def test_messages_speak_of_flags_where_the_library_speaks_of_arguments():
    config = Config()
    assert as_flags("widths=(0,): no", config) == "--net.widths=(0,): no"
    assert as_flags("seeds=1: as --seeds", config) == "--seeds=1: as --seeds"
    assert as_flags("pass data_dir, or noise_decay", Output()) == "pass --data-dir, or noise_decay"
    # English words and paths stay what they are.
    assert (
        as_flags("the factor of a model in a/data_dir/seeds=1", config) == "the factor of a model in a/data_dir/seeds=1"
    )
    assert as_flags("name=x: no", config) == "--dataset=x: no"


@pytest.mark.parametrize(("model", "preset"), [(model, name) for model, presets in PRESETS.items() for name in presets])
def test_every_preset_builds(model, preset, monkeypatch):
    side = 8 if preset == "quick" else 32
    images = np.random.default_rng(0).integers(0, 256, (600, side, side, 3))
    data = from_arrays(images, np.arange(600) % 3, images[:9], np.arange(9) % 3, 3)
    monkeypatch.setattr(lopjax.data, "load", lambda *args: data)
    setup = build(PRESETS[model][preset])
    config = setup.config
    assert config.model == model
    for space in setup.base.wiring.cloned_by_default:
        assert setup.base.wiring.size(space) * 2 == setup.wide.wiring.size(space)
    assert setup.steps_per_unit == (1 if config.unit == "steps" else 600 // config.batch_size)
    if model == "gpt":
        assert setup.preprocess == AsStored()
        return
    assert (setup.preprocess.crop_padding, setup.preprocess.flip) == ((4, True) if config.augment else (0, False))


@pytest.mark.parametrize("model", PRESETS)
def test_a_model_has_flags_and_a_folder_of_its_own(model, capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit):
        main(["--model", model, "--help"])
    text = capsys.readouterr().out
    flags = {"mlp": "--net.widths", "cnn": "--net.channels", "resnet18": "--net.blocks", "vit": "--net.patch"}
    flags |= {"gpt": "--net.tied"}
    assert [flag in text for flag in flags.values()] == [name == model for name in flags]
    opened = []
    monkeypatch.setattr(experiments.kit.experiment, "run", lambda *given: opened.append(given[3]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([f"--model={model}", "--root", str(tmp_path)])
    assert opened[0].folder.name == ("quick" if model == "mlp" else f"quick_{model}")
    assert opened[0].config["model"] == model


# --- Mistakes --------------------


def refused(argv: list[str], capsys, monkeypatch, tmp_path) -> str:
    """Run the command, which must end with status 2 before anything is trained; the one message it leaves."""
    monkeypatch.setattr(experiments.kit.experiment, "run", lambda *args: pytest.fail("training began"))
    with pytest.raises(SystemExit) as stop:
        main(["--root", str(tmp_path / "runs"), *argv])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    # tyro draws a box around what it says.
    return " ".join(re.sub("[│╭╮╰╯─]", " ", captured.err).split())


MISTAKES = {
    "--factor 0": ["--factor=0", "positive integer"],
    "--factor -2": ["--factor=-2", "positive integer"],
    "--factor 1.5": ["--factor", "'1.5'", "must be an integer"],
    "--net.widths 0 32": ["--net.widths=(0, 32)", "positive integers"],
    "--net.widths --factor 2": ["--net.widths=()", "non-empty"],
    "--net.activation foo": ["--net.activation='foo'", "'relu'", "'gelu'"],
    "--net.norm foo": ["--net.norm", "'foo'", "'batch'", "'layer'", "'none'"],
    "--net.init foo": ["--net.init", "'foo'", "'pytorch'"],
    "--unit weeks": ["--unit", "'weeks'", "'epochs'", "'steps'"],
    "--methods sgd foo": ["--methods", "'foo'", "'noisy_sgd'"],
    "--methods sgd sgd": ["--methods=('sgd', 'sgd')", "distinct"],
    "--noise-decay 1.5": ["--noise-decay=1.5", "[0, 1]"],
    "--noise-decay -0.1": ["--noise-decay=-0.1", "[0, 1]"],
    "--noise-scale -1": ["--noise-scale=-1.0", "at least 0"],
    "--noise-scale nan": ["--noise-scale=nan", "finite"],
    "--noise-scale much": ["--noise-scale", "'much'", "must be a number"],
    "--dropout 1": ["--dropout=1.0", "[0, 1)"],
    "--dropout -0.5": ["--dropout=-0.5", "[0, 1)"],
    "--batch-size 5000": ["--batch-size=5000", "at most the 1437 training examples"],
    "--batch-size 0": ["--batch-size=0", "at least 1"],
    "--probe-samples 1438": ["--probe-samples=1438", "at most the 1437 training examples"],
    "--seeds 1 1": ["--seeds=(1, 1)", "distinct"],
    "--seeds -1": ["--seeds=(-1,)", "0..2147483647"],
    "--seeds 2147483648": ["--seeds=(2147483648,)", "0..2147483647"],
    "--label-noise 2": ["--label-noise=2.0", "between 0 and 1"],
    "--learning-rate 0": ["--learning-rate=0.0", "positive"],
    "--adam-learning-rate inf": ["--adam-learning-rate=inf", "finite"],
    "--record-every 300": ["--base-length=500", "multiple of --record-every=300"],
    "--clone-length 0": ["--clone-length=0", "at least 1"],
    "--preset foo": ["--preset='foo'", "'quick'", "'paper'"],
    "--model foo": ["--model='foo'", "'mlp'", "'cnn'", "'resnet18'", "'vit'"],
    "--model vit --net.widths 3": ["--net.widths"],
    "--model vit --net.patch 3": ["--net.patch=3", "must divide the height and width"],
    "--model resnet18 --preset reference": ["--preset='reference'", "'quick'"],
    "--model cnn --net.channels 4 4 4 4": ["pooling needs at least 16 x 16"],
    "--nonsense 3": ["--nonsense"],
}


def test_the_fixture_sees_compilation(compiled):
    jax.jit(lambda x: x + len(compiled))(1.0)
    assert compiled


@pytest.mark.parametrize("argv", MISTAKES)
def test_a_mistake_is_one_message_with_field_value_and_range(argv, capsys, monkeypatch, tmp_path, unchecked, compiled):
    message = refused(argv.split(), capsys, monkeypatch, tmp_path)
    for fragment in MISTAKES[argv]:
        assert fragment in message
    assert not list(tmp_path.iterdir())  # nothing was written either,
    assert not compiled  # and nothing compiled


def test_a_data_set_that_is_unknown_or_not_prepared(capsys, monkeypatch, tmp_path):
    argv = ["--data-dir", str(tmp_path / "tfds"), "--dataset"]
    message = refused([*argv, "cifer10"], capsys, monkeypatch, tmp_path)
    assert "--dataset='cifer10': unknown data set. Did you mean 'cifar10'" in message
    message = refused([*argv, "cifar10"], capsys, monkeypatch, tmp_path)
    assert "--dataset='cifar10': not prepared" in message
    assert f"python -m lopjax.data prepare cifar10 --data-dir {tmp_path / 'tfds'}" in message
    assert "pass --data-dir or set TFDS_DATA_DIR" in message


def test_a_data_set_with_an_empty_class_or_pixels_that_are_no_numbers(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(lopjax.data, "load", lambda *args: dataset(missing=1))
    assert "train_labels: no image of class 1" in refused([], capsys, monkeypatch, tmp_path)
    images, labels = np.zeros((4, 2, 2, 1)), np.array([0, 1, 0, 1])
    images[0, 1, 1, 0] = np.nan
    monkeypatch.setattr(lopjax.data, "load", lambda *args: from_arrays(images, labels, images[1:], labels[1:], 2))
    assert "images: 1 of 16 pixels are NaN or infinite" in refused([], capsys, monkeypatch, tmp_path)


def test_a_run_folder_of_another_config_or_of_an_interrupted_run(capsys, monkeypatch, tmp_path):
    folder = tmp_path / "runs" / "cloning" / "quick"
    open_run(folder, PRESETS["mlp"]["quick"])
    message = refused(["--factor", "3", "--net.widths", "8"], capsys, monkeypatch, tmp_path)
    assert "belongs to another config" in message
    assert "--factor: 2 there, 3 now" in message
    assert "--net.widths: [32, 32, 32, 32, 32] there, [8] now" in message
    assert "choose another --name or --root, or move this one aside with --overwrite" in message
    message = refused([], capsys, monkeypatch, tmp_path)
    assert "incomplete run of this config" in message
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_root_that_cannot_be_written(capsys, monkeypatch, tmp_path):
    (tmp_path / "runs").write_text("a file")
    assert "cannot be written (Not a directory)" in refused([], capsys, monkeypatch, tmp_path)


def test_the_process_ends_with_status_2_and_one_line():
    command = [sys.executable, "-m", "experiments.cloning", "--factor", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr == "python -m experiments.cloning: error: --factor=0: must be a positive integer\n"
    assert done.stdout == ""


def test_an_interrupted_run_says_what_is_kept(capsys, monkeypatch, tmp_path):
    def interrupted(config, setup):
        folder = runs.load(tmp_path / "cloning" / "quick").folder
        (folder / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments.cloning.parts, "parts", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["--root", str(tmp_path)])
    assert stop.value.code == 130
    error = capsys.readouterr().err
    assert "interrupted: the records so far (2) are kept" in error
    assert "--overwrite" in error
    assert not (tmp_path / "cloning" / "quick" / "summary.json").exists()


def test_an_interrupt_before_training_is_quiet(capsys, monkeypatch, tmp_path):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(lopjax.data, "load", interrupted)
    with pytest.raises(SystemExit) as stop:
        main(["--root", str(tmp_path)])
    assert stop.value.code == 130
    assert capsys.readouterr().err == ""


# --- What is printed --------------------


def test_progress_in_a_file_is_a_line_every_tenth(capsys, monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    advance = progress_lines(1000)
    advance("base", 0)
    for _ in range(100):
        advance("base", 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "base: 0%"
    assert len(lines) == 11
    assert lines[5].startswith("base: 50%, ")
    assert lines[-1].startswith("base: 100%, ")
    assert lines[-1].endswith("ETA 0 s")


def test_progress_on_a_terminal_is_a_bar_with_rate_and_time_left(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with progress_bar(100) as progress:
        progress("base: sgd", 0)
        progress("base: sgd", 50)
        progress("clone: sgd", 50)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "clone: sgd" in shown
    assert "100%" in shown
    assert "ETA" in shown


def test_results_are_a_table_and_the_paths(capsys, tmp_path):
    path = tmp_path / ("long/" * 40) / "cloning.png"
    print_results(Table("What it is", ("method", "R²"), (("sgd", "1.0"), ("adam", "0.5"))), (path,))
    printed = capsys.readouterr().out
    for text in ("What it is", "method", "R²", "sgd", "adam", f"  {path}\n"):
        assert text in printed
