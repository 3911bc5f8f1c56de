"""How Sphinx makes a site of these pages: `make docs`, in which every warning is an error.

The front page is README, whose links are from another folder.  The API reference is made of docstrings, which are
plain text with a form of their own; `docstring_as_rst` is what Sphinx is given of them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import django.conf  # noqa: E402

import raftsvc  # noqa: E402

django.conf.settings.configure()  # else none of what stands on it can be looked at

project = "raftsvc"
author = "raftsvc contributors"
copyright = author  # noqa: A001 - the name is Sphinx's
version = release = raftsvc.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
smartquotes = False
# A fence whose language only some know is shown as it is.
suppress_warnings = ["misc.highlighting_failure"]
autodoc_default_options = {"show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 90
add_module_names = False

html_theme = "furo"
html_title = f"raftsvc {version}"
html_static_path: list[str] = []
html_copy_source = False
html_show_sphinx = False

PUBLIC = ("raftsvc", "raftsvc.kv", "raftsvc.recipes", "raftsvc.web", "raftsvc.rescue", "raftsvc.testing")
"""Modules all of whose `__all__` is in the reference."""

PARAMETER = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*):(?: +(\S.*))?$")


PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "vulnerabilities.md"}
"""What stands at the top of the repository, and the page that includes it."""


def from_here(text: str) -> str:
    """A page of the top of the repository with links as seen from this folder."""
    text = re.sub(r"\]\((?!https?:|#|docs/)", "](../", text)
    return text.replace("](docs/", "](")


def is_folder(link: str) -> bool:
    """Whether it leads to one, of which a site has no page."""
    return (ROOT / "docs" / link).is_dir()


def read_source(app: Any, name: str, source: list[str]) -> None:
    """Put in what a page includes from the top, and have links lead to pages of the site."""
    for path, page in PAGES.items():
        if page == f"{name}.md":
            line = f"```{{include}} ../{path}\n```\n"
            assert line in source[0]
            app.env.note_dependency(str(ROOT / path))
            source[0] = source[0].replace(line, from_here((ROOT / path).read_text()))
    source[0] = re.sub(
        r"\[([^]]*)\]\((\.\./[^)#:]*)\)", lambda link: link[1] if is_folder(link[2]) else link[0], source[0]
    )
    for path, page in PAGES.items():
        source[0] = re.sub(rf"\]\(\.\./{re.escape(path)}(#[^)]*)?\)", rf"]({page}\1)", source[0])


def inline(text: str) -> str:
    """Words, of which those in backticks are code, and nothing else means anything."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return re.sub(r"([\\*_|`])", r"\\\1", text)
    return "".join(
        f"``{' '.join(part.split())}``" if number % 2 and part.strip() else re.sub(r"([\\*_|])", r"\\\1", part)
        for number, part in enumerate(parts)
    )


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Lines between blank ones; a parameter, or an item of a list, begins another."""
    found: list[str] = []
    for number, line in enumerate(lines):
        begins = (number > 0 and PARAMETER.match(line)) or line.startswith("- ")
        if (not line.strip() or begins) and found:
            yield found
            found = []
        if line.strip():
            found.append(line)
    if found:
        yield found


def docstring_as_rst(lines: list[str]) -> list[str]:
    """The same for docutils: parameters as a list, what is indented as code."""
    made: list[str] = []
    for number, found in enumerate(paragraphs(lines)):
        first, rest = found[0], found[1:]
        parameter = PARAMETER.match(first) if number else None
        if first.startswith("    "):
            made += ["::", "", *found] if number == 0 or not made or made[-2:] != ["<code>", ""] else found
            made += ["<code>", ""]
        elif parameter:
            words = " ".join([parameter[2] or "", *(line.strip() for line in rest)]).strip()
            names = ", ".join(f"``{name}``" for name in parameter[1].split(", "))
            made += [f"- {names}: {inline(words)}", ""]
        elif first.startswith("- "):
            made += ["- " + inline(" ".join([first[2:], *(line.strip() for line in rest)])), ""]
        else:
            made += [inline(" ".join(line.strip() for line in found)), ""]
    return [line for line in made if line != "<code>"]


def process_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's hook."""
    lines[:] = docstring_as_rst(lines)


def skip_member(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """What a NamedTuple says of its fields by itself says nothing."""
    return True if type(thing).__name__ == "_tuplegetter" else None


def check_names(app: Any, exception: Exception | None) -> None:
    """Fail if a public name is not in the reference."""
    if exception is not None or app.builder.name != "html":
        return
    known = set(app.env.get_domain("py").objects)
    missing = [
        f"{module}.{name}"
        for module in PUBLIC
        for name in import_module(module).__all__
        if f"{module}.{name}" not in known
    ]
    if missing:
        raise RuntimeError(f"not in docs/reference.md: {', '.join(missing)}")


def setup(app: Any) -> None:
    """Sphinx's hook."""
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("build-finished", check_names)
