"""For the tests of interventions, including yours: does each do what its kind promises?

check_intervention(lambda: my_method(0.1, every=3), model, batch)
"""

from lopjax.testing.conformance import check_intervention
from lopjax.testing.properties import Finding, Property

__all__ = ["Finding", "Property", "check_intervention"]
