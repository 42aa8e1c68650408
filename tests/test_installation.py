"""A machine that lacks something is told the recipe; one with scikit-learn is made to work."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from escnn_relax import _escnn
from escnn_relax.errors import InstallationError

ROOT = Path(__file__).parents[1]


def run(code, *, shadows=None, first=""):
    """Run code in a fresh interpreter; modules in the folder ``shadows`` hide installed ones of the same name."""
    path = os.pathsep.join(str(folder) for folder in (shadows, ROOT) if folder)
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{first}\n{code}"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=shadows,
        capture_output=True,
        text=True,
    )


def write(folder, sources):
    """Source files, by path within the folder."""
    for name, source in sources.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(source)
    return folder


# --- what is missing is said ------------------------------------------------------------------------------------------


def test_this_machine_is_fit():
    _escnn.require()


def test_all_that_is_missing_is_named_before_anything_is_imported():
    hide = "import sys; sys.modules.update(escnn=None, backpack=None)"
    result = run("import escnn_relax", first=hide)
    assert result.returncode != 0
    assert "InstallationError: escnn_relax: not installed: escnn, backpack;" in result.stderr
    assert _escnn.RECIPE in result.stderr


def test_broken_escnn_is_found_though_it_imports(tmp_path):
    """escnn drops the ImportError: the first run shows that it does, the second that we do not."""
    fails = "raise ImportError('compiled for another numpy')"
    write(tmp_path, {"lie_learn/__init__.py": "", "lie_learn/representations.py": fails})
    silent = run("import escnn; print(hasattr(escnn, 'nn'))", shadows=tmp_path)
    assert silent.stdout.split() == ["False"], silent.stderr

    result = run("import escnn_relax", shadows=tmp_path)
    assert "escnn.group cannot be imported (ImportError: compiled for another numpy)" in result.stderr
    assert _escnn.RECIPE in result.stderr


@pytest.mark.parametrize(("module", "version"), [("escnn", "1.1.0"), ("escnn", "0.9"), ("numpy", "2.1.3")])
def test_unsuitable_versions_are_refused(monkeypatch, module, version):
    monkeypatch.setattr(sys.modules[module], "__version__", version)
    with pytest.raises(InstallationError, match=f"{module} {version} is installed") as caught:
        _escnn.require()
    assert _escnn.RECIPE in str(caught.value)


def test_recipes_install_what_the_tests_run_on():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    pins = set(groups["pinned"] + groups["without-dependencies"])
    for text in (_escnn.RECIPE, (ROOT / "README.md").read_text()):
        told = set(re.findall(r"[\w-]+==[\w.]*\d", text)) - {"torch==2.13.0"}
        assert set(groups["without-dependencies"]) <= told <= pins
    makefile = (ROOT / "Makefile").read_text()
    assert "TORCH    ?= torch==2.13.0\n" in makefile


# --- scikit-learn beside escnn ----------------------------------------------------------------------------------------

#: As scikit-learn does since it refuses np.matrix, or (second) as if it were not installed.
REFUSES = """
import numpy

def randomized_svd(M, n_components, random_state=None):
    if isinstance(M, numpy.matrix):
        raise TypeError("np.matrix is not supported")
    return numpy.linalg.svd(M, full_matrices=False)
"""
ABSENT = "raise ImportError('no scikit-learn')"

#: The regular kernel basis of D3, computed afresh rather than read from escnn's cache on disk.
BUILD = """
import functools, json
from escnn import gspaces, nn
from escnn.group import _clebsh_gordan as cg

cg._clebsh_gordan_tensor = functools.cache(cg._clebsh_gordan_tensor.func)
space = gspaces.flipRot2dOnR2(3)
regular = nn.FieldType(space, [space.regular_repr])
layer = nn.R2Conv(regular, regular, 3, initialize=False)
(basis,) = [b for name, b in layer.state_dict().items() if name.endswith("sampled_basis")]
print(json.dumps(basis.flatten().tolist()))
"""


def scikit_learn(folder, source):
    packages = {"sklearn/__init__.py": "", "sklearn/utils/__init__.py": ""}
    return write(folder, {**packages, "sklearn/utils/extmath.py": source})


def test_dihedral_bases_beside_scikit_learn(tmp_path):
    beside = scikit_learn(tmp_path / "beside", REFUSES)
    crashed = run(BUILD, shadows=beside, first="import escnn")
    assert crashed.returncode != 0 and "np.matrix is not supported" in crashed.stderr

    mended = run(BUILD, shadows=beside, first="import escnn_relax")
    assert mended.returncode == 0, mended.stderr
    without = run(BUILD, shadows=scikit_learn(tmp_path / "without", ABSENT), first="import escnn")
    assert without.returncode == 0, without.stderr
    np.testing.assert_allclose(json.loads(mended.stdout), json.loads(without.stdout), atol=1e-6)  # float32


def test_repair_can_be_undone(monkeypatch):
    from escnn.group import _numerical

    def sklearns():
        """Stands for randomized_svd."""

    monkeypatch.setattr(_numerical, "randomized_svd", sklearns)
    assert _escnn.prefer_scipy_svd() is sklearns
    assert _numerical.randomized_svd is None
    assert _escnn.prefer_scipy_svd() is None
