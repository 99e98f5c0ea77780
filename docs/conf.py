"""Sphinx configuration of the documentation."""

from importlib.metadata import version as package_version

project = "selfpatch"
author = "The selfpatch contributors"
copyright = author
release = version = package_version("selfpatch")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
napoleon_google_docstring = True
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "selfpatch"
