"""The code of docs/interventions.md runs as it stands; its own loop takes other methods on a network of your own."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lopjax.interventions import REASONS, cpr, fire, redo, regrama, reset_layer, start_intervention
from lopjax.optim import l2_init
from lopjax.training import init_state

PAGE = (Path(__file__).parents[2] / "docs" / "interventions.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_runs_and_its_loop_takes_any_method(capsys, unchecked):
    """Of five further methods every one acts; of an optax transform in the chain the step is that of plain optax."""
    blocks, space = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), {}
    for block in blocks:
        exec(compile(block, "docs/interventions.md", "exec"), space)
    said = re.search(r"print\(describe\(report, index\)\)  # (.*)", PAGE)
    assert said is not None
    assert capsys.readouterr().out.strip() == said[1]
    loop = next(block for block in blocks if "def own_step" in block)
    batch, key = space["batch"], space["key"]
    optimizer = optax.chain(l2_init(0.1), optax.sgd(0.1))
    setting = space["setting"]._replace(optimizer=optimizer)
    for method in (redo(1.0, 1), regrama(1.0, 1), cpr(0.1, 1), reset_layer(["hidden"], 1), fire(every=1)):
        space |= {"method": method, "optimizer": optimizer, "setting": setting}
        exec(compile(loop, "docs/interventions.md", "exec"), space)  # jit has seen the methods before it
        state = start_intervention(method, setting, init_state(setting.model.init(key), optimizer))
        for index in range(3):
            state, report = space["own_step"](state, batch, key, index)
        assert REASONS[int(report.reason)] == "it has changed the network"
        assert np.any(report.touched["hidden"])
        assert jnp.isfinite(setting.loss(setting.model.apply(state.variables, batch[0]).logits, batch[1]))
    # Plain optax, by hand, from the same start.
    space["method"] = redo(1.0, 10)
    exec(compile(loop, "docs/interventions.md", "exec"), space)
    start = init_state(setting.model.init(key), optimizer)
    state, _ = space["own_step"](start_intervention(space["method"], setting, start), batch, key, 0)
    gradient = jax.grad(lambda p: setting.loss(setting.model.apply({"params": p}, batch[0]).logits, batch[1]))
    params = start.variables["params"]
    updates, _ = optimizer.update(gradient(params), start.opt_state, params)
    expected = optax.apply_updates(params, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.variables["params"], expected)
