"""The gallery in sections, and notebooks that run without a checkout.

sphinx-gallery takes its sections from folders, while the examples lie side by side, where their helpers are. So they
are copied to a folder a section before it looks.
"""

from __future__ import annotations

import ast
import base64
import json
import shutil
from pathlib import Path

HERE = Path(__file__).parent
EXAMPLES = HERE.parent
STAGE = HERE / "gallery_sections"

#: Sections, in the order in which a reader may want them: name of the folder, title, what it answers, its examples.
SECTIONS = {
    "start": (
        "Start here",
        "From an escnn network to a verdict.",
        ("five_lines", "symmetry_test", "symmetry_kept", "symmetry_broken"),
    ),
    "meaning": (
        "What a verdict tells",
        "Which symmetry is left, read off kernels and data.",
        ("symmetry_discovery", "layer_spectrum", "anisotropic_diffusion", "translation_or_rotation", "voxels"),
    ),
    "evidence": (
        "The evidence",
        "Checked against exact values, and what else it learns.",
        ("evidence_exact", "learned_noise"),
    ),
    "search": (
        "Searches and other groups",
        "Shares of groups, evolution, and a network that goes on with less symmetry.",
        ("mixed_layers", "searches", "restrict_and_train"),
    ),
    "networks": (
        "In your own code",
        "Training loops, export, and networks as people build them.",
        ("training_loops", "export", "residual_network", "unet", "actor_critic"),
    ),
}
ORDER = [f"plot_{name}.py" for _, _, names in SECTIONS.values() for name in names]


def position(filename: str) -> int:
    """The key of the order within a section."""
    return ORDER.index(Path(filename).name)


def stage() -> None:
    """Copy the examples to a folder for each section; every example stands in one, or this fails."""
    found = sorted(path.name for path in EXAMPLES.glob("plot_*.py"))
    if found != sorted(ORDER):
        raise ValueError(f"each example stands in one section of {__file__}: {set(found) ^ set(ORDER)}")
    shutil.rmtree(STAGE, ignore_errors=True)
    STAGE.mkdir()
    shutil.copy(EXAMPLES / "GALLERY_HEADER.rst", STAGE)
    for folder, (title, text, names) in SECTIONS.items():
        (STAGE / folder).mkdir()
        (STAGE / folder / "GALLERY_HEADER.rst").write_text(f"{title}\n{'-' * len(title)}\n\n{text}\n", encoding="utf-8")
        for name in names:
            shutil.copy2(EXAMPLES / f"plot_{name}.py", STAGE / folder)


# --- notebooks --------------------------------------------------------------------------------------------------------

FIRST = """\
# What the script finds in a checkout: its command line, and processes that can import it (a notebook's cannot).
import concurrent.futures
import pathlib
import sys

sys.argv = ["{name}", "--out", "."]
sys.path.insert(0, ".")
concurrent.futures.ProcessPoolExecutor = lambda count, **options: concurrent.futures.ThreadPoolExecutor(1)
{data}"""

DATA = """
import base64

pathlib.Path("{folder}").mkdir(exist_ok=True)
pathlib.Path("{path}").write_bytes(base64.b64decode("{content}"))
"""


def helpers(source: str, known: tuple[str, ...] = ()) -> list[str]:
    """Names of the files of examples/ that a script imports, and those that these import, each after what it needs."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if (EXAMPLES / f"{name}.py").exists() and name not in (*found, *known):
                inner = helpers((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"), (*known, *found, name))
                found += [*inner, name]
    return found


def files(sources: list[str]) -> list[Path]:
    """The data beside the examples that any of the sources mentions."""
    beside = [*(EXAMPLES / "data").glob("*.npz"), *EXAMPLES.glob("*.jsonl")]
    return [path for path in beside if any(path.name in source for source in sources)]


def complete(path: Path) -> None:
    """Put what the script imports and reads into the notebook, in cells after its title."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    script = EXAMPLES / f"{path.stem}.py"
    modules = helpers(script.read_text(encoding="utf-8"))
    sources = [(EXAMPLES / f"{name}.py").read_text(encoding="utf-8") for name in modules]
    data = ""
    for file in files([script.read_text(encoding="utf-8"), *sources]):
        content = base64.b64encode(file.read_bytes()).decode()
        where = file.relative_to(EXAMPLES)
        data += DATA.format(folder=where.parent.as_posix(), path=where.as_posix(), content=content)
    cells = [FIRST.format(name=script.name, data=data)]
    cells += [f"%%writefile {name}.py\n{source}" for name, source in zip(modules, sources)]
    code = [
        {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": [text]}
        for text in cells
    ]
    text = "## Beside the script\n\nHelpers and data of the examples, written to the folder of this notebook."
    notebook["cells"][1:1] = [{"cell_type": "markdown", "metadata": {}, "source": [text]}, *code]
    path.write_text(json.dumps(notebook, indent=1), encoding="utf-8")


def complete_all(app: object = None) -> None:
    """After sphinx-gallery wrote its notebooks and before Sphinx copies them for download."""
    for path in sorted((HERE / "gallery").rglob("plot_*.ipynb")):
        if "Beside the script" not in path.read_text(encoding="utf-8"):
            complete(path)
