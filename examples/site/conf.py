"""The documentation. ``make docs`` builds it into examples/output/site without a network; see there for the
variables."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXAMPLES, ROOT = HERE.parent, HERE.parents[1]
sys.path[:0] = [str(HERE), str(EXAMPLES), str(ROOT)]
warnings.filterwarnings("ignore", message="`py3nj` package not found")  # escnn does without it

import escnn_relax  # noqa: E402
import sections  # noqa: E402
import rooms  # noqa: E402

project = "escnn_relax"
author = "the authors of escnn_relax"
html_show_copyright = False
release = version = escnn_relax.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "myst_parser",
    "mathml",
    "back_links",
]
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "escnn_relax"
html_copy_source = False
html_static_path = ["look"]
html_css_files = ["site.css"]
html_js_files = ["keyboard.js"]
pygments_dark_style = "github-dark"
smartquotes = False  # or the double hyphens of options become dashes
exclude_patterns = ["gallery_sections", *(f"gallery/**.{end}" for end in ("ipynb", "py", "zip", "md5", "json"))]
napoleon_use_ivar = True  # or attributes that are properties, too, are described twice
autosummary_generate = False  # rooms.py writes the pages
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
suppress_warnings = ["autosummary.import_cycle", "config.cache", "ref.python", "myst.xref_missing", "myst.header"]


sphinx_gallery_conf = {
    "examples_dirs": [str(sections.STAGE)],
    "gallery_dirs": ["gallery"],
    "plot_gallery": os.environ.get("GALLERY") != "no",
    "filename_pattern": os.environ.get("ONLY") or r"/plot_",
    "ignore_pattern": r"^(?!plot_)",  # matched with the bare name
    "subsection_order": [f"{sections.STAGE.name}/{folder}" for folder in sections.SECTIONS],
    "within_subsection_order": "sections.position",
    "nested_sections": False,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_signature": False,
    "write_computation_times": False,
    "abort_on_example_error": True,
    "matplotlib_animations": False,
    "reset_argv": "running.arguments",
    "reset_modules": ("matplotlib", "running.forget"),
}

sections.stage()
rooms.write(HERE / "api")


def setup(app: Any) -> None:
    app.connect(
        "builder-inited", sections.complete_all, priority=900
    )  # after sphinx-gallery, which writes the notebooks
