"""What is done to escnn once, before anything builds on it: its installation is checked and mended.

Everything here imports escnn when it is called, not when this module is loaded: so the module loads where escnn is
missing, and can say what to do about it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from .errors import InstallationError

#: What must be importable, by import name. escnn is there by its parts because ``import escnn`` hides their errors.
REQUIREMENTS = (
    *("numpy", "scipy", "torch", "joblib", "autograd", "requests", "pymanopt"),
    *("escnn", "escnn.group", "escnn.kernels", "escnn.gspaces", "escnn.nn"),
    *("einops", "unfoldNd", "backpack"),
)

#: How to install what pip cannot install by itself, on a machine without a Fortran compiler.
RECIPE = """\
    pip install "torch>=2.6" "numpy>=1.26" scipy joblib autograd requests einops unfoldNd pymanopt==2.2.1
    pip install --no-deps escnn==1.0.11 backpack-for-pytorch==1.7.1"""


def require() -> None:
    """Check that escnn 1.0 and everything it and we need can be imported.

    A broken escnn imports without complaint, since it drops the ``ImportError`` of any of its parts, and leaves it to
    the user to wonder where ``escnn.nn`` is. Hence the parts are imported one by one.

    Raises:
        InstallationError: something is missing, fails to import or has an unsuitable version; the message holds the
            recipe, and what went wrong is its ``__cause__``.
    """
    # First without importing anything, so as to name in one go all that is missing.
    absent = [name for name in REQUIREMENTS if "." not in name and importlib.util.find_spec(name) is None]
    if absent:
        raise _unusable(f"not installed: {', '.join(absent)}")
    for name in REQUIREMENTS:
        try:
            importlib.import_module(name)
        except Exception as error:  # compiled modules fail in more ways than ImportError
            raise _unusable(f"{name} cannot be imported ({type(error).__name__}: {error})") from error
    version = getattr(importlib.import_module("escnn"), "__version__", "of an unknown version")
    if not version.startswith("1.0."):
        raise _unusable(f"escnn {version} is installed, but this version of escnn_relax works with escnn 1.0")


#: What escnn imports of lie_learn.
WIGNER = "lie_learn.representations.SO3.wigner_d"


def provide_wigner_matrices() -> bool:
    """Have escnn find Wigner matrices where lie_learn, which it takes them from, cannot be imported.

    lie_learn is compiled, against numpy 1 and for no Python after 3.12, and escnn needs one function of it. Beside
    numpy 1 it is used where it works (beside numpy 2 even trying floods the terminal); elsewhere modules of its name
    hold :func:`escnn_relax._wigner.wigner_D_matrix`. This has to come before the first import of escnn's groups, which
    ``import escnn_relax`` sees to; a process that imports escnn first finds it without its parts until then.

    Returns:
        whether a stand-in was put in place. To undo it, take ``lie_learn`` and its parts out of ``sys.modules``.
    """
    if importlib.util.find_spec("numpy") is None:
        return False  # what is missing is said by ``require``
    from . import _wigner

    if importlib.import_module("numpy").__version__.startswith("1."):
        try:
            importlib.import_module(WIGNER)
            return False
        except Exception:  # absent, or compiled for another numpy, which fails in more ways than ImportError
            pass
    if getattr(sys.modules.get(WIGNER), "wigner_D_matrix", None) is _wigner.wigner_D_matrix:
        return True

    for name in [name for name in sys.modules if name.split(".")[0] == "lie_learn"]:
        del sys.modules[name]
    names = WIGNER.split(".")
    for depth in range(1, len(names) + 1):
        substitute: Any = ModuleType(".".join(names[:depth]), "Stands in for lie_learn, which cannot be imported here.")
        sys.modules[substitute.__name__] = substitute
        if depth == len(names):
            substitute.wigner_D_matrix = _wigner.wigner_D_matrix
        else:
            substitute.__path__ = []
        if depth > 1:
            setattr(sys.modules[".".join(names[: depth - 1])], names[depth - 1], substitute)
    return True


def _unusable(problem: str) -> InstallationError:
    remedy = f"with Python 3.11 or later, and without a Fortran compiler, install as follows:\n{RECIPE}"
    return InstallationError("escnn_relax", problem, remedy=remedy)


def prefer_scipy_svd() -> Callable[..., Any] | None:
    """Have escnn solve for intertwiners by ``scipy.linalg.svd`` even where scikit-learn is installed.

    Where it finds scikit-learn, escnn takes ``randomized_svd`` from it, without a seed, and hands it a ``np.matrix``.
    scikit-learn now refuses these (seen with 1.9: ``TypeError: np.matrix is not supported``), and so any layer of a
    dihedral or octahedral group fails whose Clebsch-Gordan coefficients are not in escnn's cache on disk. Here escnn is
    made to behave as if scikit-learn were absent, which is what it does on a bare machine, and is deterministic.

    Returns:
        the function that was put aside, ``None`` if there was none. To undo the repair, assign it to
        ``escnn.group._numerical.randomized_svd``.
    """
    from escnn.group import _numerical

    aside, _numerical.randomized_svd = _numerical.randomized_svd, None
    return aside


def separate_reflection_axes() -> None:
    """Have escnn keep the kernels of O(2) by the axis of their reflections.

    escnn keeps kernels, solved and sampled, for the whole process, and finds them by a basis of circular harmonics
    whose equality and hash leave the axis out. So the first O(2) of a process decides for all: a layer on
    ``flipRot2dOnR2(-1, axis=0.)`` built after one on the usual axis of 90 degrees gets the kernels of that one, and is
    not equivariant (errors up to 1.6 seen). Here the axis becomes a part of both. Layers that exist already keep what
    they were given, see :func:`foreign_axis`.

    To undo the repair, assign the ``__wrapped__`` of both methods of ``escnn.kernels.polar_basis.CircularShellsBasis``.
    """
    from escnn.kernels.polar_basis import CircularShellsBasis

    equality, plain_hash = CircularShellsBasis.__eq__, CircularShellsBasis.__hash__
    if hasattr(equality, "__wrapped__"):
        return

    @wraps(equality)
    def equal(self: Any, other: Any) -> bool:
        return bool(equality(self, other) and self.axis == other.axis)

    @wraps(plain_hash)
    def hash_with_axis(self: Any) -> int:
        return hash((plain_hash(self), self.axis))

    CircularShellsBasis.__eq__, CircularShellsBasis.__hash__ = equal, hash_with_axis


def keep_clebsch_gordan() -> bool:
    """Have escnn keep Clebsch-Gordan coefficients and decompositions in memory, once they were read or computed.

    escnn keeps them on disk only, and opens the file at each use: a basis of a few hundred kernels asks for the same
    few arrays thousands of times, which is most of the time it takes to build one. The arrays are handed out read-only.

    Returns:
        whether anything was changed. To undo it, assign to each name in ``escnn.group._clebsh_gordan`` its own
        ``__wrapped__``.
    """
    from escnn.group import _clebsh_gordan

    replacement = False
    for name in ("_clebsh_gordan_tensor", "_find_tensor_decomposition"):
        reader = getattr(_clebsh_gordan, name)
        if not getattr(reader, "keeps_in_memory", False):
            setattr(_clebsh_gordan, name, _memoise(reader))
            replacement = True
    return replacement


def provide_clebsch_gordan() -> bool:
    """Have escnn compute the Clebsch-Gordan coefficients of SO(3) and O(3) in closed form where py3nj is missing.

    escnn then looks for them numerically, which takes minutes and gigabytes from degree 6 on, such as relaxed layers
    between vectors need. Here it finds :mod:`escnn_relax._clebsch_gordan` in the place of py3nj, and keeps what it made
    of it. The coefficients that it kept on disk before may have other signs, as those of another machine may.

    Returns:
        whether anything was changed. To undo it, set ``escnn.group.groups.so3group.py3nj`` to None.
    """
    from escnn.group.groups import o3group, so3group

    from . import _clebsch_gordan

    if so3group.py3nj is not None:
        return False
    so3group.py3nj = _clebsch_gordan
    reader = so3group._clebsh_gordan_tensor_so3
    if not getattr(reader, "keeps_in_memory", False):
        reader = _memoise(reader)
    so3group._clebsh_gordan_tensor_so3 = o3group._clebsh_gordan_tensor_so3 = reader
    return True


def silence_irreps() -> None:
    """Have escnn compute the irreps of the octahedral and icosahedral groups without printing what it does.

    It prints a screenful when it first builds one of them on a machine, before it keeps them on disk; so the first run
    of a script or a doctest would not print what the second does. To undo it, set ``_verbose`` to 2 again.
    """
    from escnn.group.groups import ico, octa

    for build in (ico._build_ico_irrep_picklable, octa._build_octa_irrep_picklable):
        build._verbose = 0


def _memoise(reader: Callable[..., Any]) -> Callable[..., Any]:
    memory: dict[Any, Any] = {}

    @wraps(reader, updated=())
    def memoised(*arguments: Any, **options: Any) -> Any:
        key = repr((arguments, sorted(options.items())))
        if key not in memory:
            value = reader(*arguments, **options)
            if hasattr(value, "flags"):
                value.flags.writeable = False
            memory[key] = value
        value = memory[key]
        return list(value) if isinstance(value, list) else value

    function: Any = memoised
    function.keeps_in_memory = True
    return memoised
