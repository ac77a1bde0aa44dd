"""What counts as an array of numbers: arrays, nested lists, and trees of both."""

import jax.numpy as jnp
import numpy as np
import pytest

from lopjax.arguments.numbers import check_finite, check_numbers, takes_numbers


def test_arrays_lists_and_trees_of_numbers_pass():
    for given in (1.0, [1, 2], (0.5,), np.ones(2), [[1, 2], [3, 4]], {"w": jnp.ones(2)}, [{"w": np.ones(2)}], None):
        check_numbers("it", given)
        check_finite("it", given if given is not None else 1)
    check_numbers("it", [np.ones(2), np.zeros(2)], 2)  # rows of an array
    check_numbers("it", (0.5, 1.0), 1)


def test_strings_ragged_lists_and_other_ranks_are_refused():
    for given in ("ab", ["a", "b"], np.array(["a"]), {"w": "a"}, [{"w": np.array(["a"])}], [[1, 2], [3]], object()):
        with pytest.raises(ValueError, match=r"it.*: must be an array of numbers"):
            check_numbers("it", given)
    for given, ranks in ((1.0, 1), ([1, 2], 2), (np.ones((2, 2)), (0, 1))):
        with pytest.raises(ValueError, match="must have"):
            check_numbers("it", given, ranks)
    for given in (np.nan, {"w": np.array([np.inf])}, [], {}):
        with pytest.raises(ValueError, match=r"not finite|no number"):
            check_finite("it", given)


def test_the_argument_is_named_however_it_is_passed():
    @takes_numbers(h=None)
    def twice(f, h=1.0):
        return 2 * h

    assert (twice(None), twice(None, 2), twice(None, h=3)) == (2, 4, 6)
    for call in (lambda: twice(None, "a"), lambda: twice(None, h="a")):
        with pytest.raises(ValueError, match="h='a'"):
            call()
