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
from nonempty import each
from scipy.spatial.transform import Rotation

from escnn_relax import _escnn_repairs, _wigner
from escnn_relax.errors import InstallationError

ROOT = Path(__file__).parents[2]


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
    _escnn_repairs.require()


def test_all_that_is_missing_is_named_before_anything_is_imported():
    hide = "import sys; sys.modules.update(escnn=None, backpack=None)"
    result = run("import escnn_relax", first=hide)
    assert result.returncode != 0
    assert "InstallationError: escnn_relax: not installed: escnn, backpack;" in result.stderr
    assert _escnn_repairs.RECIPE in result.stderr


def test_broken_escnn_is_found_though_it_imports(tmp_path):
    """escnn drops the ImportError: the first run shows that it does, the second that we do not."""
    write(tmp_path, {"joblib.py": "raise ImportError('compiled for another numpy')"})
    silent = run("import escnn; print(hasattr(escnn, 'nn'))", shadows=tmp_path)
    assert silent.stdout.split() == ["False"], silent.stderr

    result = run("import escnn_relax", shadows=tmp_path)
    assert "joblib cannot be imported (ImportError: compiled for another numpy)" in result.stderr
    assert _escnn_repairs.RECIPE in result.stderr


@pytest.mark.parametrize(("module", "version"), [("escnn", "1.1.0"), ("escnn", "0.9")])
def test_unsuitable_versions_are_refused(monkeypatch, module, version):
    monkeypatch.setattr(sys.modules[module], "__version__", version)
    with pytest.raises(InstallationError, match=f"{module} {version} is installed") as caught:
        _escnn_repairs.require()
    assert _escnn_repairs.RECIPE in str(caught.value)


def test_recipes_install_what_the_tests_run_on():
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    pins = set(groups["pinned"] + groups["without-dependencies"])
    for text in (_escnn_repairs.RECIPE, (ROOT / "README.md").read_text()):
        told = set(re.findall(r"[\w-]+==[\w.]*\d", text)) - {"torch==2.13.0"}
        assert set(groups["without-dependencies"]) <= told <= pins
    makefile = (ROOT / "Makefile").read_text()
    assert "TORCH    ?= torch==2.13.0\n" in makefile


# --- where lie_learn cannot be imported -------------------------------------------------------------------------------

#: An irrep of SO(3) on one rotation, through escnn.
IRREP = """
import json, numpy
from escnn.group import so3_group
group = so3_group(4)
print(json.dumps(group.irrep(4)(group.element(numpy.array([0.4, 1.1, -2.0]), "ZYZ")).tolist()))
"""


def test_wigner_matrices_where_lie_learn_fails(tmp_path):
    """The stand-in gives escnn the same matrices."""
    write(tmp_path, {"lie_learn/__init__.py": "raise ImportError('compiled for another numpy')"})
    mended = run(IRREP, shadows=tmp_path, first="import escnn_relax")
    assert mended.returncode == 0, mended.stderr
    expected = _wigner.wigner_D_matrix(4, 0.4, 1.1, -2.0)
    np.testing.assert_allclose(json.loads(mended.stdout), expected, atol=1e-12)


def test_even_where_escnn_was_imported_before(tmp_path):
    """escnn alone loses its groups there, and has them again."""
    write(tmp_path, {"lie_learn/__init__.py": "raise ImportError('compiled for another numpy')"})
    alone = "import escnn\ntry:\n    from escnn.group import so3_group\nexcept ImportError:\n    print('[]')"
    result = run(IRREP, shadows=tmp_path, first=f"{alone}\nimport escnn_relax")
    assert result.returncode == 0, result.stderr
    empty, matrix = result.stdout.splitlines()
    assert json.loads(empty) == [] and len(json.loads(matrix)) == 9


@pytest.mark.parametrize("degree", [0, 1, 2, 5, 20])
def test_wigner_matrices_are_the_rotations(degree):
    """A homomorphism, orthogonal, and for degree 1 the rotation of space itself in the order y, z, x."""
    angles = np.random.RandomState(degree).uniform(-7, 7, (2, 3))
    one, two = Rotation.from_euler("ZYZ", angles[0]), Rotation.from_euler("ZYZ", angles[1])
    of = lambda rotation: _wigner.wigner_D_matrix(degree, *rotation.as_euler("ZYZ"))
    np.testing.assert_allclose(of(one) @ of(two), of(one * two), atol=1e-7)  # of Euler angles near the poles
    np.testing.assert_allclose(of(one) @ of(one).T, np.eye(2 * degree + 1), atol=1e-12)
    if degree == 1:
        np.testing.assert_allclose(of(one), one.as_matrix()[np.ix_([1, 2, 0], [1, 2, 0])], atol=1e-12)


def test_wigner_matrices_are_those_of_lie_learn():
    theirs = pytest.importorskip(_escnn_repairs.WIGNER).wigner_D_matrix
    if theirs is _wigner.wigner_D_matrix:
        pytest.skip("lie_learn cannot be imported here")
    for degree in range(13):
        for angles in each(np.random.RandomState(degree).uniform(-7, 7, (3, 3))):
            np.testing.assert_allclose(_wigner.wigner_D_matrix(degree, *angles), theirs(degree, *angles), atol=1e-12)


def test_wigner_matrices_as_lie_learn_gave_them():
    """Recorded from lie_learn 0.0.2, for machines without it: orders, signs and the direction of rotations."""
    recorded = [
        [-0.5338655240721000, 0.0052972853282672, 0.4934270462293460, -0.6852703827407600, -0.0435177384877486],
        [0.6556846169108009, -0.3822483966759558, 0.2726623214187179, -0.2845254212665636, -0.5183284571744423],
        [-0.5205599068247040, -0.6366704397859320, -0.1913758379415093, 0.2913770364059172, -0.4496029868861341],
        [0.0549371123778485, -0.4193728940164246, 0.6449070357194616, 0.3861875581102424, 0.5060260612737821],
        [-0.1051883189522354, 0.5221448351500653, 0.4792235516537774, 0.4641210831319452, -0.5208037983875342],
    ]
    np.testing.assert_allclose(_wigner.wigner_D_matrix(2, 0.4, 1.1, -2.0), recorded, atol=1e-14)


def test_other_bases_are_refused():
    with pytest.raises(NotImplementedError, match="escnn's basis"):
        _wigner.wigner_D_matrix(1, 0.0, 0.0, 0.0, field="complex")


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

known = cg._clebsh_gordan_tensor
cg._clebsh_gordan_tensor = functools.cache(getattr(known, "__wrapped__", known).func)

def build(order):
    space = gspaces.flipRot2dOnR2(order)
    regular = nn.FieldType(space, [space.regular_repr])
    layer = nn.R2Conv(regular, regular, 3, initialize=False)
    (basis,) = [b for name, b in layer.state_dict().items() if name.endswith("sampled_basis")]
    return basis.flatten().tolist()

print(json.dumps(build(3)))
"""

#: The same of another group with the repair undone.
UNDONE = """
import sklearn.utils.extmath as found
from escnn.group import _numerical

_numerical.randomized_svd = found.randomized_svd
build(5)
"""


def scikit_learn(folder, source):
    packages = {"sklearn/__init__.py": "", "sklearn/utils/__init__.py": ""}
    return write(folder, {**packages, "sklearn/utils/extmath.py": source})


def test_dihedral_bases_beside_scikit_learn(tmp_path):
    beside = scikit_learn(tmp_path / "beside", REFUSES)
    mended = run(BUILD + UNDONE, shadows=beside, first="import escnn_relax")
    assert mended.returncode != 0 and "np.matrix is not supported" in mended.stderr, "the twin: without the repair"
    without = run(BUILD, shadows=scikit_learn(tmp_path / "without", ABSENT), first="import escnn_relax")
    assert without.returncode == 0, without.stderr
    np.testing.assert_allclose(json.loads(mended.stdout), json.loads(without.stdout), atol=1e-6)  # float32


def test_repair_can_be_undone(monkeypatch):
    from escnn.group import _numerical

    def sklearns():
        """Stands for randomized_svd."""

    monkeypatch.setattr(_numerical, "randomized_svd", sklearns)
    assert _escnn_repairs.prefer_scipy_svd() is sklearns
    assert _numerical.randomized_svd is None
    assert _escnn_repairs.prefer_scipy_svd() is None


def test_clebsch_gordan_coefficients_are_read_from_disk_once(monkeypatch):
    """Symptom: building kernels spent most of its time opening escnn's files, the same few thousands of times."""
    import numpy as np
    from escnn.group import _clebsh_gordan, dihedral_group

    from escnn_relax import _escnn_repairs

    group, asked = dihedral_group(4), []
    now = _clebsh_gordan._clebsh_gordan_tensor
    reader = now.__wrapped__
    monkeypatch.setattr(_clebsh_gordan, "_clebsh_gordan_tensor", lambda *a, **o: asked.append(a) or reader(*a, **o))
    assert _escnn_repairs.keep_clebsch_gordan() and not _escnn_repairs.keep_clebsch_gordan()
    ids = [psi.id for psi in group.irreps()]
    for _ in range(3):
        for j in each(ids):
            found = group._clebsh_gordan_coeff((1, 1), (1, 1), j)
            assert np.array_equal(found, reader((1, 1), (1, 1), j, "DihedralGroup", N=4)) and not found.flags.writeable
    assert len(asked) == len(ids) == 5
    first, second = (group._tensor_product_irreps((1, 1), (1, 1)) for _ in range(2))
    assert first == second and first is not second  # a list of the caller's own


def rotations(group, count):
    import numpy as np

    generator = np.random.RandomState(0)
    quaternions = [q / np.linalg.norm(q) for q in generator.standard_normal((count, 4))]
    return [group.element(q, "Q") for q in quaternions]


@pytest.mark.parametrize("degrees", [(0, 0, 0), (1, 1, 2), (1, 2, 2), (2, 3, 1), (3, 3, 6), (6, 4, 8)])
def test_clebsch_gordan_coefficients_intertwine(degrees):
    """The product of two irreps acts on the columns as the third does; those columns are orthonormal."""
    import numpy as np
    from escnn.group import so3_group

    group = so3_group(8)
    m, n, j = degrees
    found = group._clebsh_gordan_coeff((m,), (n,), (j,))
    assert found.shape == (2 * m + 1, 2 * n + 1, 1, 2 * j + 1) and not found.flags.writeable
    columns = found.reshape(-1, 2 * j + 1)
    assert np.allclose(columns.T @ columns, np.eye(2 * j + 1), atol=1e-12)
    for g in each(rotations(group, 3)):
        both = np.kron(group.irrep(m)(g), group.irrep(n)(g))
        assert np.allclose(both @ columns, columns @ group.irrep(j)(g), atol=1e-12)
        if j:
            assert not np.allclose(both @ columns[:, ::-1], columns[:, ::-1] @ group.irrep(j)(g), atol=1e-3)  # the twin


def test_clebsch_gordan_coefficients_of_the_tables_and_of_escnn():
    import numpy as np
    from escnn.group import _clebsh_gordan, so3_group

    from escnn_relax._clebsch_gordan import clebsch_gordan

    one = lambda *twice: float(clebsch_gordan(*twice).item())
    assert abs(one(2, 2, 4, 0, 0, 0) - (2 / 3) ** 0.5) < 1e-15 and abs(one(2, 2, 0, 2, -2, 0) - 3**-0.5) < 1e-15
    assert abs(one(4, 2, 2, 4, -2, 2) - (3 / 5) ** 0.5) < 1e-15 and one(2, 2, 8, 0, 0, 0) == one(2, 2, 4, 2, 2, 0) == 0
    with pytest.raises(NotImplementedError, match="whole degrees"):
        clebsch_gordan(1, 1, 2, 1, 1, 2)
    for degrees in ((1, 1, 1), (1, 1, 2), (2, 1, 2)):
        ours = so3_group(2)._clebsh_gordan_coeff(*((d,) for d in degrees))
        numerical = _clebsh_gordan._clebsh_gordan_tensor(*((d,) for d in degrees), "SO3")
        assert min(np.abs(ours - numerical).max(), np.abs(ours + numerical).max()) < 1e-10


def test_clebsch_gordan_coefficients_are_never_looked_for_numerically(monkeypatch):
    """Symptom: the first layer between vectors of degree 3 took minutes, and gigabytes."""
    from escnn.group import _clebsh_gordan, o3_group, so3_group

    def asked(*_, **__):
        raise AssertionError("looked for numerically")

    monkeypatch.setattr(_clebsh_gordan, "_clebsh_gordan_tensor", asked)
    assert so3_group(7)._clebsh_gordan_coeff((7,), (5,), (4,)).shape == (15, 11, 1, 9)
    assert o3_group(7)._clebsh_gordan_coeff((1, 7), (0, 5), (1, 4)).shape == (15, 11, 1, 9)
    assert not _escnn_repairs.provide_clebsch_gordan()  # once is enough


@pytest.mark.parametrize("kind", ["ico", "octa"])
def test_irreps_are_built_in_silence(tmp_path, monkeypatch, capsys, kind):
    """Symptom: a doctest that met an octahedral group failed on a machine where escnn had kept none yet."""
    import importlib

    from joblib import Memory

    build = getattr(importlib.import_module(f"escnn.group.groups.{kind}"), f"_build_{kind}_irrep_picklable")
    monkeypatch.setattr(build, "store_backend", Memory(tmp_path, verbose=0).store_backend)
    monkeypatch.setattr(build, "func", lambda group, degree: degree)  # what it computes takes half a minute
    monkeypatch.setattr(build, "ignore", ["group"])
    assert build(None, 3) == 3 and capsys.readouterr().out == ""
    monkeypatch.setattr(build, "_verbose", 2)
    assert build(None, 4) == 4 and "Calling" in capsys.readouterr().out, "the twin"
