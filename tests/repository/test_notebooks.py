"""Notebooks are stored twice, as text and as .ipynb, and without outputs; CI executes them."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.py"))


@pytest.mark.parametrize("script", NOTEBOOKS, ids=lambda path: path.stem)
def test_both_forms_have_the_same_cells_and_no_output(script):
    jupytext = pytest.importorskip("jupytext")
    as_text, as_notebook = jupytext.read(script), jupytext.read(script.with_suffix(".ipynb"))
    assert [cell.source for cell in as_text.cells] == [cell.source for cell in as_notebook.cells]
    assert len(as_text.cells) > 5
    assert not any(cell.get("outputs") for cell in as_notebook.cells)
