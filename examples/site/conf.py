"""The documentation. ``make docs`` builds it into examples/output/site without a network; see there for the
variables."""

import os
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLES, ROOT = HERE.parent, HERE.parents[1]
sys.path[:0] = [str(HERE), str(EXAMPLES), str(ROOT)]
warnings.filterwarnings("ignore", message="`py3nj` package not found")  # escnn does without it

import escnn_relax  # noqa: E402
import rooms  # noqa: E402

project = "escnn_relax"
author = "the authors of escnn_relax"
release = version = escnn_relax.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "myst_parser",
    "mathml",
]
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "escnn_relax"
html_copy_source = False
smartquotes = False  # or the double hyphens of options become dashes
exclude_patterns = ["gallery/*.ipynb", "gallery/*.py", "gallery/*.zip", "gallery/*.md5", "gallery/*.json"]
napoleon_use_ivar = True  # or attributes that are properties, too, are described twice
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
suppress_warnings = ["config.cache", "ref.python", "myst.xref_missing", "myst.header"]


sphinx_gallery_conf = {
    "examples_dirs": [str(EXAMPLES)],
    "gallery_dirs": ["gallery"],
    "plot_gallery": os.environ.get("GALLERY") != "no",
    "filename_pattern": os.environ.get("ONLY") or r"/plot_",
    "ignore_pattern": r"^(?!plot_)",  # matched with the bare name
    "within_subsection_order": "FileNameSortKey",
    "nested_sections": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
    "write_computation_times": False,
    "abort_on_example_error": True,
    "matplotlib_animations": False,
    "reset_argv": "running.arguments",
}

rooms.write(HERE / "api")
