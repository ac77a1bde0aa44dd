"""What an audit has found so far."""

from collections import Counter
from dataclasses import dataclass, field

from lopjax.stability import Stability

Key = tuple[str, str, str]
"""The method, the kind of network and the type of its parameters."""


@dataclass
class Tally:
    """False verdicts, and how often none was given.

    Attributes:
        wrong: one line per false verdict.
        networks: how many networks, by key.
        undecided: how many verdicts UNDECIDED, by key.
        eigenvalues: how many eigenvalues, by key.
        unsigned: how many of these had no sign and were not called zero, by key.
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
