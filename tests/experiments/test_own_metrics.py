"""Metrics of one's own from the command line: found by reference, measured, recorded; mistakes are named."""

import jax
import pytest

from experiments.cloning.config import Config
from experiments.cloning.measurements import make_measure
from experiments.cloning.setup import build
from experiments.kit.networks import MLP
from experiments.kit.own_metrics import own_metrics

CONFIG = Config(
    dataset="digits", augment=False, net=MLP(widths=(4,), norm="none"), unit="steps", base_length=8, clone_length=8,
    record_every=8, batch_size=16, probe_samples=40, metrics=("my_metrics:largest",),
)  # fmt: skip


@pytest.fixture
def my_metrics(tmp_path, monkeypatch):
    (tmp_path / "my_metrics.py").write_text("LIMIT = 3\n\n\ndef largest(site):\n    return abs(site.post).max()\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_metric_in_a_file_of_its_own_is_measured_in_the_experiment(my_metrics):
    """Traced: which values a record has. That they are right is the claim of the tests of `symptoms`."""
    setup = build(CONFIG)
    images, labels = (each[:40] for each in setup.test)
    networks = (jax.eval_shape(model.init, jax.random.key(0)) for model in (setup.base, setup.wide))
    record = jax.eval_shape(make_measure(setup), *networks, (images, labels), (images, labels))
    names = {f"{network}/largest/{site}" for network in ("base", "clone") for site in ("hidden_0", "mean")}
    assert names <= set(record)
    assert record["base/largest/hidden_0"].shape == ()
    assert "base/smallest/hidden_0" not in record


@pytest.mark.parametrize(
    ("references", "message"),
    [
        (("my_metrics",), r"metrics='my_metrics': must be package\.module:function"),
        (("my_metrics:",), r"must be package\.module:function"),
        (("their_metrics:largest",), "there is no module their_metrics on Python's path"),
        (("my_metrics:smallest",), "module my_metrics has no function smallest"),
        (("my_metrics:LIMIT",), "module my_metrics has no function LIMIT"),
        (("my_metrics:largest",) * 2, "largest occurs twice"),
    ],
)
def test_a_reference_that_leads_nowhere_is_named(my_metrics, references, message):
    with pytest.raises(ValueError, match=message):
        own_metrics(references)
