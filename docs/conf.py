"""Sphinx configuration: `make docs` builds the pages of this folder into build/docs."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import jupytext
from docutils import nodes
from latex2mathml.converter import convert
from myst_parser.parsers.sphinx_ import MystParser
from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import worldmodel  # noqa: E402

project = "worldmodel"
author = "The worldmodel authors"
copyright = f"2026, {author}"
version = release = worldmodel.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["conf.py"]

html_theme = "furo"
html_math_renderer = "mathml"  # below; browsers draw it without a script, so pages need no connection
pygments_dark_style = "monokai"
html_title = f"worldmodel {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a notebook may start with a second-level heading after its front matter
copybutton_exclude = ".linenos, .gp, .go"

default_role = "code"  # docstrings write names in single backquotes
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_mock_imports = [
    name for name in ("stable_baselines3", "tensordict", "torchrl") if importlib.util.find_spec(name) is None
]
napoleon_numpy_docstring = False
napoleon_use_rtype = False
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"(?!worldmodel\.).*"),  # names of other libraries, and type aliases
    (
        "py:class",
        r"worldmodel\..*\.(EpisodeEncoder|TrainingData|Model|V|R|P)",
    ),  # protocols and type variables, not exported
]


class Notebook(MystParser):
    """A page from a notebook that is kept as a Python file in the percent format; its code is not executed."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Parse a notebook as the Markdown page that jupytext makes of it."""
        notebook = jupytext.reads(inputstring, fmt="py:percent")
        super().parse(jupytext.writes(notebook, fmt="md"), document)


class PublicNames(SphinxDirective):
    """A list of links to the names that ``worldmodel`` itself exports."""

    def run(self) -> list[nodes.Node]:
        """Return one paragraph of links; each leads to the page of the package that defines the name."""
        names = sorted(worldmodel.__all__, key=str.lower)
        return self.parse_text_to_nodes(", ".join(f":py:obj:`~worldmodel.{name}`" for name in names) + ".")


def resolve_public_name(app: Sphinx, env: Any, node: nodes.Element, content: nodes.Element) -> nodes.Element | None:
    """Link a class by the package that exports it; annotations name the module that defines it."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target:
        return None
    python = env.get_domain("py")
    homes = [name for name in python.objects if name.split(".")[-1] == target.split(".")[-1] and name.count(".") == 2]
    if not homes:
        return None
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", homes[0], node, content)


def visit_math(self: Any, node: nodes.Element) -> None:
    """Write mathematics as MathML."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    spaced = re.sub(r"\\(log|det|tanh) ", r"\\\1\,", node.astext())
    self.body.append(convert(spaced, display=display))
    raise nodes.SkipNode


def escape_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape the star of (N, *shape), which is no emphasis, and the letter of "hidden_size: H.", which numbers no list."""
    lines[:] = [re.sub(r"(?<=[(\s])\*(?=\w[^*]*$)", r"\\*", line) for line in lines]
    lines[:] = [re.sub(r"^(\s*(?::\w+ [^:]+:)?\s+)(?=[A-Za-z]\.(\s|$))", r"\1\\", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Register notebooks as sources, and links to public names."""
    app.add_source_suffix(".py", "notebook")
    app.add_source_parser(Notebook)
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.add_lexer("levels", TextLexer)
    app.add_directive("public-names", PublicNames)
    app.connect("missing-reference", resolve_public_name)
    app.connect("autodoc-process-docstring", escape_docstring)
