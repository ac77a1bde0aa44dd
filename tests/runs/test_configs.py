"""Which config a folder belongs to: every value is one of its own, and what JSON cannot hold is named."""

import hashlib
import json
import math
import threading
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from oracles.folders import Config, complete, contents

from lopjax import runs
from lopjax.runs import RunFolderError, config_hash, load, open_run


@dataclass(frozen=True)
class Open:
    value: Any = None


DIFFERENT = [
    None, math.inf, -math.inf, math.nan, 0.0, -0.0, 0, 1, 1.0, True, False, "inf", "null", "nan", [], {}, [math.inf],
    [None], {"a": math.nan}, {"a": None}, {"a": {"b": -math.inf}}, {"a": {"b": math.inf}},
]  # fmt: skip


@pytest.mark.parametrize("there", range(len(DIFFERENT)))
def test_every_value_is_a_config_of_its_own(tmp_path, there):
    complete(tmp_path / "run", Open(DIFFERENT[there]))
    for now, value in enumerate(DIFFERENT):
        if now == there:
            assert open_run(tmp_path / "run", Open(value)).is_complete
        else:
            with pytest.raises(RunFolderError, match=r"belongs to another config \(value"):
                open_run(tmp_path / "run", Open(value))
    assert len({config_hash({"value": value}) for value in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, [1.0, math.inf], {"a": {"b": math.nan}}])
def test_numbers_that_are_not_finite_come_back_from_strict_json(tmp_path, value):
    run = complete(tmp_path, Open(value))
    json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)
    for config in (run.config, load(tmp_path).config, runs.follow_run(tmp_path, Open(value), True).config):
        np.testing.assert_equal(config, {"value": value})
    assert open_run(tmp_path, Open(np.array(value) if isinstance(value, float) else value)).is_complete


def test_a_folder_of_an_older_version_is_recognised_but_for_its_ambiguous_nulls(tmp_path):
    """Older versions wrote null for what is not finite, and hashed that; all else has kept its text and its hash."""
    # What `sha256sum` says of the text that every version has written.
    text = '{"folder": "somewhere", "net": {"widths": [3, 3]}, "rate": 0.1, "seeds": [0, 1]}'
    assert complete(tmp_path / "run", Config()).config == json.loads(text)
    assert (
        json.loads((tmp_path / "run" / "config.json").read_text())["hash"] == hashlib.sha256(text.encode()).hexdigest()
    )
    complete(tmp_path / "old", Open(None))
    assert open_run(tmp_path / "old", Open(None)).is_complete
    with pytest.raises(RunFolderError, match=r"value: null there, -Infinity now \(older versions wrote null for it"):
        open_run(tmp_path / "old", Open(-math.inf))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float32, r"config\.value: <class 'numpy.float32'> of type type has no form in JSON.*write its name"),
        (np.dtype("float32"), r"config\.value: dtype\('float32'\)"),
        ({1}, r"config\.value: \{1\} of type set .*write a sorted tuple"),
        ([0, {"a": 1j}], r"config\.value\[1\]\.a: 1j of type complex"),
        (b"x", r"config\.value: b'x' of type bytes"),
        (open, r"config\.value: .* has no form in JSON"),
        (threading.Lock(), r"config\.value: .*lock"),
        (range(3), r"config\.value: range\(0, 3\)"),
        (np.array([object()]), r"config\.value\[0\]: <object"),
        (jax.random.key(0), r"config\.value: "),
        ({1: 0, "1": 1}, r"config\.value: has keys that JSON cannot tell apart, \[1, '1'\]"),
        ({"$float": "inf"}, r"config\.value: has keys"),
        (iter(()), r"config\.value: .*iterator"),
    ],
)
def test_what_a_config_cannot_hold_is_named_and_leaves_nothing_behind(tmp_path, value, message):
    with pytest.raises(RunFolderError, match=message):
        open_run(tmp_path / "run", Open(value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [{"rate": 0.1}, None, Config])
def test_a_config_that_is_no_dataclass_is_refused(tmp_path, config):
    with pytest.raises(RunFolderError, match="is not an instance of a dataclass"):
        open_run(tmp_path / "run", config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", [".", "..", "", "below/.."])
def test_the_current_folder_is_not_moved_aside(tmp_path, monkeypatch, folder):
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "here" / "thesis.tex").write_text("years of work")
    monkeypatch.chdir(tmp_path / "here")
    before = contents(tmp_path)
    with pytest.raises(RunFolderError, match="is the current folder or one above it"):
        open_run(folder, Config(), overwrite=True)
    assert contents(tmp_path) == before
