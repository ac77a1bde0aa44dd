"""Names at the top of the package: each is there, is what its own module calls so, and costs nothing unused."""

import importlib
import subprocess
import sys

import pytest

import lopjax


def test_every_name_is_that_of_its_module():
    assert {"certify_cloned", "models", "unit_blocks", "observe"} <= set(lopjax.__all__)
    for name in lopjax.__all__:
        found = getattr(lopjax, name)
        home = getattr(found, "__module__", None)
        if home is None:
            assert found is importlib.import_module(f"lopjax.{name}")
        else:
            assert home.startswith("lopjax.")
            assert getattr(importlib.import_module(home), name) is found


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="No lopjax attribute certify_everything"):
        lopjax.certify_everything  # noqa: B018


def test_importing_the_package_imports_no_jax_and_takes_less_than_a_second():
    program = "import sys, time, lopjax; print(lopjax.__version__, 'jax' in sys.modules, time.process_time() < 1)"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
    assert printed == f"{lopjax.__version__} False True\n"
