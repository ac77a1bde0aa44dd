"""Every method on every architecture: the conformance suite."""

from pathlib import Path

import pytest
from networks import case
from oracles.architectures import ARCHITECTURES

from lopjax import interventions
from lopjax.interventions import (
    continual_backprop,
    cpr,
    fire,
    from_optax,
    redo,
    regrama,
    reset_layer,
    reset_optimizer,
    self_normalized_resets,
    split_clones,
    wake_dead_units,
)
from lopjax.optim import shrink_and_perturb
from lopjax.testing import Property, check_intervention

ALL = set(Property)
# With these numbers each acts within a few steps on the networks of the suite, in which one unit of every space sleeps.
METHODS = {
    "redo": (lambda: redo(0.0, 3), ALL - {Property.UTILITIES}),
    # What it moves into biases is a running mean: of a unit that has just died that is not what it gives now.
    "continual_backprop": (lambda: continual_backprop(0.05, 0.99, 2), ALL - {Property.JUST_DIED}),
    "adaptable": (
        lambda: continual_backprop(0.05, 0.99, 2, utility="adaptable_contribution"),
        ALL - {Property.JUST_DIED},
    ),
    "self_normalized_resets": (lambda: self_normalized_resets(0.9, 3), ALL - {Property.UTILITIES}),
    "regrama": (lambda: regrama(0.05, 3), ALL - {Property.UTILITIES}),
    "cpr": (lambda: cpr(0.1, 3), {Property.SLICES, Property.AGEING, Property.NOTHING_ELSE, Property.KEYS}),
    # What touches no unit by choice: the promises that any step can keep.
    "reset_optimizer": (lambda: reset_optimizer(3), {Property.AGEING, Property.KEYS}),
    "from_optax": (lambda: from_optax(shrink_and_perturb(0.9, 0.1, seed=0, every=3)), {Property.AGEING}),
    "fire": (lambda: fire(every=3), {Property.AGEING, Property.NOTHING_ELSE, Property.KEYS}),
    "reset_layer": (
        lambda: reset_layer(["classes"]),
        ALL - {Property.FUNCTION, Property.JUST_DIED, Property.OUTGOING, Property.STATISTICS, Property.UTILITIES},
    ),
    "wake_dead_units": (lambda: wake_dead_units(3), ALL - {Property.UTILITIES}),
    # Any pair is near enough, and any price is paid: what it promises of clones is tested with clones.
    "split_clones": (
        lambda: split_clones(10.0, every=3, loss_tolerance=1e9),
        {Property.AGEING, Property.NOTHING_ELSE, Property.KEYS},
    ),
}
CASES = [
    pytest.param(name, network, marks=() if network == "small" and name != "adaptable" else pytest.mark.slow)
    for name in METHODS
    for network in ("small", *ARCHITECTURES)
    # On the larger networks these two are tested in files of their own.
    if network == "small"
    or name not in ("wake_dead_units", "split_clones")
    or (name, network) == ("wake_dead_units", "mlp")
]


@pytest.mark.parametrize(("method", "network"), CASES)
def test_a_method_keeps_its_promises(method, network):
    make, promises = METHODS[method]
    findings = check_intervention(make, *case(network), promises=[one for one in Property if one in promises])
    unseen = {one.property: one.evidence for one in findings if one.holds is None}
    allowed = {Property.FUNCTION, Property.JUST_DIED} if network == "vit" else set()
    # Whether a method comes to touch the unit that has just died, and no other, depends on the network.
    allowed |= set() if network == "small" else {Property.JUST_DIED}
    # Of the MLP it wakes a unit that is constant, not zero; that claim has a test of its own.
    allowed |= {Property.FUNCTION} if (method, network) == ("wake_dead_units", "mlp") else set()
    allowed |= {Property.GRADIENT} if method == "regrama" else set()
    allowed |= {Property.STATISTICS} if network in ("cnn", "vit") else set()
    assert set(unseen) <= allowed, unseen


def test_the_page_names_every_property_and_every_method():
    page = (Path(__file__).parents[2] / "docs" / "interventions.md").read_text()
    assert all(f"| `{one.name}` |" in page for one in Property)
    methods = {name for name in METHODS if name != "adaptable"} | {"reset_optimizer", "from_optax", "with_lifetimes"}
    assert all(hasattr(interventions, name) and f"`{name}" in page for name in methods)
