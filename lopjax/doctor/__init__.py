"""The doctor: what is wrong with a network, how bad, on what evidence, and what would mend it.

examine.py       examinations for clones, near-clones and low rank
frozen_units.py  examinations for dead and saturated units
diagnosis.py     `diagnose`, all of them
findings.py      what they say: text and JSON
page.py          the HTML page (page.html is its frame)
patients.py      from a run folder or a checkpoint to a network, its variables and a batch
checkpoints.py   checkpoints that are not ours
command.py       `python -m lopjax doctor`
"""

from lopjax.doctor.checkpoints import MismatchError
from lopjax.doctor.diagnosis import diagnose
from lopjax.doctor.findings import Diagnosis, Finding, UnitRecord
from lopjax.doctor.page import write_page

__all__ = ["Diagnosis", "Finding", "MismatchError", "UnitRecord", "diagnose", "write_page"]
