"""The code of docs/own_networks.md on networks without labels runs, and prints what the page says."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "own_networks.md").read_text(encoding="utf-8")


def blocks_of(heading):
    """The Python of a section, down to the next heading."""
    section = re.split(r"\n#+ ", PAGE.split(f"# {heading}\n")[1])[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def run(block, space):
    exec(compile(block, "docs/own_networks.md", "exec"), space)


def test_the_labelled_example_is_whole_and_its_labels_are_right():
    block = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    run(block, {})
    # The control: the check that ends the example sees that a kernel is no longer what its site reads.
    with pytest.raises(ValueError, match="hidden"):
        run(block.replace("x @ kernel)", "2 * x @ kernel)"), {})


def test_the_example_without_labels(capsys):
    (example,) = blocks_of("No labels: the wiring read from the program")
    run(example, {})
    report = capsys.readouterr().out
    assert "cloneable: 1 unit spaces" in report
    assert "permutable: 1 unit spaces" in report
    assert "up times n^(-1/2)" in report


LIBRARIES = {"linen": "flax", "nnx": "flax", "equinox": "equinox", "haiku": "haiku", "plain": "jax"}


@pytest.mark.parametrize("name", LIBRARIES)
def test_five_libraries_in_six_lines_or_fewer(name):
    pytest.importorskip(LIBRARIES[name], reason=f"{LIBRARIES[name]} is not installed")
    start, *blocks = blocks_of("Five libraries")
    assert len(blocks) == len(LIBRARIES)
    block = blocks[list(LIBRARIES).index(name)]
    assert len([line for line in block.splitlines() if line]) <= 6
    space: dict = {}
    run(start, space)
    run(block, space)
    assert [each.size for each in space["traced"].spaces if each.state == "cloneable"] == [6]
    assert max(space["traced"].verification[:3]) <= space["traced"].verification.tolerance


def test_statistics_and_loops():
    space: dict = {}
    run(blocks_of("Five libraries")[0], space)
    run(blocks_of("Five libraries")[1].splitlines()[0], space)  # Flax
    batch_norm, recurrent = blocks_of("Statistics, loops, and what checking costs")
    run(batch_norm, space)
    own, x = space["own"], jax.random.normal(jax.random.key(0), (5, 4))
    whole = space["Net"](6).apply(space["variables"], x)
    np.testing.assert_allclose(space["Net"](12).apply(own, x), whole, rtol=1e-5, atol=1e-6)
    assert space["updated"]["batch_stats"]["BatchNorm_0"]["mean"].shape == (12,)
    run(recurrent, space)
    assert [each.size for each in space["traced"].spaces if each.state == "cloneable"] == [6]


@pytest.mark.slow
def test_a_gpt_from_end_to_end(capsys):
    space: dict = {}
    run(blocks_of("Five libraries")[0], space)
    said = []
    for block in blocks_of("A GPT, from end to end"):
        run(block, space)
        said.append(capsys.readouterr().out)
    report, certificate, stability, frozen = said
    assert "gain times n^(-1); wte repeated" in report
    assert {each.size for each in space["traced"].spaces if each.state == "cloneable"} == {2, 4}
    assert "BLOCK_CONSTANT" in certificate
    assert "saddle" in stability.lower()
    assert "up[3]   FROZEN" in frozen
    assert space["dead"].tolist() == [False, False, False, True]
    assert not space["mended"]["down"][3].any()
