"""The quick checks of the theory at their small size; and the runner on checks that must fail."""

import json
import math
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from matplotlib.patches import Circle

from theory_checks import THEOREMS, __main__, check, figures, pages, proof
from theory_checks.check import Check, Row, all_checks, judge, select
from theory_checks.running import judge_all

CHECKS = all_checks()


# More than a second and a half of CPU each: `python -m theory_checks`, which CI runs too, judges them at full size.
LONG = {
    "activation.alpha_gradients",
    "activation.alpha_values",
    "activation.closed_forms",
    "activation.correlation_probe",
    "activation.expansion",
    "activation.fixed_points",
    "activation.frozen_limits",
    "activation.hard_rank",
    "activation.hermite_series",
    "activation.opposite_units",
    "activation.poincare",
    "breakers.single_updates",
    "cloning.backward",
    "cloning.forward",
    "cloning.same_function",
    "cloning.tangency",
    "confinement.architectures",
    "confinement.quotient",
    "confinement.rounding",
    "confinement.sgd",
    "conserved.attention",
    "conserved.homogeneous",
    "escape.decay_makes_clones",
    "escape.decaying_noise",
    "escape.degenerate",
    "escape.momentum",
    "escape.moving_base",
    "escape.rank_ceiling",
    "flatness.blocks",
    "flatness.gauge",
    "flatness.gauss_newton",
    "flatness.outgoing",
    "frozen.gradient",
    "frozen.hessian",
    "frozen.radius",
    "frozen.training",
    "frozen_optimizers.memory",
    "lie_rank.architectures",
    "lie_rank.conserved",
    "lie_rank.generic",
    "lie_rank.loss",
    "optimizers.coupled_decay",
    "optimizers.gradient_history",
    "optimizers.muon",
    "optimizers.rounding_errors",
    "optimizers.weight_decay",
    "other_clones.signed",
    "other_clones.vanished",
    "other_clones.weighted",
    "resets.dead_units",
    "resets.live_clones",
    "resets.ties",
    "splitting.clones",
    "splitting.dead",
    "splitting.fire",
    "stability.closed_form",
    "stability.escape_rate",
    "stability.free_kick",
    "stability.fukumizu_amari",
    "stability.noise_that_repels",
    "stability.relu_symmetry",
    "stability.weight_decay",
    "symmetry.heads",
    "symmetry.softmax",
    "symmetry.streams",
}
QUICK = [pytest.param(one, id=one.name) for one in CHECKS if one.name not in LONG]


def test_long_checks_exist():
    assert {one.name for one in CHECKS} >= LONG


@pytest.mark.parametrize("one", QUICK)
def test_check_holds_at_its_small_size(one, x64):
    verdict = judge(one, "small")
    assert verdict.holds, f"{one.statement} {verdict.reason} {verdict.rows}"


def test_names_are_unique_and_every_theorem_has_a_check():
    assert len({one.name for one in CHECKS}) == len(CHECKS)
    assert {one.name.split(".")[0] for one in CHECKS} == set(THEOREMS)


GOOD, CONTROL = Row("claim", 0.5, 1.0), Row("control", 2.0, 1.0, control=True)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([GOOD], "no control"),
        ([CONTROL], "nothing was claimed"),
        ([CONTROL, Row("finding", 0.5)], "nothing was claimed"),
        ([GOOD, CONTROL, Row("finding", math.nan)], "finding: out of bound"),
        ([Row("claim", 2.0, 1.0), CONTROL], "claim: out of bound"),
        ([Row("claim", 0.5, 1.0, ">="), CONTROL], "claim: out of bound"),
        ([GOOD, Row("control", 0.5, 1.0, control=True)], "control kept its bound"),
        ([Row("claim", math.nan, 1.0), CONTROL], "claim: out of bound"),
        ([GOOD, Row("control", math.nan, 1.0, control=True)], "control: out of bound"),
    ],
)
def test_a_check_fails_when(rows, reason):
    verdict = judge(Check("x.y", "", "", lambda size: rows), "small")
    assert not verdict.holds
    assert reason in verdict.reason


def test_a_check_holds_when_claims_are_within_and_controls_beyond():
    assert judge(Check("x.y", "", "", lambda size: [GOOD, CONTROL]), "small").holds


def test_a_check_that_raises_has_failed():
    def run(size):
        raise ValueError(f"no {size} matrix")

    verdict = judge(Check("x.y", "", "", run), "small")
    assert not verdict.holds
    assert verdict.reason == "ValueError: no small matrix"


def test_select():
    checks = [Check(name, "", "", lambda size: []) for name in ("a.x", "a.y", "b.x")]
    assert [one.name for one in select(checks, "")] == ["a.x", "a.y", "b.x"]
    assert [one.name for one in select(checks, "a")] == ["a.x", "a.y"]
    assert [one.name for one in select(checks, "b.x")] == ["b.x"]
    with pytest.raises(ValueError, match=r"--only c: must be one of a, b, a\.x, a\.y, b\.x"):
        select(checks, "c")


def run_main(monkeypatch, tmp_path, rows, *arguments):
    checks = (Check("toy.one", "Toy.", "none", lambda size: rows),)
    monkeypatch.setattr(check, "all_checks", lambda: checks)
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    monkeypatch.setattr(sys, "argv", ["theory_checks", "--out", str(tmp_path), *arguments])
    import jax

    with jax.enable_x64(jax.config.jax_enable_x64):
        before = jax.config.jax_enable_x64
        status = __main__.main()
        jax.config.update("jax_enable_x64", before)
    return status


def test_runner_writes_results_and_figures(monkeypatch, tmp_path, capsys):
    assert run_main(monkeypatch, tmp_path, [GOOD, CONTROL]) == 0
    assert "1 of 1 checks hold" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "results.json").read_text())["checks"]
    assert result["holds"]
    assert result["rows"][1] == {**CONTROL._asdict(), "as_claimed": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "toy.pdf", "toy.png"]


def test_runner_fails_with_a_failing_check(monkeypatch, tmp_path, capsys):
    assert run_main(monkeypatch, tmp_path, [Row("claim", 2.0, 1.0), CONTROL]) == 1
    assert "toy.one FAILED: Toy. (claim: out of bound)" in capsys.readouterr().out


def test_runner_lists_names_for_an_unknown_one(monkeypatch, tmp_path, capsys):
    assert run_main(monkeypatch, tmp_path, [GOOD, CONTROL], "--only", "lemma") == 2
    assert "--only lemma: must be one of toy, toy.one" in capsys.readouterr().err


def test_help_does_not_import_jax():
    code = (
        "import sys; sys.argv = ['theory_checks', '--help']\n"
        "from theory_checks.__main__ import main\n"
        "try: main()\n"
        "except SystemExit as done: assert not done.code\n"
        "assert 'jax' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_decades():
    assert __main__.decades(0.1, 1.0, "<=") == -1
    assert __main__.decades(0.1, 1.0, ">=") == 1
    assert __main__.decades(0.0, 1e-12, "<=") == -8
    assert __main__.decades(math.nan, 1.0, "<=") == 8


RECORDS = pages.read_records(pages.FOLDER / "results.json")


def test_committed_pages_are_a_function_of_the_committed_json():
    for theorem, records in pages.by_theorem(RECORDS).items():
        committed = (pages.FOLDER / f"{theorem}.md").read_text()
        assert pages.page(committed, theorem, records) == committed
    assert pages.index(RECORDS) == (pages.FOLDER / "README.md").read_text()


def test_every_check_has_its_record_with_the_words_of_the_code():
    """Words and verdicts; digits belong to the machine that wrote them."""
    assert [record["name"] for record in RECORDS] == [one.name for one in CHECKS]
    for record, one in zip(RECORDS, CHECKS, strict=True):
        words = {"statement": one.statement, "source": one.source, "consequence": one.consequence}
        assert {name: record[name] for name in words} == words
        assert all(words.values()), one.name
        assert record["holds"]


@pytest.mark.parametrize("theorem", THEOREMS)
def test_every_check_has_assumptions_and_a_proof_and_no_proof_is_without_its_check(theorem):
    of_theorem = [one.name for one in CHECKS if one.name.startswith(f"{theorem}.")]
    assert list(proof.proofs_of(theorem)) == of_theorem
    text = (proof.FOLDER / f"{theorem}.md").read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 120
    # A forge, and the site, would make a list or a heading of such a line in the middle of a sentence or a formula.
    assert re.search(r"^\s*([+*>=]|\d+[.)])\s", text, re.M) is None
    assert text.count("$$") % 2 == text.replace("$$", "").count("$") % 2 == 0
    page = (pages.FOLDER / f"{theorem}.md").read_text()
    assert all(one.assumptions in page and one.text in page for one in proof.proofs_of(theorem).values())


def test_there_is_no_file_of_proofs_without_its_theorem():
    assert {path.stem for path in proof.FOLDER.glob("*.md")} == {*THEOREMS, proof.NOTATION.stem}


GOOD_PROOF = "*Assumes:* nothing.\n\n**Proof.** Clear."


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("**Proof.** Clear.", "must begin with '\\*Assumes:"),
        ("*Assumes:* nothing.\n\nClear.", "the proof begins with 'Clear.'"),
        ("*Assumes:* nothing.", "the proof begins with ''"),
        (GOOD_PROOF + "\n." * proof.MAX_LINES, "a proof of 21 lines"),
        (f"{GOOD_PROOF}\n\n## toy.one\n\n{GOOD_PROOF}", "has two sections"),
    ],
)
def test_a_proof_is_refused_that(body, reason):
    with pytest.raises(ValueError, match=reason):
        proof.parse(f"# Toy\n\n## toy.one\n\n{body}\n")


def test_a_proof_is_read():
    text = "# Toy\n\n## toy.one\n\n" + GOOD_PROOF + "\n." * (proof.MAX_LINES - 1)
    one = proof.parse(text)["toy.one"]
    assert one.assumptions == "*Assumes:* nothing."
    assert one.text.startswith("**Proof.** Clear.")
    assert one.kind == "here"
    assert proof.proofs_of("no theorem") == {}


def test_words_are_taken_from_the_code_and_numbers_from_the_record():
    new, old = Check("toy.one", "New.", "us", lambda size: [], "Use it."), {"name": "toy.one", "statement": "Old."}
    measured = {"size": "full", "holds": True, "reason": "", "rows": []}
    (words,) = pages.with_words_of([new], [{**old, **measured, "correction": "No longer."}])
    assert words == {"name": "toy.one", "statement": "New.", "source": "us", "consequence": "Use it.", **measured}
    with pytest.raises(ValueError, match=r"no numbers of \['toy.one'\]"):
        pages.with_words_of([new], [])


def test_a_page_keeps_what_is_written_by_hand_and_replaces_what_is_measured():
    verdict = judge(Check("cloning.x", "Claim.", "us", lambda size: [GOOD, CONTROL], "Use it."), "small")
    record = pages.record(verdict, "small")
    by_hand = f"# Mine\n\nbefore\n\n{pages.BEGIN}\nold 0.123\n{pages.END}\n\nafter\n"
    written = pages.page(by_hand, "cloning", [record])
    assert written.startswith("# Mine\n\nbefore\n")
    assert written.endswith("\n\nafter\n")
    assert "old" not in written
    assert "| claim | 0.5 | <= 1 | as claimed |" in written
    assert "*In practice:* Use it." in written
    assert pages.page("", "cloning", [record]).startswith("# Cloned units\n")
    changed = {**record, "rows": [{**row, "value": 0.25} for row in record["rows"]]}
    assert pages.page(by_hand, "cloning", [changed]) != written


def test_a_run_of_one_check_leaves_the_records_of_the_others():
    old = [{"name": "a.x", "n": 1}, {"name": "a.y", "n": 1}, {"name": "gone.z", "n": 1}]
    merged = pages.merged(old, [{"name": "a.y", "n": 2}], ["a.y", "a.x"])
    assert merged == [{"name": "a.y", "n": 2}, {"name": "a.x", "n": 1}]


def test_processes_give_the_same_verdicts_in_the_same_order(x64):
    chosen = [one for one in CHECKS if one.name in ("frozen_optimizers.weight_decay", "activation.effective_rank")]
    verdicts = judge_all(chosen, "small", processes=2)
    assert [verdict.check for verdict in verdicts] == chosen
    for verdict, alone in zip(verdicts, judge_all(chosen, "small", processes=1), strict=True):
        assert [row.what for row in verdict.rows] == [row.what for row in alone.rows]
        assert verdict.holds


@pytest.mark.parametrize("theorem", figures.FIGURES)
def test_figures_are_small_and_shown_with_their_command(theorem):
    assert (figures.FOLDER / f"{theorem}.png").stat().st_size < 100_000
    page = (pages.FOLDER / f"{theorem}.md").read_text()
    assert page.count(f"](../figures/theory/{theorem}.png)") == 1
    assert f"`python -m theory_checks.figures {theorem}`" in page


def test_no_figure_is_left_over_and_a_wrong_name_is_refused(tmp_path, x64):
    assert {path.stem for path in figures.FOLDER.iterdir()} == set(figures.FIGURES)
    figures.main(("frozen", "conserved"), tmp_path)
    jax.config.update("jax_enable_x64", False)  # `main` switches it on for good; the fixture, for this test
    assert {path.name for path in tmp_path.iterdir()} == {"frozen.png", "conserved.png"}
    with pytest.raises(ValueError, match=r"\['muon'\]: figures are cloning"):
        figures.main(("muon",), tmp_path)


def test_the_frozen_figure_has_the_radius_of_the_certificate(x64):
    """The circle touches the nearest of the five lines, and crosses none."""
    axes = figures.draw_frozen().axes[0]
    (circle,) = axes.patches
    assert isinstance(circle, Circle)
    inputs = np.array([-1.2, -0.5, 0.1, 0.7, 1.6])
    to_lines = np.abs(inputs * circle.center[0] + circle.center[1]) / np.hypot(inputs, 1)
    assert circle.get_radius() == pytest.approx(to_lines.min(), rel=1e-12)
