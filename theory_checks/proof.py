"""Assumptions and proofs of the checks: one file for each theorem, `theory_checks/proofs/<theorem>.md`.

A section for each check, under its name: a paragraph that begins with `*Assumes:*`, then the proof, of at most twenty
lines, which begins with one of the words of `KINDS`. Pages of `docs/theory` take them in from here.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

FOLDER = Path(__file__).parent / "proofs"
NOTATION = FOLDER / "notation.md"
MAX_LINES = 20
ASSUMES = "*Assumes:* "
KINDS: Mapping[str, str] = MappingProxyType(
    {"**Proof.**": "here", "**Proof in the source.**": "in the source", "**Measured, no proof.**": "measured"}
)
"""The words with which a proof begins, and what the index says of it."""


class Proof(NamedTuple):
    """What stands under a check's name.

    Attributes:
        assumptions: the paragraph with its first words, Markdown.
        text: the proof with its first words, Markdown with LaTeX between dollars.
        kind: where the proof is, a value of `KINDS`.
    """

    assumptions: str
    text: str
    kind: str


@cache
def proofs_of(theorem: str) -> Mapping[str, Proof]:
    """The proofs of a theorem's checks, by the checks' names; none if the theorem has no file."""
    path = FOLDER / f"{theorem}.md"
    return MappingProxyType(parse(path.read_text(encoding="utf-8")) if path.exists() else {})


def parse(text: str) -> dict[str, Proof]:
    """The sections of a file by their headings.

    Raises:
        ValueError: two sections of one name; one without assumptions, that begins with other words, or is too long.
    """
    names_and_bodies = re.split(r"^## (\S+)$", text, flags=re.M)[1:]
    found: dict[str, Proof] = {}
    for name, body in zip(names_and_bodies[::2], names_and_bodies[1::2], strict=True):
        if name in found:
            raise ValueError(f"{name}: has two sections; keep one")
        found[name] = _proof(name, body.strip())
    return found


def _proof(name: str, body: str) -> Proof:
    assumptions, _, text = body.partition("\n\n")
    kind = next((kind for words, kind in KINDS.items() if text.startswith(words)), None)
    if not assumptions.startswith(ASSUMES):
        raise ValueError(f"{name}: begins with {assumptions[:20]!r}; must begin with {ASSUMES!r}")
    if kind is None:
        raise ValueError(f"{name}: the proof begins with {text[:20]!r}; must begin with one of {list(KINDS)}")
    if (lines := text.count("\n") + 1) > MAX_LINES:
        raise ValueError(f"{name}: a proof of {lines} lines; at most {MAX_LINES} are allowed, blank ones included")
    return Proof(assumptions, text, kind)
