"""Configuration of the documentation build."""

from __future__ import annotations

from sphinx.ext.napoleon.docstring import GoogleDocstring

from kvserver import __version__

# A property's docstring is prose; a colon in its first line does not make a type of what stands before it.
GoogleDocstring._parse_attribute_docstring = GoogleDocstring._consume_to_end

project = "kvserver"
author = "The kvserver authors"
version = release = __version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
]
intersphinx_mapping: dict[str, tuple[str, None]] = {}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"kvserver {__version__}"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_class_signature = "separated"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
nitpicky = True
# Types of other packages, and type variables, which have no page of ours to point to.
nitpick_ignore_regex = [
    (r"py:.*", r"(asyncio|collections|typing|types|ssl|os|pathlib|enum|logging|random|pydantic|google|_?ssl)\..*"),
    (
        r"py:.*",
        r"(int|str|bytes|bool|float|object|None|type|tuple|list|dict|set|frozenset|BaseException|TracebackType)",
    ),
    (r"py:.*", r"(Exception|RuntimeError|ValueError|TypeError|TimeoutError|KeyError|OSError|StopAsyncIteration)"),
    (r"py:.*", r".*(_pb2|TypeVar|Callable|Awaitable|Iterable|Mapping|Sequence|AsyncIterator|Path|Model|Json|Format).*"),
    (r"py:.*", r"(.*\.)?_[A-Za-z]+"),
]
