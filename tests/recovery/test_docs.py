"""The code of docs/recovery.md runs, block after block, and prints what its comments say."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "recovery.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_does_what_it_says(capsys, unchecked):
    pytest.importorskip("equinox", reason="equinox is not installed: it is in the extra `dev`")
    blocks, space = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), {}
    said = []
    for block in blocks:
        exec(compile(block, "docs/recovery.md", "exec"), space)
        said.append(capsys.readouterr().out)
    nearness, monitored, of_nnx, of_equinox, recovered, own_loop, diagnosed = said
    assert re.match(r"step 30: loss on the probe .*\n.* 0 saturated, of 8\n", of_nnx)
    assert re.match(r"step 30: loss on the probe .*\n.* 0 saturated, of 16\n", of_equinox)
    assert nearness.splitlines()[0] == "2 units within 1 % of a clone, 1 dead, 0 saturated, of 8"
    assert "near-clone 2 (= 0.5 x unit 3" in nearness
    assert monitored.startswith("step 30: loss on the probe")
    assert re.match(
        r"step 4: dying at 0.125 -> wake_dead_units .*: the symptom went by step 14 \(0\); .* 1 healthy", recovered
    )
    assert own_loop == recovered
    assert "1. near-clones (serious, 25 %)" in diagnosed
    assert "lopjax.interventions.wake_dead_units" in diagnosed
