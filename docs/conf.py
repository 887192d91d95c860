"""How Sphinx builds the site: ``tox run -e docs``, or ``sphinx-build -W -n docs docs/_build``."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

import valued  # noqa: E402

_metadata = configparser.ConfigParser()
_metadata.read(ROOT / "setup.cfg", "utf-8")

#: Where the project lives. ``setup.cfg`` has it; until there is a public address, a placeholder.
PROJECT_URL = _metadata["metadata"]["url"]

project = "valued-client"
author = "the authors of valued-client"
copyright = f"2026, {author}"
version = release = valued.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.extlinks",
    "sphinx_copybutton",
    "valued_docs",
]
exclude_patterns = ["_build", "explanation/cost/*"]
default_role = "py:obj"
nitpicky = True
highlight_language = "python"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
smartquotes = False

# `:source:` leads to a file of the repository.
extlinks = {"source": (f"{PROJECT_URL}/blob/main/%s", "%s")}
extlinks_detect_hardcoded_links = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "undoc-members": False}
python_maximum_signature_line_length = 88  # one parameter a line above it

# Names that are imported when they are first used say where they belong from then on.
for _name in valued.__all__:
    getattr(valued, _name)

# Integrations are named after the package that they import.
_frameworks = [path.stem for path in sorted((ROOT / "valued" / "integrations").glob("[!_]*"))]

# What is not on this site. The build has no network, so there is no intersphinx.
nitpick_ignore_regex = [
    # The standard library, also as annotations name it.
    (r"py:.*", r"(collections\.abc|concurrent\.futures|typing|os|contextlib)(\..*)?"),
    (r"py:class", r"AbstractContextManager|PathLike|types\.\w+"),
    # Built-in names in single backticks, such as `ValueError`.
    (r"py:obj", r"\w+Error|None|True|False"),
    # Dependencies and frameworks.
    (r"py:.*", rf"({'|'.join(['requests', *_frameworks])})\..*"),
    (r"py:class", r"(_typeshed\.wsgi\.)?(WSGIApplication|WSGIEnvironment|StartResponse)"),
    # Private: a type variable, and the live views that `valued.Scope` describes as mappings.
    (r"py:class", r"valued\._scope\.T|valued\._scopes\.data\.Fields"),
    # The ASGI aliases of an integration: plain callables and mappings.
    (r"py:class", r"Application|Receive|Send|Message|PageViews"),
]

# `$ ` is not copied.
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True

# Inner links only: the build needs no network.
linkcheck_ignore = [r"https?://.*"]

html_theme = "furo"
html_title = "valued-client"
html_static_path = ["_static"]
html_css_files = ["valued.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "source_view_link": f"{PROJECT_URL}/blob/main/docs/{{filename}}",
    "source_edit_link": f"{PROJECT_URL}/edit/main/docs/{{filename}}",
}
