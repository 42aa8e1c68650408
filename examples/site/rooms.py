"""The pages of the interface: one table of all public names by task, and a page for each room."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import escnn_relax

#: The rooms with what they hold, in the order in which a reader meets them.
ROOMS = {
    "diagnosis": "which layer breaks which symmetry, before anything is trained",
    "morphism": "from module to module",
    "training": "weights and prior precisions together",
    "evidence": "the log marginal likelihood, and the verdicts that it gives",
    "report": "what each layer learned",
    "nn": "layers that may break their symmetry",
    "search": "architecture searches",
    "symmetry": "subgroups, and measured equivariance",
    "curvature": "the Gauss–Newton curvature by BackPACK",
    "errors": "what is raised",
}
#: Parts of a room with public names of their own.
PARTS = {"curvature": ["curvature.likelihood"]}


def title(text: str, line: str = "=") -> str:
    return f"{text}\n{line * len(text)}\n"


def public(name: str) -> dict[str, object]:
    """The public names of a room, by their path: the shortest one that a user can import from."""
    found: dict[str, object] = {}
    short = {n: getattr(escnn_relax, n) for n in escnn_relax.__all__}
    of_room = lambda thing: str(getattr(thing, "__module__", "")).split(".")[1:2] == [name]
    found |= {f"escnn_relax.{n}": thing for n, thing in short.items() if of_room(thing)}
    for dotted in (name, *PARTS.get(name, [])):
        module = importlib.import_module(f"escnn_relax.{dotted}")
        things = {n: getattr(module, n) for n in getattr(module, "__all__", ())}
        if name == "errors":
            things = {n: thing for n, thing in things.items() if inspect.isclass(thing)}
        known = {id(thing) for thing in (*found.values(), *short.values())}
        found |= {f"{module.__name__}.{n}": thing for n, thing in things.items() if id(thing) not in known}
    return found


def entry(path: str, thing: object) -> str:
    """The directive that documents one name, by its public path."""
    kind = "class" if inspect.isclass(thing) else "function" if callable(thing) else "data"
    options = "   :members:\n   :show-inheritance:\n" if kind == "class" else ""
    return f"\n.. auto{kind}:: {path}\n{options}"


def summary(names: dict[str, object]) -> str:
    """A table of names, each with the first line of its docstring."""
    return "\n.. autosummary::\n   :nosignatures:\n\n" + "".join(f"   ~{path}\n" for path in names)


def room(name: str) -> str:
    """A room's public names: the table, then each of them."""
    names = public(name)
    text = title(f"{name}: {ROOMS[name]}") + f"\n.. automodule:: escnn_relax.{name}\n   :no-index:\n" + summary(names)
    return text + "".join(entry(path, thing) for path, thing in names.items())


def index() -> str:
    """All rooms, each with its table."""
    text = title("API") + "\nWhat ``import escnn_relax`` gives, and what its rooms have besides, by task.\n"
    for name, holds in ROOMS.items():
        text += (
            "\n"
            + title(f"{holds[0].upper()}{holds[1:]}", "-")
            + f"\n:doc:`escnn_relax.{name} <{name}>`\n"
            + summary(public(name))
        )
    return text + "\n.. toctree::\n   :hidden:\n\n" + "".join(f"   {name}\n" for name in ROOMS)


def write(folder: Path) -> None:
    """All pages, into ``folder``; a page that has not changed is left as it is, so that Sphinx need not read it
    again."""
    pages = {name: room(name) for name in ROOMS} | {"index": index()}
    missing = {f"escnn_relax.{n}" for n in escnn_relax.__all__} - {path for name in ROOMS for path in public(name)}
    if missing:
        raise ValueError(f"public names that no room of {__file__} has: {sorted(missing)}")
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
