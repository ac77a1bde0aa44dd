"""The built site in a browser: search, formulas, diagrams, figures, the width of a telephone, and no complaints.

`LOPJAX_SITE=build/site python -m pytest tests/repository/test_site.py`, after `python -m sphinx docs build/site`.
"""

import json
import os
import re
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from oracles.browser import FLAGS, browser

HARNESS = Path(__file__).with_name("site_harness.html")
TELEPHONE, DESK = 390, 1280
SEARCHES = {"tangency_residual": "tangency_residual", "dropout": "", "noword0000": None}
"""Words, and what the address of a page found must have in it; None where nothing may be found."""


class Handler(SimpleHTTPRequestHandler):
    """The site's files, the harness, what it is asked, and what it has found."""

    def do_GET(self) -> None:
        texts = {"/harness.html": HARNESS.read_bytes(), "/asked": json.dumps(self.server.asked).encode()}
        if self.path not in texts:
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if self.path == "/harness.html" else "application/json")
        self.end_headers()
        self.wfile.write(texts[self.path])

    def do_POST(self) -> None:
        self.server.found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        self.server.is_done.set()

    def send_error(self, code: int, *args) -> None:
        if self.path != "/favicon.ico":
            self.server.refused.append(f"{code}: {self.path}")
        super().send_error(code, *args)

    def log_message(self, *args) -> None:
        pass


def looked_at(
    site: Path, pages: list[tuple[str, int]], searches: list[str], folder: Path, patience: int = 20_000
) -> tuple[dict, list[str]]:
    """What a browser finds on pages, each `(address, width)`, and in searches; what its console says, what was missing.

    It waits so many milliseconds for what a page draws.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    server.handle_error = lambda *_: None  # a frame that is closed while it still loads
    server.asked = {"pages": pages, "searches": searches, "patience": patience}
    server.found, server.refused, server.is_done = None, [], threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/harness.html"
    flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--remote-debugging-port=0"]
    with (folder / "browser.log").open("w") as log:
        process = subprocess.Popen([browser(), *flags, address], stdout=log, stderr=log)
        try:
            assert server.is_done.wait(300), "the browser has not answered"
        finally:
            process.kill()
            process.wait()
            server.shutdown()
            server.server_close()
    lines = (folder / "browser.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return server.found, [*server.refused, *(line for line in lines if ":CONSOLE" in line)]


def faults(page: dict) -> list[str]:
    """One line for everything that is not as it should be on a page."""
    found = [f"formula not drawn: {text}" for text in page["undrawn"]]
    found += [f"formula not understood: {text}" for text in page["wrong"]]
    found += [f"figure missing: {source}" for source in page["broken"]]
    found += [f"{page['undrawn_diagrams']} diagrams not drawn"] if page["undrawn_diagrams"] else []
    if page["page_width"] > page["width"]:
        found.append(f"{page['page_width']} pixels wide on a screen of {page['width']}: {page['wide']}")
    return [f"{page['address']}: {fault}" for fault in found]


@pytest.fixture(scope="module")
def site() -> Path:
    folder = os.environ.get("LOPJAX_SITE")
    if folder is None:
        pytest.skip("no site: LOPJAX_SITE is not set to the folder of a built one")
    return Path(folder).resolve()


def test_the_site_in_a_browser(site, tmp_path):
    pages = sorted(str(path.relative_to(site)) for path in site.rglob("*.html") if "_static" not in path.parts)
    assert len(pages) > 60
    # Pages of the API are made alike: those of the packages that have formulas or are widest stand for them.
    shown = [page for page in pages if not page.startswith("api/")] + ["api/stability.html", "api/training.html"]
    asked = [(page, width) for page in shown for width in (TELEPHONE, DESK) if width == TELEPHONE or page == shown[0]]
    found, complaints = looked_at(site, asked, list(SEARCHES), tmp_path)
    assert "error" not in found, found["error"]
    assert [fault for page in found["pages"] for fault in faults(page)] == []
    assert complaints == []
    for kind, least in (("formulas", 5), ("figures", 20), ("diagrams", 1)):
        assert sum(page[kind] for page in found["pages"]) >= least, kind
    for search in found["searches"]:
        wanted = SEARCHES[search["words"]]
        assert bool(search["links"]) == (wanted is not None), search
        assert wanted is None or any(wanted in link for link in search["links"]), search


def test_a_page_that_is_broken_is_seen(tmp_path):
    """The control: too wide, a figure and a script that are missing, a script that fails, a formula without MathJax."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "bad.html").write_text(
        '<div style="width:600px">wide</div><img src="nothing.png"><script>throw Error("on purpose")</script>'
        '<pre class="mermaid">flowchart</pre><script>MathJax = {startup: {promise: Promise.resolve()}}</script>'
        '<span class="math">x</span>'
    )
    found, complaints = looked_at(tmp_path / "site", [("bad.html", TELEPHONE)], [], tmp_path, patience=500)
    (page,) = found["pages"]
    text = "\n".join(faults(page))
    for expected in ("formula not drawn: x", "figure missing: .*nothing.png", "1 diagrams not drawn", "600 pixels|608"):
        assert re.search(expected, text), text
    assert any("on purpose" in line for line in complaints)
    assert "404: /nothing.png" in complaints
