"""Every method on every architecture: the conformance suite."""

import inspect
import re
from pathlib import Path

import pytest
from networks import case
from oracles.architectures import ARCHITECTURES

from lopjax import interventions
from lopjax.interventions import EXAMPLES, Example, continual_backprop
from lopjax.testing import Property, check_intervention

METHODS = {
    **EXAMPLES,
    "adaptable": Example(
        lambda: continual_backprop(0.05, 0.99, 2, utility="adaptable_contribution"), without=("JUST_DIED",)
    ),
}
# Networks beyond the small one: all of them, but where a case would repeat what another one sees.
# The GPT has the unit spaces of the ViT: that tokens and a mask change nothing, one method shows.
IMAGES = tuple(name for name in ARCHITECTURES if not ARCHITECTURES[name].is_of_tokens)
NETWORKS = dict.fromkeys(METHODS, IMAGES) | {
    "redo": tuple(ARCHITECTURES),
    "adaptable": ("cnn",),  # continual backprop but for one number a unit, which counts positions there
    "wake_dead_units": ("mlp", "vit"),  # the others are in `test_fire_and_norms`
    "split_clones": ("cnn", "resnet"),  # a transformer's streams and heads are in `test_split_clones`
}
# Two programs of second derivatives of this one are more than the suite can pay: no lanes in company.
ALONE = {("split_clones", "resnet"): ("NOTHING_ELSE",)}
CASES = [
    pytest.param(name, network, marks=() if network == "small" and name != "adaptable" else pytest.mark.slow)
    for name in METHODS
    for network in ("small", *NETWORKS[name])
]


@pytest.mark.parametrize(("method", "network"), CASES)
def test_a_method_keeps_its_promises(method, network):
    make, promises, without = METHODS[method]
    promises = ALONE.get((method, network), promises)
    names = [name for name in promises or Property.__members__ if name not in without]
    findings = check_intervention(make, *case(network), promises=[Property[name] for name in names])
    unseen = {one.property: one.evidence for one in findings if one.holds is None}
    allowed = {Property.FUNCTION, Property.JUST_DIED} if network in ("vit", "gpt") else set()
    # Whether a method comes to touch the unit that has just died, and no other, depends on the network.
    allowed |= set() if network == "small" else {Property.JUST_DIED}
    # Of the MLP it wakes a unit that is constant, not zero; that claim has a test of its own.
    allowed |= {Property.FUNCTION} if (method, network) == ("wake_dead_units", "mlp") else set()
    allowed |= {Property.GRADIENT} if method == "regrama" else set()
    allowed |= {Property.STATISTICS} if network in ("cnn", "vit", "gpt") else set()
    assert set(unseen) <= allowed, unseen


def test_every_intervention_has_its_row_and_the_page_names_what_there_is():
    page = (Path(__file__).parents[2] / "docs" / "interventions.md").read_text()
    assert all(f"| `{one.name}` |" in page for one in Property)
    assert all(hasattr(interventions, name) for name in EXAMPLES)
    makers = {name for name in interventions.__all__ if _makes_an_intervention(getattr(interventions, name))}
    assert makers - {"with_lifetimes"} == set(EXAMPLES)  # that one wraps another
    methods = set(re.findall(r"^\| `([a-z_]+)(?:\(transform\))?` \| (?:every|task)", page, flags=re.M))
    assert len(methods) >= 10
    assert methods <= makers


def _makes_an_intervention(value: object) -> bool:
    return inspect.isfunction(value) and inspect.signature(value).return_annotation is interventions.Intervention
