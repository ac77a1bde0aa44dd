"""What a check is: rows of measured numbers, each against a bound, and controls that must miss theirs."""

import importlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from theory_checks import THEOREMS

Size = Literal["small", "full"]


class Row(NamedTuple):
    """One measured number.

    Attributes:
        what: what was measured.
        value: the number.
        bound: what it is held against; `None` for a finding, a number that is reported and not judged.
        sense: "<=" or ">=": how a value that supports the theorem lies to the bound.
        control: the value belongs to a case for which the theorem must fail: it has to miss the bound.
    """

    what: str
    value: float
    bound: float | None = None
    sense: Literal["<=", ">="] = "<="
    control: bool = False

    @property
    def is_within(self) -> bool:
        """Whether the value keeps its bound; a NaN never does, a finding has none to miss."""
        if self.bound is None:
            return not math.isnan(self.value)
        return self.value <= self.bound if self.sense == "<=" else self.value >= self.bound

    @property
    def is_as_claimed(self) -> bool:
        """Whether the row supports the theorem; a control does by missing the bound, a number that is NaN never."""
        return not math.isnan(self.value) and self.is_within != self.control


def describe(row: Row) -> tuple[str, str, str]:
    """What was measured, its bound and its verdict, in words."""
    if row.bound is None:
        return f"finding: {row.what}", "", "measured" if row.is_as_claimed else "FAILED"
    bound = f"{row.sense} {row.bound:.3g}"
    if row.control:
        return f"control: {row.what}", bound, "misses, as it must" if row.is_as_claimed else "FAILED: control"
    return row.what, bound, "as claimed" if row.is_as_claimed else "FAILED"


@dataclass(frozen=True)
class Check:
    """One statement and the measurement that could refute it; what it assumes and its proof are in `proofs/`.

    Attributes:
        name: `<theorem>.<statement>`, the theorem being the module's name.
        statement: one sentence, as a reader would want it said.
        source: where the statement comes from (arXiv number and section, or a classical reference).
        run: a pure function of the size; float64 is on when it is called.
        consequence: what follows for someone who trains networks, in plain words.
        correction: what was claimed here before and why it was wrong; empty if nothing was.
    """

    name: str
    statement: str
    source: str
    run: Callable[[Size], Sequence[Row]]
    consequence: str = ""
    correction: str = ""


class Verdict(NamedTuple):
    """What a check measured, whether it holds, and why not if it does not."""

    check: Check
    rows: tuple[Row, ...]
    holds: bool
    reason: str


def judge(check: Check, size: Size) -> Verdict:
    """Run a check. It holds if every row is as claimed, and only if there is a control to show that it could fail."""
    try:
        measured = check.run(size)
    except Exception as error:  # The other checks still run, and this one has failed.
        return Verdict(check, (), False, f"{type(error).__name__}: {error}")
    rows = tuple(
        Row(row.what, float(row.value), None if row.bound is None else float(row.bound), row.sense, row.control)
        for row in measured
    )
    wrong = [row for row in rows if not row.is_as_claimed]
    if not any(row.control and row.bound is not None for row in rows):
        return Verdict(check, rows, False, "no control: nothing shows that the measurement could fail")
    if all(row.control or row.bound is None for row in rows):
        return Verdict(check, rows, False, "only controls and findings: nothing was claimed")
    if wrong:
        kinds = ("control kept its bound" if row.control and row.is_within else "out of bound" for row in wrong)
        return Verdict(check, rows, False, "; ".join(f"{row.what}: {kind}" for row, kind in zip(wrong, kinds)))
    return Verdict(check, rows, True, "")


def all_checks() -> tuple[Check, ...]:
    """Collect the checks of every theorem in `THEOREMS`.

    Raises:
        ValueError: two checks share a name, or a name does not start with its module's.
    """
    checks: list[Check] = []
    for theorem in THEOREMS:
        of_theorem: tuple[Check, ...] = importlib.import_module(f"theory_checks.{theorem}").CHECKS
        for check in of_theorem:
            if not check.name.startswith(f"{theorem}.") or check.name in {other.name for other in checks}:
                raise ValueError(f"check {check.name!r}: must be a new name that starts with {theorem + '.'!r}")
        checks.extend(of_theorem)
    return tuple(checks)


def select(checks: Iterable[Check], only: str) -> tuple[Check, ...]:
    """Return the checks called `only`, or all those of the theorem `only`; everything if it is empty.

    Raises:
        ValueError: nothing has that name; lists the names.
    """
    checks = tuple(checks)
    selected = tuple(check for check in checks if not only or check.name == only or check.name.split(".")[0] == only)
    if not selected:
        names = [*dict.fromkeys(check.name.split(".")[0] for check in checks), *(check.name for check in checks)]
        raise ValueError(f"--only {only}: must be one of {', '.join(names)}")
    return selected
