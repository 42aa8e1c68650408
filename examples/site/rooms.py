"""The pages of the interface, one a room, written from the packages' own lists of public names and files."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import escnn_relax

ROOT = Path(escnn_relax.__file__).parent

#: The rooms with what they hold, in the order in which a reader meets them.
ROOMS = {
    "nn": "layers that may break their symmetry",
    "diagnosis": "which layer breaks which symmetry, before anything is trained",
    "morphism": "from module to module",
    "evidence": "the log marginal likelihood, and the verdicts that it gives",
    "training": "weights and prior precisions together",
    "search": "architecture searches",
    "report": "what each layer learned",
    "symmetry": "subgroups, kernels by irrep, measured equivariance",
    "curvature": "the Gauss–Newton curvature by BackPACK",
    "errors": "what is raised",
}


def title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n"


def section(text: str) -> str:
    return f"\n{text}\n{'-' * len(text)}\n"


def entry(path: str) -> str:
    """The directive that documents one name, by its public path."""
    module, _, name = path.rpartition(".")
    thing = getattr(importlib.import_module(module), name)
    kind = "class" if inspect.isclass(thing) else "function"
    options = "   :members:\n   :show-inheritance:\n" if kind == "class" else ""
    return f"\n.. auto{kind}:: {path}\n{options}"


def module_text(dotted: str) -> str:
    """The docstring of a module; without an anchor where a function of the same name has it."""
    package, _, name = dotted.rpartition(".")
    taken = callable(getattr(importlib.import_module(package), name, None))
    return f"\n.. automodule:: {dotted}\n" + ("   :no-index:\n" if taken else "")


def defined(path: Path) -> list[str]:
    """Public classes and functions of a file, in its order."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    return [n.name for n in nodes if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and not n.name.startswith("_")]


def top() -> str:
    """The names that ``import escnn_relax`` gives."""
    text = title("escnn_relax") + "\n.. automodule:: escnn_relax\n"
    return text + "".join(entry(f"escnn_relax.{name}") for name in escnn_relax.__all__)


def room(name: str) -> str:
    """A room's public names first, then file by file what else it holds."""
    package = importlib.import_module(f"escnn_relax.{name}")
    text = title(f"{name}: {ROOMS[name]}") + module_text(f"escnn_relax.{name}")
    public = list(getattr(package, "__all__", ())) if (ROOT / name).is_dir() else []
    shown = {id(getattr(escnn_relax, n)) for n in escnn_relax.__all__}
    for n in public:
        thing = getattr(package, n)
        if id(thing) in shown:
            text += f"\n:py:obj:`escnn_relax.{n}` is described among the names of the package.\n"
        else:
            text += entry(f"escnn_relax.{name}.{n}")
        shown.add(id(thing))
    files = sorted((ROOT / name).rglob("[!_]*.py")) if (ROOT / name).is_dir() else [ROOT / f"{name}.py"]
    for path in files:
        dotted = ".".join(["escnn_relax", *path.relative_to(ROOT).with_suffix("").parts])
        module = importlib.import_module(dotted)
        if path.parent != ROOT:
            text += section(dotted) + module_text(dotted)
        text += "".join(entry(f"{dotted}.{n}") for n in defined(path) if id(getattr(module, n)) not in shown)
    return text


def write(folder: Path) -> None:
    """All pages, into ``folder``; a page that has not changed is left as it is, so that Sphinx need not read it
    again."""
    folder.mkdir(exist_ok=True)
    pages = {"escnn_relax": top(), **{name: room(name) for name in ROOMS}}
    table = "".join(f"   {name}\n" for name in pages)
    pages["index"] = title("Interface") + "\n.. toctree::\n   :maxdepth: 1\n\n" + table
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
