"""Is the site that was built whole? `python docs/check_site.py build/site`: links, anchors, figures, search, formulas.

Sphinx warns of dead links between pages; this looks at what it wrote, as a browser would find it.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SEARCHED = ("tangency_residual", "unit_blocks", "dropout")
"""Words that the search must know: in small letters, as the index has them; a name is one word there."""


class Page(HTMLParser):
    """What a page refers to, what it loads from elsewhere, the anchors that it has, and whether it shows formulas."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.foreign: list[str] = []
        self.anchors: set[str] = set()
        self.has_formula = self.loads_mathjax = False
        self.num_quotes = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect; called for every tag."""
        given = dict(attrs)
        self.anchors |= {given[name] or "" for name in ("id", "name") if name in given}
        self.links += [given[name] or "" for name in ("href", "src") if given.get(name)]
        loaded = given.get("src") or (given.get("href") if given.get("rel") == "stylesheet" else None) or ""
        self.foreign += [loaded] if urlsplit(loaded).netloc else []
        self.num_quotes += tag == "blockquote"
        self.has_formula |= "math" in (given.get("class") or "").split()
        self.loads_mathjax |= tag == "script" and "tex-svg.js" in (given.get("src") or "")


def faults(site: Path) -> list[str]:
    """One line for everything that is not as it should be."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    found = [] if len(pages) > 30 else [f"only {len(pages)} pages"]
    for path, page in pages.items():
        name = path.relative_to(site)
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or address.netloc:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            if not target.exists():
                found.append(f"{name}: nothing at {link}")
            elif address.fragment and target in pages and unquote(address.fragment) not in pages[target].anchors:
                found.append(f"{name}: no anchor {link}")
        found += [f"{name}: loads {link}, which the site does not serve itself" for link in page.foreign]
        # Docstrings quote nobody: what looks like it is a line that is indented by accident.
        if page.num_quotes and name.parts[0] == "api":
            found.append(f"{name}: {page.num_quotes} paragraphs of docstrings are indented")
        if page.has_formula and not page.loads_mathjax:
            found.append(f"{name}: formulas, and nothing that draws them")
    index = (site / "searchindex.js").read_text(encoding="utf-8").lower()
    return [*found, *(f"search: {word!r} is not found" for word in SEARCHED if word not in index)]


if __name__ == "__main__":
    wrong = faults(Path(sys.argv[1]).resolve())
    print("\n".join(wrong) or "the site is whole")
    sys.exit(bool(wrong))
