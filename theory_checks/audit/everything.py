"""All parts of the audit, one after the other."""

from collections.abc import Iterator

from theory_checks.audit.dense import audit_classify
from theory_checks.audit.near_clones import audit_near_clones
from theory_checks.audit.normed import STRUCTURES, audit_normed
from theory_checks.audit.running import audit
from theory_checks.audit.tally import Tally

DENSE_STRUCTURES = 3
"""`classify` compiles for every network anew, as its loss is a new function: it gets a small share."""


def run_audit(num_networks: int, seed: int, num_structures: int) -> Iterator[tuple[str, Tally]]:
    """Name and result of every part; about 3 % of the networks go to `classify`, 7 % to each of the other two.

    Args:
        num_networks: how many in all.
        seed: seed of everything random.
        num_structures: how many architectures have their blocks checked in closed form.
    """
    num_dense, num_normed = max(num_networks // 35, 1), max(num_networks // 14, 1)
    yield "near-clones", audit_near_clones(num_normed, seed)
    yield "batched products", audit_normed(num_normed, seed, min(len(STRUCTURES), max(num_structures // 6, 1)))
    yield "classify", audit_classify(num_dense, seed, min(DENSE_STRUCTURES, max(num_structures // 12, 1)))
    num_closed_form, parts = num_networks - num_dense - 2 * num_normed, 10
    for part in range(parts):
        share = num_closed_form // parts + (part < num_closed_form % parts)
        name = f"closed form, part {part + 1} of {parts}"
        yield name, audit(share, seed + 1000 * part, max(num_structures // parts, 1), part * (num_structures // parts))
