"""Text that ships with Python, as tokens: documentation and sources of the standard library, found at run time.

Every Python release ships a different text, and a minimal installation may lack parts of it: `Text.digest` identifies
the text. Nothing is downloaded, and only modules that contain nothing but text are imported for it.
"""

import ast
import hashlib
import re
import sysconfig
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from lopjax.arguments.integers import as_integer

PACKAGES = (
    *("asyncio", "collections", "ctypes", "email", "encodings", "html", "http", "importlib", "json", "logging"),
    *("multiprocessing", "unittest", "urllib", "wsgiref", "xml"),
)
"""Packages of the standard library whose sources serve as texts, each under its own name."""

DOCUMENTED = (
    *("argparse", "bisect", "calendar", "datetime", "difflib", "fractions", "functools", "heapq", "inspect", "pathlib"),
    *("random", "shutil", "statistics", "string", "subprocess", "tarfile", "textwrap", "threading", "typing"),
)
"""Modules whose docstrings make the text "docstrings"."""

SOURCES = ("topics", "docstrings", *PACKAGES)
"""Names of all texts."""

OTHER = "<other>"
"""The token for all words outside the vocabulary."""


class Text(NamedTuple):
    """A text.

    Attributes:
        name: one of `SOURCES`.
        text: the whole text.
        digest: SHA-256 of its UTF-8 bytes, hexadecimal.
    """

    name: str
    text: str
    digest: str


class Encoded(NamedTuple):
    """Texts as tokens.

    Attributes:
        tokens: tokens of every text, numbers in 0..len(vocabulary)-1, int32.
        vocabulary: the meaning of each number: a word, or a byte as a number.
    """

    tokens: tuple[np.ndarray, ...]
    vocabulary: tuple[str | int, ...]


def python_text(name: str) -> Text:
    """A text that ships with this Python; the same installation always gives the same one.

    Args:
        name: "topics" (the language reference, as `help()` shows it), "docstrings" (of the modules in `DOCUMENTED`), or
            one of `PACKAGES`, whose sources are joined in the order of their paths.

    Raises:
        ValueError: another name.
        FileNotFoundError: this installation does not contain it.
    """
    if name not in SOURCES:
        raise ValueError(f"source={name!r}: must be one of {list(SOURCES)}")
    parts = list(_topics() if name == "topics" else _docstrings() if name == "docstrings" else _sources(name))
    if not parts:
        raise FileNotFoundError(
            f"source={name!r}: this Python ships no such text in {_library()}; it may be a minimal installation"
        )
    text = "\n".join(parts)
    return Text(name, text, hashlib.sha256(text.encode()).hexdigest())


def joint_digest(texts: Sequence[Text]) -> str:
    """One SHA-256 for several texts, in their order."""
    return hashlib.sha256("".join(text.digest for text in texts).encode()).hexdigest()


def encode_bytes(texts: Sequence[str]) -> Encoded:
    """Texts as UTF-8 bytes, renumbered: the vocabulary has the bytes that occur in any of them, in ascending order.

    >>> encode_bytes(["ab", "cb"]).tokens[1].tolist()
    [2, 1]
    """
    raw = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    occurring = np.unique(np.concatenate(raw))
    return Encoded(
        tuple(np.searchsorted(occurring, one).astype(np.int32) for one in raw), tuple(int(byte) for byte in occurring)
    )


def encode_words(texts: Sequence[str], num_words: int) -> Encoded:
    """Texts as words and punctuation marks; white space is left out.

    Args:
        texts: the texts.
        num_words: size of the vocabulary: `OTHER` with number 0, and the most frequent words, with ties in alphabetical
            order.

    Raises:
        ValueError: `num_words` is below two, or exceeds the number of words.

    >>> encode_words(["to be, or not to be"], 3)
    Encoded(tokens=(array([2, 1, 0, 0, 0, 2, 1], dtype=int32),), vocabulary=('<other>', 'be', 'to'))
    """
    words = [re.findall(r"\w+|[^\w\s]", text) for text in texts]
    counts = Counter(word for text in words for word in text)
    as_integer(num_words, 2, f"num_words={num_words!r}: must be an integer, at least 2")
    if num_words > len(counts) + 1:
        raise ValueError(f"num_words={num_words}: must be at most {len(counts) + 1}, the different words and {OTHER}")
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[: num_words - 1]
    numbers = {word: number for number, word in enumerate(ranked, start=1)}
    return Encoded(
        tuple(np.array([numbers.get(word, 0) for word in text], np.int32) for text in words), (OTHER, *ranked)
    )


def text_windows(
    tokens: Int32[np.ndarray, " tokens"], length: int, num: int, first: int = 0
) -> Int32[np.ndarray, "windows length_and_one"]:
    """Consecutive windows of a text: the first `length` tokens of each are inputs, the last one is the label.

    Args:
        tokens: tokens of a text.
        length: number of input tokens of a window, which has one token more.
        num: number of windows.
        first: index of the first window.

    Raises:
        ValueError: the text is too short; the message gives the necessary length.
    """
    size = length + 1
    if length < 1 or num < 1 or len(tokens) < (first + num) * size:
        raise ValueError(
            f"length={length}, {num} windows from number {first}: both must be positive, and the text must have at "
            f"least {(first + num) * size:,} tokens; it has {len(tokens):,}"
        )
    return np.asarray(tokens[first * size : (first + num) * size].reshape(num, size))


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _topics() -> Iterable[str]:
    try:
        topics = import_module("pydoc_data.topics").topics
    except ImportError:
        return []
    return [topics[name] for name in sorted(topics)]


def _sources(package: str) -> Iterable[str]:
    root = _library() / package
    files = (path for path in root.rglob("*.py") if not {"test", "tests"} & set(path.relative_to(root).parts))
    return [path.read_text(encoding="utf-8") for path in sorted(files, key=lambda path: path.as_posix())]


def _docstrings() -> Iterable[str]:
    docstrings = []
    for path in (_library() / f"{name}.py" for name in DOCUMENTED):
        if path.exists():  # a module may become a package
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            docstrings += [ast.get_docstring(node) for node in nodes if isinstance(node, kinds)]
    return [text for text in docstrings if text]
