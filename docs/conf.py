"""Sphinx configuration of the documentation."""

from importlib.metadata import version as package_version

project = "selfpatch"
author = "The selfpatch contributors"
copyright = author
release = version = package_version("selfpatch")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the stored outputs are shown; a test runs the notebooks
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = True
exclude_patterns = ["_build", "jupyter_execute"]

html_theme = "furo"
html_title = "selfpatch"
html_extra_path = ["explore-live.html"]  # written by `selfpatch explore`


SECTIONS = {"Args", "Attributes", "Raises", "Returns", "Yields"}


def mark_algorithms(app, what, name, obj, options, lines):
    """Show the indented algorithms of docstrings as literal blocks."""
    for i, line in enumerate(lines[:-2]):
        indent = len(line) - len(line.lstrip())
        follows = lines[i + 2]
        is_text = line.strip().removesuffix(":") not in SECTIONS and not line.startswith(" ")
        if is_text and line and not lines[i + 1].strip() and len(follows) - len(follows.lstrip()) >= indent + 4:
            lines[i] = line if line.endswith("::") else line.removesuffix(":") + ("::" if line.endswith(":") else " ::")


def setup(app):
    """Register the docstring hook before napoleon's."""
    app.connect("autodoc-process-docstring", mark_algorithms, priority=400)
