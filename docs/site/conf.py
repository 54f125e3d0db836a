"""How Sphinx builds the site, from what pages.py wrote."""

import re
from pathlib import Path

from docutils import nodes
from sphinx.domains.cpp import CPPDomain
from sphinx.util.nodes import make_refnode

version_header = Path(__file__).resolve().parents[3] / "include/xquant/version.hpp"
project = "xquant"
release = ".".join(re.findall(r"#define XQUANT_VERSION_\w+ (\d+)", version_header.read_text()))
extensions = ["myst_parser"]

# The anchors of headings are those that forges make.
myst_heading_anchors = 6
smartquotes = False
highlight_language = "text"
primary_domain = "cpp"
cpp_index_common_prefix = ["xquant::"]
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = f"xquant {release}"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
# The colours of dark mode, which Furo of Debian 12 applies only where a reader chose it by the button. Named here they hold wherever the
# system asks for it, too.
html_theme_options = {
    "dark_css_variables": {
        "color-problematic": "#f47c7c",
        "color-foreground-primary": "#ffffffcc",
        "color-foreground-secondary": "#9ca0a5",
        "color-foreground-muted": "#81868d",
        "color-foreground-border": "#666666",
        "color-background-primary": "#131416",
        "color-background-secondary": "#1a1c1e",
        "color-background-hover": "#1e2124ff",
        "color-background-hover--transparent": "#1e212400",
        "color-background-border": "#303335",
        "color-background-item": "#444",
        "color-brand-primary": "#5aa6f2",
        "color-brand-content": "#5aa6f2",
        "color-highlighted-background": "#083563",
        "color-api-keyword": "var(--color-foreground-secondary)",
        "color-highlight-on-target": "#333300",
    }
}
pygments_style = "friendly"
pygments_dark_style = "one-dark"


class Declarations(CPPDomain):
    """C++ without parameters: who searches for a name wants what is declared."""

    def get_objects(self):
        return (one for one in super().get_objects() if one[2] not in ("functionParam", "templateParam"))


def declarations(env):
    """What a name in code may be called in text, and the declaration that it means."""
    known = {}
    for name, _, kind, page, anchor, _ in env.get_domain("cpp").get_objects():
        if kind == "enumerator":
            continue
        short = name.removeprefix("xquant::")
        known.setdefault(short, (kind, page, anchor))
        # What is done to a cache is called by its verb.
        verb = re.fullmatch(r"Cache::(?:Step::)?([a-z]\w*)", short)
        if verb and kind == "function":
            known.setdefault(verb[1], ("verb", page, anchor))
    return known


def link_code(app, doctree, page):
    """Code in text that names a declaration leads to it: XCache, Options::recent, fork(s, n)."""
    known = getattr(app.env, "xquant_declarations", None)
    if known is None:
        known = app.env.xquant_declarations = declarations(app.env)
    for literal in list(doctree.findall(nodes.literal)):
        if isinstance(literal.parent, (nodes.reference, nodes.title)) or "cpp" in literal.get("classes", []):
            continue
        match = re.fullmatch(r"(?:xquant::|xq::)?([A-Za-z_]\w*(?:::[A-Za-z_]\w*)*)(<.*>)?(\(.*\))?", literal.astext(), re.S)
        if not match or match[1] not in known:
            continue
        kind, there, anchor = known[match[1]]
        called = match[3] is not None or page == "docs/operations"
        if kind == "verb" and not called or kind == "function" and "::" not in match[1] and not called:
            continue
        if kind not in ("verb", "function") and not ("::" in match[1] or match[1][0].isupper()):
            continue
        link = make_refnode(app.builder, page, there, anchor, literal.deepcopy(), match[1])
        literal.replace_self(link)


def bundle_script(app, error):
    """Furo's script imports another one as if it were a module, which it is not in Furo of Debian 12: the button for dark mode and the
    marks in the table of contents would not work. One after the other in one file, they do."""
    scripts = Path(app.outdir) / "_static/scripts"
    if error or not (scripts / "gumshoe-patched.js").is_file():
        return
    script = (scripts / "furo.js").read_text()
    line = 'import Gumshoe from "./gumshoe-patched.js";'
    if line in script:
        other = (scripts / "gumshoe-patched.js").read_text()
        (scripts / "furo.js").write_text(other + script.replace(line, ""))


def setup(app):
    app.add_domain(Declarations, override=True)
    app.connect("doctree-resolved", link_code)
    app.connect("build-finished", bundle_script)
