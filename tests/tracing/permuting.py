"""Permuting the leaves of typed arrays, written apart from the library: indices, entry by entry."""

from itertools import product

import numpy as np

from lopjax.tracing.atoms import expand, leaves
from lopjax.tracing.jaxprs import read_program
from lopjax.tracing.types import infer_types


def order(axis, length, permutations):
    """Where each entry of an axis comes from if leaves are permuted: sums block by block, products as digits."""
    digits = []
    for atom in expand(axis):
        if atom.parts is None:
            digits.append(list(permutations.get(atom, range(atom.size))))
            continue
        entries, start = [], 0
        for size, part in atom.parts:
            entries += [start + entry for entry in order(part, size, permutations)]
            start += size
        digits.append(entries)
    sizes = [len(digit) for digit in digits]
    found = [int(np.ravel_multi_index(place, sizes)) if sizes else 0 for place in product(*digits)]
    return found if found and len(found) == length else list(range(length))


def permuted(array, axes, permutations):
    for index, axis in enumerate(axes):
        array = np.take(array, order(axis, array.shape[index], permutations), axis=index)
    return array


def free_leaves(types):
    found = [leaf for axes in types for axis in axes for leaf in leaves(axis) if leaf.reason is None]
    return list(dict.fromkeys(found))


class Asked:
    """A function of arrays, its types, and the function itself to compare with."""

    def __init__(self, function, arrays, run):
        program = read_program(function, *arrays)
        typing = infer_types(program, len(arrays), pin_outputs=False)
        self.inputs = [typing.of(value) for value in program.block.inputs]
        self.outputs = [typing.of(value) for value in program.block.outputs]
        self.arrays, self.run = arrays, run
        self.base = run(*arrays)
        self.free = free_leaves(self.inputs)

    def gap(self, permutations):
        """How far the function of permuted arrays is from the permuted function of the arrays."""
        moved = self.run(*(permuted(a, axes, permutations) for a, axes in zip(self.arrays, self.inputs, strict=True)))
        pairs = zip(moved, (permuted(a, axes, permutations) for a, axes in zip(self.base, self.outputs, strict=True)))
        return max(
            float(np.max(np.abs(np.asarray(one, float) - np.asarray(other, float)), initial=0.0))
            for one, other in pairs
        )
