"""Where the reference measurements lie, for the tests that compare against them."""

from pathlib import Path

import pytest

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"
requires_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the measured reference values (../shared/reference) are not on this machine"
)
