"""Activation theory: the documentation shows what the command computes, and the command runs."""

from pathlib import Path

import numpy as np
import pytest

from experiments.activation_theory.__main__ import main
from experiments.activation_theory.config import Config
from experiments.activation_theory.parts import PRINTED_ALPHA, alpha_table, measure, sampled_spectra, train_and_probe
from experiments.activation_theory.report import tables
from lopjax.runs import load

PAGE = Path(__file__).parents[2] / "docs" / "theory" / "activation.md"


@pytest.mark.slow
def test_tables_of_the_documentation_are_recomputed(x64):
    page = PAGE.read_text()
    found = tables(measure(Config().num_equicorrelated))
    assert len(found) > 2
    for name, table in found.items():
        assert table in page, f"table {name} of {PAGE.name} is out of date: python -m experiments.activation_theory"
        rows = table.splitlines()
        altered = table.replace(rows[2], rows[2].replace("1", "2", 1).replace("0", "1", 1))
        assert altered not in page


def test_alpha_table_refutes_what_is_printed(x64):
    rows = alpha_table()
    assert {row["activation"] for row in rows} >= {*PRINTED_ALPHA} != set()
    for row in rows:
        assert row["error"] < 1e-13
        if row["activation"] in PRINTED_ALPHA:
            assert min(abs(row[kind] - row["printed"]) for kind in ("alpha", "centred_alpha")) > 0.03


def test_figures_of_the_documentation_exist():
    names = [line.split("(")[1].rstrip(")") for line in PAGE.read_text().splitlines() if line.startswith("![")]
    assert len(names) == 6
    for name in names:
        assert 0 < (PAGE.parent / name).stat().st_size < 150_000


def test_hard_rank_of_samples(x64):
    spectra = sampled_spectra(Config(num_samples=500, num_units=20, rank=3))
    assert spectra.ranks.pop("identity") == 3
    assert set(spectra.ranks.values()) == {20}


def test_probe_along_training(x64):
    trained = train_and_probe(Config(train_steps=100))
    assert trained["layers"] == [f"hidden_{i}" for i in range(5)]
    assert trained["steps"] == [0, 20, 40, 60, 80]
    polarisation = np.array(trained["polarisation"])
    assert polarisation.shape == (5, 5)
    assert np.all((polarisation >= 0) & (polarisation <= 1))
    assert trained["mean"][-1] != trained["mean"][0]


@pytest.mark.slow
def test_whole_command(tmp_path):
    flags = ("--num-samples", "200", "--grid", "3", "--depth", "2", "--train-steps", "40")
    main(["--root", str(tmp_path), *flags])
    data = load(tmp_path / "activation_theory" / "quick")
    written = {path.name for path in data.folder.iterdir()}
    figures = ("a1_hard_rank", "a2_effective_rank", "a3_frozen_fraction", "a4_heat_maps", "kernel_maps")
    expected = {f"{name}{suffix}" for name in (*figures, "correlations_in_training") for suffix in (".png", ".pdf")}
    assert written == expected | {"config.json", "schedule.json", "metrics.jsonl", "summary.json", "tables.md"}
    assert data.summary["hard_ranks"]["identity"] == 10
