"""Text that ships with Python: the same every time, and tokens from which it can be read again."""

import hashlib
import os
import re
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lopjax.data import text
from lopjax.data.text import OTHER, SOURCES, encode_bytes, encode_words, joint_digest, python_text, text_windows

WORDS = "to be, or not to be: that is the question. be!"


def test_a_source_is_the_files_of_its_package_in_the_order_of_their_paths():
    """Another road: a walk of the folder, and the digest of what it reads."""
    root = os.path.join(sysconfig.get_path("stdlib"), "json")
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names if name.endswith(".py")]
    paths = [path for path in paths if not {"test", "tests"} & set(path.split(os.sep))]
    expected = "\n".join(Path(path).read_text(encoding="utf-8") for path in sorted(paths))
    found = python_text("json")
    assert found.text == expected
    assert found.digest == hashlib.sha256(expected.encode()).hexdigest()
    assert python_text("json") == found
    assert joint_digest([found]) != joint_digest([found, found])


def test_documentation_is_prose_and_sources_are_not():
    prose, code = python_text("topics").text, python_text("email").text
    share = {name: body.count("def ") / len(body) for name, body in (("prose", prose), ("code", code))}
    assert share["code"] > 5 * share["prose"]


def test_docstrings_are_those_that_inspect_finds(monkeypatch):
    import bisect
    import heapq

    monkeypatch.setattr(text, "DOCUMENTED", ("bisect", "heapq", "no_such_module"))
    found = python_text("docstrings").text
    for function in (bisect.insort_left, heapq.nsmallest):  # pure Python ones
        assert " ".join(str(function.__doc__).split()) in " ".join(found.split())
    assert "def " not in found


def test_bytes_can_be_read_again_and_are_those_that_occur():
    texts = ["naïve", "a né"]
    encoded = encode_bytes(texts)
    assert list(encoded.vocabulary) == sorted(set("".join(texts).encode()))
    for tokens, original in zip(encoded.tokens, texts, strict=True):
        assert bytes(encoded.vocabulary[token] for token in tokens).decode() == original


def test_words_are_the_most_frequent_and_all_others_are_one():
    encoded = encode_words([WORDS], 4)
    everything = re.findall(r"\w+|[^\w\s]", WORDS)
    assert encoded.vocabulary == (OTHER, *[word for word, _ in Counter(sorted(everything)).most_common(3)])
    assert encoded.vocabulary[1:3] == ("be", "to")
    read = [encoded.vocabulary[token] for token in encoded.tokens[0]]
    assert read == [word if word in encoded.vocabulary else OTHER for word in everything]
    assert OTHER in read
    whole = encode_words([WORDS], len(set(everything)) + 1)
    assert [whole.vocabulary[token] for token in whole.tokens[0]] == everything


def test_windows_follow_each_other():
    windows = text_windows(np.arange(20, dtype=np.int32), 3, 2, first=1)
    np.testing.assert_array_equal(windows, [[4, 5, 6, 7], [8, 9, 10, 11]])


def test_what_is_refused(unchecked, monkeypatch, tmp_path):
    for call, message in (
        (lambda: python_text("shakespeare"), r"source='shakespeare': must be one of"),
        (lambda: encode_words([WORDS], 1), "num_words=1: must be an integer, at least 2"),
        (lambda: encode_words([WORDS], 50), "num_words=50: must be at most 13"),
        (lambda: text_windows(np.arange(20), 3, 6), "at least 24 tokens; it has 20"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="source='email': this Python ships no such text"):
        python_text("email")
    assert len(set(SOURCES)) == len(SOURCES)
