"""Shared fixtures, quick compilation, and one cache of compiled programs for all workers and sessions.

With `LOPJAX_CHECK_TYPES=1` annotations are enforced while the tests run: shapes and dtypes by jaxtyping, types by
beartype. That costs four seconds a process and a seventh of all tracing, so CI does it in one of its runs only, that on
the newest Python; `tests/repository/test_every_public_function.py`, which is part of it, calls every public function.
"""

import gc
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

from theory_checks.quick import QUICK_COMPILATION

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# LAPACK's own threads would fight XLA's and the other xdist workers over the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Nearly all of the suite's time is compilation, and what it checks does not depend on how well XLA optimises.
os.environ.setdefault("XLA_FLAGS", QUICK_COMPILATION)

# What another test, worker or session has compiled is not compiled again, however small: writing an entry costs nothing
# that can be measured, and one that is found saves two fifths of what a program costs from trace to result.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "lopjax-tests"
        / f"{platform.node()}-jaxlib-{version('jaxlib')}"
    ),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import jaxtyping
import pytest

if os.environ.get("LOPJAX_CHECK_TYPES"):
    jaxtyping.install_import_hook("lopjax", "beartype.beartype")


MAX_CACHE_BYTES = 2**30


def pytest_configure(config):
    """The session, not its workers, empties a cache that has grown: programs of code that has changed stay in it."""
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    if hasattr(config, "workerinput") or cache.parent.name != "lopjax-tests" or not cache.is_dir():
        return
    if sum(entry.stat().st_size for entry in os.scandir(cache)) > MAX_CACHE_BYTES:
        shutil.rmtree(cache)


def pytest_collection_finish():
    """The garbage collector leaves alone what lives as long as the session, and looks through the rest less often.

    JAX's programs are millions of small Python objects: with Python's own thresholds a quarter of the suite's time goes
    into looking through them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked():
    """Run time type checks off, so that a test sees the library's own message about bad input."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def compiled():
    """What XLA has compiled since the test began."""
    names: list[str] = []

    def listen(event: str, duration: float, **details: str) -> None:
        if event.endswith("backend_compile_duration"):
            names.append(details.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)
