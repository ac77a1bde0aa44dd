"""The README does what it says: its code runs, its commands are single lines, its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _block_after(marker: str) -> list[str]:
    return README.split(f"<!-- {marker} -->")[1].split("```")[1].splitlines()[1:]


@pytest.mark.slow
def test_code_runs_and_prints_what_its_comments_say(x64, capsys, monkeypatch):
    import jax

    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # the fixture has switched x64 on, for this test only
    exec(compile(code, "README.md", "exec"), {})
    residual, verdict, counts, escape = capsys.readouterr().out.splitlines()
    assert float(residual) < 1e-15
    assert verdict.startswith("saddle")
    assert all(int(count) > 0 for count in counts.split())
    assert float(escape) < 0


@pytest.mark.parametrize("marker", ["run command", "test command"])
def test_each_command_is_one_line_that_does_all_its_set_up(marker):
    (command,) = _block_after(marker)
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q -e ")


def test_links_lead_to_files_of_the_checkout():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert len(links) >= 8
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_version_stands_in_one_place_and_what_repeats_it_agrees():
    import lopjax

    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == lopjax.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d.*)\] - \d{4}-\d{2}-\d{2}$", changes, re.M)
    assert released[0] == lopjax.__version__
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()
