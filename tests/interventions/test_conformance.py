"""Every method on every architecture: the conformance suite, and broken ports that it must refuse."""

import pytest
from networks import case

from lopjax.interventions import redo
from lopjax.testing import Property, check_intervention

RESETS = {"redo": lambda: redo(0.0, 3)}
SLOW = ("cnn", "resnet", "vit")
NETWORKS = ["mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", RESETS)
def test_a_method_keeps_its_promises(method, network):
    findings = check_intervention(RESETS[method], *case(network))
    unseen = {one.property for one in findings if one.holds is None}
    allowed = {Property.UTILITIES} | ({Property.FUNCTION} if network == "vit" else set())
    allowed |= {Property.STATISTICS} if network in ("cnn", "vit", "plain") else set()
    assert unseen <= allowed
