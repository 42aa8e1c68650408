"""Type hints: the package passes a strict checker, users of it see its types, and a wheel carries them."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import escnn_relax

ROOT = Path(__file__).parents[2]

USER = """
from pathlib import Path

import torch
from escnn import gspaces
from escnn import nn as enn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import escnn_relax
from escnn_relax import Evidence, EvidenceTerms, History, fit
from escnn_relax import carry_optimizer, harden, merge, mix, project, relax, relax_translation, restrict
from escnn_relax import assert_equivariant, equivariance_error, report, subgroups, survivors
from escnn_relax.errors import RelaxError
from escnn_relax.evidence import PriorSettings
from escnn_relax.nn import RelaxedR2Conv
from escnn_relax.search import EvolutionResult, differentiate, discretise, evolve


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        space = gspaces.rot2dOnR2(4)
        self.gray = enn.FieldType(space, [space.trivial_repr])
        self.fields = enn.FieldType(space, [space.regular_repr])
        self.layers = enn.SequentialModule(enn.R2Conv(self.gray, self.fields, 3), enn.ReLU(self.fields))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(self.gray(x)).tensor
        return self.head(features.mean((-2, -1)))


def accuracy(model: nn.Module) -> float:
    return float(sum(p.numel() for p in model.parameters()))


def walk(loader: DataLoader[tuple[Tensor, ...]], folder: Path) -> History:
    model = relax(Net(), irreps=[1], layers=lambda name, module: name != "head")
    evidence = Evidence(model, "categorical", "auto", prior=PriorSettings(fixed={"head.bias": 0.0}))
    terms: EvidenceTerms = evidence.refresh(loader)
    total: float = terms.total + evidence.log_marginal_likelihood()
    path = folder / "run.pt"
    history = fit(model, loader, epochs=3, evidence=evidence, checkpoint=path, callback=lambda e: print(e.loss))
    losses: list[float] = [record.loss for record in history.records]
    probabilities = evidence.posterior().predict(torch.zeros(1, 1, 5, 5))
    print(total, losses, probabilities, evidence.effective_dimension()["head.weight"])
    read = report(model, evidence)
    energies: list[float] = [pathway.energy for layer in read.layers for pathway in layer.pathways]
    read.plot(title="energies").set_xlabel("pathway")
    print(str(read), energies, [s.subgroup.name for s in survivors(model).layers])
    hard: nn.Module = harden(model, to="stabiliser", per="network")
    step = carry_optimizer(torch.optim.Adam(model.parameters()), model, hard)
    print(step.param_groups, escnn_relax.__version__)
    return history


def morphisms(loader: DataLoader[tuple[Tensor, ...]]) -> EvolutionResult:
    strict = Net()
    on_c2: nn.Module = restrict(strict, 2, from_layer="layers")
    back: nn.Module = project(on_c2, like=strict)
    mixed = mix(strict, {"layers.0": [2, 1]}, leaning=2.0)
    merged: nn.Module = merge(mixed)
    wide = relax_translation(strict, torch.zeros(1, 1, 5, 5), ["factored", ("factored", "free")])
    found = differentiate(mixed, loader, epochs=1, discretise=0.5)
    kept: dict[str, str] = found.architecture
    print(kept, discretise(found.mixture), [h.name for h in subgroups(gspaces.rot2dOnR2(4))], back, merged, wide)
    try:
        error: float = equivariance_error(strict, in_type=strict.gray).max
        print(error, assert_equivariant(strict, 1e-3, in_type=strict.gray))
    except RelaxError as problem:
        print(problem.where, problem.remedy)
    return evolve(strict, loader, accuracy, generations=2, epochs=0.5)


def layer() -> float:
    one = enn.FieldType(gspaces.rot2dOnR2(4), [gspaces.rot2dOnR2(4).regular_repr])
    convolution = RelaxedR2Conv(one, one, 3)
    return convolution.breaking_energy + sum(convolution.energies().values())


data = TensorDataset(torch.zeros(8, 1, 5, 5), torch.zeros(8, dtype=torch.long))
walk(DataLoader(data), Path("."))
"""

#: Each line is one misuse that a checker has to find, with the code of its complaint.
MISUSES = """
relax("net")  # arg-type
relax(net, irrep=[1])  # call-arg
relax(net, frequencies="two")  # arg-type
restrict(net)  # call-arg
harden(net, to=4)  # call-overload
mix(net, 4)  # arg-type
Evidence(net, num_data="all")  # arg-type
Evidence(net, prior="layer")  # arg-type
Evidence(net, sample=1)  # call-arg
fit(net, [], curvatures="exact")  # call-arg
Evidence(net).refresh(3)  # arg-type
fit(net, [], epochs="many")  # arg-type
fit(net, [], callback=lambda: None)  # arg-type, misc
report(net).plot(quantity=1)  # arg-type
report(net).row  # attr-defined
relax_translation(net, net, fraction="half")  # arg-type
differentiate(net, [], lr="small")  # arg-type
evolve(net, [], score=3)  # arg-type
depth: int = Evidence(net).log_marginal_likelihood()  # assignment
"""
BROKEN = """
from torch import nn

from escnn_relax import Evidence, fit, harden, mix, relax, relax_translation, report, restrict
from escnn_relax.search import differentiate, evolve

net = nn.Sequential()
""" + MISUSES.lstrip()

Found = dict[str, list[tuple[int, str]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What mypy complains of in the package, a user's script and its broken twin: by file, line and code."""
    pytest.importorskip("mypy", reason="mypy is not installed: make types does it")
    folder = tmp_path_factory.mktemp("users")
    for name, source in (("user", USER), ("broken", BROKEN)):
        (folder / f"{name}.py").write_text(source)
    options = [
        "--config-file",
        str(ROOT / "pyproject.toml"),
        "--cache-dir",
        str(folder / "cache"),
        "--no-error-summary",
    ]
    command = [
        sys.executable,
        "-m",
        "mypy",
        *options,
        "escnn_relax",
        str(folder / "user.py"),
        str(folder / "broken.py"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    complaints: Found = {"package": [], "user": [], "broken": []}
    for line in result.stdout.splitlines():
        match = re.match(r"(.+?):(\d+): error: .*\[([a-z-]+)\]$", line)
        if match:
            path = Path(match[1])
            where = path.stem if path.parent.name == folder.name else "package"
            complaints[where].append((int(match[2]), match[3] if where != "package" else line))
    return complaints


@pytest.mark.slow
def test_package_passes_a_strict_checker(found):
    assert found["package"] == []


@pytest.mark.slow
def test_users_script_passes(found):
    assert found["user"] == []


@pytest.mark.slow
def test_misuses_are_found(found):
    lines = BROKEN.splitlines()
    wanted = {n: set(line.split("  # ")[1].split(", ")) for n, line in enumerate(lines, 1) if "  # " in line}
    complaints = {n: {code for m, code in found["broken"] if m == n} for n, _ in found["broken"]}
    assert complaints.keys() == wanted.keys()
    assert all(complaints[n] & wanted[n] for n in wanted), complaints


def test_few_complaints_are_silenced_each_with_a_reason():
    silenced = [
        line
        for path in (ROOT / "escnn_relax").rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "# type: ignore" in line
    ]
    assert len(silenced) <= 6
    assert all(re.search(r"# type: ignore\[[a-z-]+\]  # \w", line) for line in silenced), silenced


# --- what is built ----------------------------------------------------------------------------------------------------


def build(tree: Path, out: Path) -> zipfile.ZipFile:
    """A wheel from a source tree without git, by the build requirements that are installed."""
    for name in ("escnn_relax", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "output"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(out),
        str(tree),
    ]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PIP_NO_INDEX": "1"})
    assert result.returncode == 0, result.stderr
    (wheel,) = out.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.mark.slow
def test_wheel(tmp_path):
    pytest.importorskip("setuptools_scm", reason="setuptools-scm is not installed, which building takes")
    wheel = build(tmp_path / "tree", tmp_path / "out")
    names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    (metadata,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"escnn_relax", metadata}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "escnn_relax").rglob("*.py")}
    assert sources | {"escnn_relax/py.typed"} == {name for name in names if name.startswith("escnn_relax/")}
    assert f"{metadata}/licenses/LICENSE" in names
    assert metadata == f"escnn_relax-{fallback_version()}.dist-info"


def fallback_version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools_scm"]["fallback_version"]


def test_version():
    """The package knows its version whether it is installed or not; what stands for an unknown one stands twice."""
    assert re.match(r"\d+(\.\d+)*", escnn_relax.__version__)
    assert f'__version__ = "{fallback_version()}"' in (ROOT / "escnn_relax/__init__.py").read_text()
