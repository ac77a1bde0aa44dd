"""What an audit has found so far."""

from collections import Counter
from dataclasses import dataclass, field

from lopjax.stability import Stability

Key = tuple[str, str, str]
"""What was asked, kind of network, type of its parameters."""


@dataclass
class Tally:
    """Falsehoods, and how often nothing was said.

    Attributes:
        wrong: one line for every falsehood.
        networks: how many of every key.
        undecided: verdicts UNDECIDED, likewise.
        eigenvalues: eigenvalues, likewise.
        unsigned: of them without sign and not called zero, likewise.
    """

    wrong: list[str] = field(default_factory=list)
    networks: Counter[Key] = field(default_factory=Counter)
    undecided: Counter[Key] = field(default_factory=Counter)
    eigenvalues: Counter[Key] = field(default_factory=Counter)
    unsigned: Counter[Key] = field(default_factory=Counter)

    def count(self, key: Key, verdict: Stability, eigenvalues: int = 0, unsigned: int = 0) -> None:
        """Add one network."""
        self.networks[key] += 1
        self.undecided[key] += verdict is Stability.UNDECIDED
        self.eigenvalues[key] += eigenvalues
        self.unsigned[key] += unsigned

    def add(self, other: "Tally") -> None:
        """Add another tally."""
        self.wrong += other.wrong
        for name in ("networks", "undecided", "eigenvalues", "unsigned"):
            getattr(self, name).update(getattr(other, name))
