"""The documentation's site: `python -m sphinx -W --keep-going docs build/site`, then open `build/site/index.html`.

Pages are the Markdown of this folder, as on the forge. Two kinds are written when the site is built, and not kept:
`docs/api/`, one page for each public package, from its docstrings; and `docs/tutorials/`, the notebooks. These show
their output where `LOPJAX_NOTEBOOKS` names a folder of executed ones, as in `.ci/run`, and none otherwise.
"""

import html
import importlib.util
import os
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import public_names
import reference_pages
from docutils import nodes
from docutils.parsers.rst import Directive

import lopjax
from theory_checks import paper


def script(package: str, *path: str) -> str:
    """A script that a package brings along, which is not imported."""
    return str(Path(importlib.util.find_spec(package).origin).parent.joinpath(*path))


project = "lopjax"
author = "The lopjax authors"
copyright = author
version = release = lopjax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["**.ipynb_checkpoints"]
html_theme = "furo"
html_title = f"lopjax {release}"
html_show_sphinx = False
# Formulas and diagrams are drawn by scripts of the site itself, so it also opens where nothing else can be reached.
html_static_path = [
    "style.css",
    script("mathjax", "static", "mathjax", "es5", "tex-svg.js"),
    script("mermaidx", "assets", "mermaid.js"),
]
html_css_files = ["style.css"]
html_show_sourcelink = False
mathjax_path = "tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}

# The forge makes a link of every heading; so does the site, by the same rule. Mermaid is a fence on both.
myst_heading_anchors = 4
myst_enable_extensions = ["amsmath", "dollarmath", "deflist"]
myst_fence_as_directive = ["mermaid"]
# Links to code lead to the file in the checkout that the site was built from.
suppress_warnings = ["myst.header"]
nb_execution_mode = "off"

napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
maximum_signature_line_length = 90
autodoc_default_options = {"members": True, "undoc-members": True}


class Mermaid(Directive):
    """A diagram: a fence on the forge, drawn by the page's script here."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """The text of the diagram, for the script to find."""
        return [nodes.raw("", f'<pre class="mermaid">{html.escape(chr(10).join(self.content))}</pre>', format="html")]


def draw_diagrams(app, pagename, templatename, context, doctree) -> None:
    """Load the script that draws diagrams on pages that have one."""
    if doctree is not None and any('class="mermaid"' in node.astext() for node in doctree.findall(nodes.raw)):
        app.add_js_file("mermaid.js")
        app.add_js_file(None, body="mermaid.initialize({startOnLoad: true, theme: 'neutral'})")


def write_pages(app) -> None:
    """The pages of the API reference, of the notebooks, and of the paper's claims."""
    paper.write(HERE)
    changes = (HERE.parent / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    (HERE / "changelog.md").write_text(changes, encoding="utf-8")
    api, tutorials = HERE / "api", HERE / "tutorials"
    for folder in (api, tutorials):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    reference_pages.write(api)
    notebooks = os.environ.get("LOPJAX_NOTEBOOKS", HERE.parent / "notebooks")
    for notebook in Path(notebooks).glob("*.ipynb"):
        shutil.copy(notebook, tutorials)


def keep_links_inside(app, name: str, source: list[str]) -> None:
    """The changelog lies beside this folder; on the site it is a page like the others."""
    source[0] = re.sub(r"\]\((?:\.\./)+CHANGELOG\.md", f"]({'../' * name.count('/')}changelog.md", source[0])


def escape_plain_text(app, what, name, obj, options, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks: stars, bars and trailing underscores are no markup in them.

    Examples (`>>>`) and blocks of code are left alone, as is what is in backticks.
    """
    lines[:] = reference_pages.escaped(lines)


def skip_fields_said_above(app, what, name, obj, skip, options) -> bool | None:
    """Fields of a NamedTuple that have no text of their own are explained in the docstring of their class."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def require_every_name(app, env) -> None:
    """A public name without an entry is a warning, and with `-W` an error."""
    from sphinx.util import logging

    entries = env.get_domain("py").objects
    for name in public_names.missing(entries):
        logging.getLogger(__name__).warning("the API reference has no entry for %s", name)


def setup(app) -> dict[str, bool]:
    """Connect the above."""
    app.add_directive("mermaid", Mermaid)
    app.connect("html-page-context", draw_diagrams)
    app.connect("builder-inited", write_pages)
    app.connect("source-read", keep_links_inside)
    # Before napoleon turns sections into markup.
    app.connect("autodoc-process-docstring", escape_plain_text, priority=400)
    app.connect("autodoc-skip-member", skip_fields_said_above)
    app.connect("env-check-consistency", require_every_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
