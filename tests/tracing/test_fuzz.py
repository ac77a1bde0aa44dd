"""Random programs: no claim of the tracer is false, and each rule that is taken away is missed.

Claims are held against the program itself, run in NumPy at generic parameters: units of every free space permuted by a
cycle and by an exchange, and cloned. `LOPJAX_TEST_FUZZ` programs a step (3) in the slow test.
"""

import os
from collections import Counter
from functools import cache
from itertools import product

import numpy as np
import pytest
from numpy_programs import evaluate
from random_programs import STEPS, draw_program

from lopjax.tracing import cloning, rules, types
from lopjax.tracing.atoms import fresh
from lopjax.tracing.jaxprs import walk
from lopjax.tracing.network import Network
from lopjax.tracing.pieces import full
from lopjax.tracing.primitives import unknown

TOLERANCE = 1e-7


def false_claim(program, seed=0) -> str:
    """What the tracer says of a program and is not so; empty if all is."""
    plan = Network(program.apply, program.params, {}, ()).plan(program.inputs)
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0] if leaf.shape else 1) for leaf in program.params]
    x = rng.normal(size=program.inputs.shape)
    pieces = [layout.split(array) for layout, array in zip(plan.diagram.layouts, arrays, strict=True)]
    labels = iter(plan.diagram.labels)
    labels = [[next(labels)[1] for _ in own] for own in pieces]

    def output(units, changed):
        layouts = [layout.resized(units) for layout in plan.diagram.layouts]
        made = [layout.merge(own) for layout, own in zip(layouts, changed, strict=True)]
        return evaluate(plan.sizes(units), [*made, x])[0]

    def changed(move):
        return [[move(piece, label) for piece, label in zip(*each, strict=True)] for each in zip(pieces, labels)]

    base = output({}, pieces)
    assert np.isfinite(base).all(), program.steps
    size = np.abs(base).max()
    for space in plan.diagram.spaces:
        if space.state == "fixed":
            continue
        for order in (np.roll(np.arange(space.size), 1), [1, 0, *range(2, space.size)]):
            moved = changed(lambda piece, label, order=order, name=space.name: permuted(piece, label, name, order))
            if np.abs(output({}, moved) - base).max() > TOLERANCE * size:
                return f"{space.name} is not permutable"
        if space.state == "cloneable":
            wide = changed(lambda piece, label, name=space.name: cloned(piece, label, name, 3))
            if np.abs(output({space.name: 3 * space.size}, wide) - base).max() > TOLERANCE * size:
                return f"{space.name} is not cloneable"
    return ""


def permuted(piece, label, space, order):
    for axis in label.unit_axes((space,)):
        piece = np.take(piece, order, axis.index)
    return piece


def cloned(piece, label, space, n):
    for axis in label.unit_axes((space,)):
        piece = np.repeat(piece, n, axis.index) / (n if axis.is_read else 1)
    return piece


# --- All rules in place --------------------


def programs(step, run, number):
    for index in range(number):
        rng = np.random.default_rng([run, index, *step.encode()])
        yield draw_program(rng, step, is_scaled=bool(index % 2))


def assert_no_claim_is_false(run, number):
    states = Counter()
    for step in STEPS:
        for program in programs(step, run, number):
            assert not (claim := false_claim(program)), f"{program.steps}: {claim}"
            diagram = Network(program.apply, program.params, {}, ()).plan(program.inputs).diagram
            states.update(space.state for space in diagram.spaces)
    return states


def test_no_claim_about_random_programs_is_false():
    states = assert_no_claim_is_false(0, 2)
    # It is no proof of anything if nothing was claimed.
    assert states["cloneable"] > 100
    assert states["permutable"] > 30
    assert states["fixed"] > 100


@pytest.mark.slow
def test_no_claim_about_many_random_programs_is_false():
    assert_no_claim_is_false(1, int(os.environ.get("LOPJAX_TEST_FUZZ", "3")))
