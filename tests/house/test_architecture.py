"""The house rules that can be read off the sources: imports descend, escnn's inside is reached in one place only."""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "escnn_relax"
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).rglob("*.py"))
FRONT_DOOR = f"{PACKAGE}/__init__.py"
#: What reaches inside escnn: to read it, and to mend it once.
ADAPTERS = (f"{PACKAGE}/_escnn.py", f"{PACKAGE}/_escnn_repairs.py")

#: The rooms, low to high. A file may import from its own room and from those before it.
ROOMS = (
    *(
        "errors",
        "former_names",
        "deprecation",
        "former_modules",
        "_clebsch_gordan",
        "_wigner",
        "_escnn",
        "_escnn_repairs",
    ),
    *("symmetry", "nn", "morphism", "curvature", "diagnosis"),
    *("evidence", "training", "search", "report", "__main__"),
)

#: Rooms within rooms, low to high likewise; files beside them may import from all of them.
INNER_ROOMS = {
    "symmetry": ("groups", "grid", "kernels", "equivariance"),
    "curvature": ("layers", "factors", "sums"),
    "morphism": ("restrict", "harden"),
}


#: Private names of torch's modules that ours have too.
OF_TORCH = {"_buffers", "_modules", "_parameters"}
#: Private names of layers and subgroups that other files still reach for.
OPEN = {"_as_filter", "_expanded", "_geometry", "_kernel_fields", "_members", "_strict"}


def imported(source: str, path: str) -> list[tuple[int, str]]:
    """Line and full dotted name of whatever a file imports, wherever in the file it does."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    return [(node.lineno, name) for node in nodes for name in of_node(node, path)]


def of_node(node: ast.Import | ast.ImportFrom, path: str) -> list[str]:
    """Full dotted names that one import statement brings in."""
    origin = []
    if isinstance(node, ast.ImportFrom):
        above = path.split("/")[:-1]
        origin = above[: len(above) - node.level + 1] if node.level else []
        origin = origin + node.module.split(".") if node.module else origin
    return [".".join([*origin, alias.name]) for alias in node.names]


def ascents(source: str, path: str) -> list[str]:
    """Imports that do not descend, in words; ``path`` as in ``escnn_relax/nn/relaxed.py``."""
    room = path.split("/")[1].removesuffix(".py")
    if room not in ROOMS:
        return [f"{path} is in no known room: give {room} its place in ROOMS"]
    faults = []
    for line, name in imported(source, path):
        parts = name.split(".")
        if parts[0] != PACKAGE:
            continue
        if len(parts) == 1 or parts[1] not in ROOMS:
            faults.append(f"{path}:{line} imports from the package itself, which stands above every room")
        elif ROOMS.index(parts[1]) > ROOMS.index(room):
            faults.append(f"{path}:{line} imports {parts[1]}, which stands above {room}")
        elif parts[1] == room:
            inner, here = INNER_ROOMS.get(room, ()), path.split("/")[2]
            if here in inner and parts[2] in inner and inner.index(parts[2]) > inner.index(here):
                faults.append(f"{path}:{line} imports {room}/{parts[2]}, which stands above {room}/{here}")
    return faults


def intrusions(source: str, path: str) -> list[str]:
    """Imports of escnn's private names, in words."""
    private = [(line, name) for line, name in imported(source, path) if name.startswith("escnn.") and "._" in name]
    return [f"{path}:{line} imports {name}: reach it through _escnn.py" for line, name in private]


def private_names(source: str) -> set[str]:
    """The private names that a file defines: functions, classes, fields, and what it sets on ``self`` or ``cls``."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    stores = [n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
    names = {n.attr for n in stores if isinstance(n.value, ast.Name) and n.value.id in ("self", "cls")}
    names |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    names |= {n.target.id for n in nodes if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def trespasses(source: str, path: str, ours: set[str]) -> list[str]:
    """Private names of another file's objects that a file reaches for, in words, as in ``evidence._spectrum``."""
    foreign = ours - private_names(source) - OF_TORCH - OPEN
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute) and n.attr in foreign]
    others = [n for n in nodes if not (isinstance(n.value, ast.Name) and n.value.id in ("self", "cls"))]
    return [f"{path}:{n.lineno} reaches for {ast.unparse(n)}: give it a public name" for n in others]


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_there_are_sources_to_check():
    assert {FRONT_DOOR, *ADAPTERS} <= set(SOURCES)


@pytest.mark.parametrize("path", [path for path in SOURCES if path != FRONT_DOOR])
def test_imports_descend(path):
    assert ascents(read(path), path) == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path not in ADAPTERS])
def test_only_the_adapter_reaches_inside_escnn(path):
    assert intrusions(read(path), path) == []


@pytest.fixture(scope="module")
def ours() -> set[str]:
    names = set[str]().union(*(private_names(read(path)) for path in SOURCES if path not in ADAPTERS))
    assert "_spectrum" in names
    return names


@pytest.mark.parametrize("path", [path for path in SOURCES if path not in ADAPTERS])
def test_private_names_stay_in_their_file(path, ours):
    assert trespasses(read(path), path, ours) == []


@pytest.mark.parametrize("path", ADAPTERS)
def test_adapters_load_without_escnn(path):
    """They have to say what is missing, so nothing at their top level may import what may be missing."""
    tops = ast.parse(read(path)).body
    names = [name for node in tops if isinstance(node, (ast.Import, ast.ImportFrom)) for name in of_node(node, path)]
    outside = {name.split(".")[0] for name in names if not name.startswith(f"{PACKAGE}.errors.")}
    assert outside <= set(sys.stdlib_module_names)


PUBLIC = [path for path in SOURCES if path.endswith("__init__.py") or not Path(path).name.startswith("_")]


@pytest.mark.parametrize("path", PUBLIC)
def test_public_modules_say_what_they_are(path):
    assert ast.get_docstring(ast.parse(read(path))), f"{path} has no docstring"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("escnn_relax/morphism/relax.py", "from ..curvature import factors"),
        ("escnn_relax/morphism/relax.py", "from escnn_relax.evidence.prior import Prior"),
        ("escnn_relax/nn/relaxed_convolution.py", "from .. import evidence"),
        ("escnn_relax/nn/relaxed_convolution.py", "from .. import relax"),
        ("escnn_relax/nn/deep/relaxed.py", "from ...report import report"),
        ("escnn_relax/symmetry/grid/sites.py", "from ..kernels.graded import GradedKernels"),
        ("escnn_relax/symmetry/kernels/sampling.py", "def late():\n    from escnn_relax.nn import RelaxedR2Conv"),
        ("escnn_relax/symmetry/__init__.py", "if TYPE_CHECKING:\n    import escnn_relax.search.evolution.evolve as e"),
        ("escnn_relax/errors.py", "from . import _escnn"),
        ("escnn_relax/training/fit.py", "import escnn_relax"),
        ("escnn_relax/attic/old.py", "import math"),
    ],
)
def test_checker_flags_ascents(path, source):
    assert len(ascents(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "escnn_relax/nn/relaxed_convolution.py",
            "from .. import _escnn\nfrom ..symmetry.kernels.sampling import Band\nfrom .expand import x",
        ),
        ("escnn_relax/nn/__init__.py", "from .relaxed import RelaxedR2Conv"),
        ("escnn_relax/report/table.py", "from ..evidence import Evidence\nimport escnn_relax.search.evolution.evolve"),
        ("escnn_relax/_escnn.py", "from .errors import InstallationError\nimport escnn.nn"),
    ],
)
def test_checker_lets_descents_pass(path, source):
    assert ascents(source, path) == []


def test_checker_flags_intrusions():
    inside = "from escnn.group import _numerical\nimport escnn.group._clebsh_gordan\nfrom escnn.nn import R2Conv"
    assert len(intrusions(inside, "escnn_relax/nn/relaxed_convolution.py")) == 2


def test_checker_flags_trespasses(ours):
    inside = "def late(evidence):\n    return evidence._spectrum, evidence.spectrum, evidence._replace()"
    assert len(trespasses(inside, "escnn_relax/report.py", ours)) == 1
    own = "class Evidence:\n    def __init__(self, other):\n        self._spectrum = other._spectrum"
    assert trespasses(own, "escnn_relax/evidence/evidence.py", ours) == []


def descends(source: str) -> bool:
    """Whether a file calls a method ``backward``; examples in docstrings do not count."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return any(isinstance(function, ast.Attribute) and function.attr == "backward" for function in calls)


def test_one_loop_descends():
    """``fit`` and both searches train by the same loop over batches."""
    rooms = [path for path in SOURCES if path.split("/")[1] in ("training", "search")]
    assert [path for path in rooms if descends(read(path))] == ["escnn_relax/training/epochs.py"]
    assert descends("def f(x):\n    x.sum().backward()") and not descends('"""loss.backward()"""')


def circle(sources: dict[str, str]) -> list[str]:
    """Files that import each other in a circle, imports for type checkers included; none is an empty list."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}

    def file(name: str) -> str | None:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return modules.get(name)

    graph = {path: {file(name) for _, name in imported(text, path)} - {None, path} for path, text in sources.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_nothing_imports_in_a_circle():
    # the package's front door and the rooms' stand above their files, and are imported for their names
    assert circle({path: read(path) for path in SOURCES if not path.endswith("__init__.py")}) == []


def test_a_circle_is_found():
    circular = {
        "escnn_relax/nn/a.py": "from .b import B",
        "escnn_relax/nn/b.py": "if TYPE_CHECKING:\n    from .a import A",
        "escnn_relax/nn/c.py": "from .a import A",
    }
    assert set(circle(circular)) == {"escnn_relax/nn/a.py", "escnn_relax/nn/b.py"}
    assert circle(circular | {"escnn_relax/nn/b.py": "import math"}) == []
