"""The one place where escnn's inside is reached, and where its installation is checked and mended.

Everything here imports escnn when it is called, not when this module is loaded: so the module loads where escnn is
missing, and can say what to do about it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import InstallationError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Module

#: ``((radius, frequency), ...)``: the largest angular frequency on each ring.
Limit = tuple[tuple[float, int], ...]

# --- installation: the first thing that `import escnn_relax` does -----------------------------------------------------

#: What must be importable, by import name. escnn is there by its parts because ``import escnn`` hides their errors.
REQUIREMENTS = (
    *("numpy", "scipy", "torch", "joblib", "autograd", "requests", "pymanopt"),
    *("escnn", "escnn.group", "escnn.kernels", "escnn.gspaces", "escnn.nn"),
    *("einops", "unfoldNd", "backpack"),
)

#: How to install what pip cannot install by itself, on a machine without a Fortran compiler.
RECIPE = """\
    pip install torch "numpy>=1.26" scipy joblib autograd requests einops unfoldNd pymanopt==2.2.1
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


def foreign_axis(layer: Any) -> tuple[float, float] | None:
    """The axis of reflections (radians) of a layer's G-space and that of its kernels, if these differ; else
    ``None``."""
    group: Any = getattr(layer.in_type.gspace, "_sg_id", (None,))
    if getattr(layer, "d", 0) != 2 or group[0] is None or group[1] != -1:
        return None
    for _, block in block_modules(expansion(layer)):
        axis = getattr(getattr(getattr(block, "basis", None), "basis", None), "axis", None)
        if axis is not None and abs(axis - group[0] / 2) > 1e-6:
            return group[0] / 2, axis
    return None


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


# --- sampling of kernel bases -----------------------------------------------------------------------------------------


class single_precision:
    """A context in which float32 is torch's default: under any other, escnn fails to build kernels."""

    def __enter__(self) -> None:
        import torch

        self.default_dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)

    def __exit__(self, *_: object) -> None:
        import torch

        torch.set_default_dtype(self.default_dtype)


def sample_kernels(
    gspace: Any,
    in_repr: Any,
    out_repr: Any,
    *,
    rings: list[float],
    sigma: list[float],
    maximum_frequency: int,
    admits: Callable[[dict[str, Any]], bool] | None,
    points: NDArray[Any],
) -> Tensor:
    """Sampled basis of the kernels equivariant from ``in_repr`` to ``out_repr``: shape ``(K, o, i, S)``, float32.

    Goes the way escnn's convolutions go (solver, band limit, normalisation, vanishing elements dropped) without
    sharing their process-wide block modules, so that moving one layer to float64 cannot change another.
    """
    import numpy as np
    import torch
    from escnn.kernels import EmptyBasisException
    from escnn.nn.modules.basismanager import SingleBlockBasisExpansion

    empty = torch.zeros(0, out_repr.size, in_repr.size, len(points))
    try:
        with single_precision():
            basis = gspace.build_kernel_basis(in_repr, out_repr, sigma, rings, maximum_frequency=maximum_frequency)
            mask = np.array([admits is None or bool(admits(element)) for element in basis], dtype=bool)
            if not mask.any():
                return empty
            return SingleBlockBasisExpansion(basis, points, mask).sampled_basis.clone()
    except EmptyBasisException:
        return empty


def sample_intertwiners(gspace: Any, in_repr: Any, out_repr: Any) -> Tensor:
    """Basis of the equivariant matrices from ``in_repr`` to ``out_repr``: shape ``(K, o, i, 1)``, float32."""
    import numpy as np
    import torch
    from escnn.kernels import EmptyBasisException
    from escnn.nn.modules.basismanager import SingleBlockBasisExpansion

    try:
        with single_precision():
            basis = gspace.build_fiber_intertwiner_basis(in_repr, out_repr)
            return SingleBlockBasisExpansion(basis, np.zeros((1, 1))).sampled_basis.clone()
    except EmptyBasisException:
        return torch.zeros(0, out_repr.size, in_repr.size, 1)


def blocks(expansion: Any) -> Iterator[tuple[str, str, Tensor, tuple[int, int]]]:
    """The blocks of an escnn basis expansion, in the order of its weights.

    Yields ``(in representation name, out representation name, sampled basis (K, o, i, S), (start, stop))`` where
    ``weights[start:stop].view(out fields, in fields, K)`` are the block's coefficients.
    """
    for pair in expansion._representations_pairs:
        block = getattr(expansion, f"block_expansion_{expansion._escape_pair(pair)}")
        yield pair[0], pair[1], block.sampled_basis, expansion._weights_ranges[pair]


def band_limit(convolution: Any, cutoff: Any = None) -> Limit:
    """Largest angular frequency on each ring of an escnn convolution: ``((radius, frequency), ...)``.

    escnn forgets the limit it was given, so the elements that the layer kept and left out are compared with what the
    caller knows, escnn's own policies and a limit proportional to the radius first; failing these, the largest
    frequency kept on each ring is read off. A ``basis_filter`` that is no such limit cannot be recovered and raises
    ``UnsupportedModuleError``.
    """
    import math

    import torch
    from escnn.nn.modules.conv import r2convolution, r3convolution

    from .errors import UnsupportedModuleError

    planar = convolution.d == 2
    compute_basis_params = (r2convolution if planar else r3convolution).compute_basis_params
    policies = (None, -2.0, -3.0) if planar else (None, "default2", "default3")
    expansion = convolution.basisexpansion
    points = torch.as_tensor(expansion.points, dtype=torch.float32)
    active: set[tuple[float, int]] = set()
    inactive: dict[str, set[tuple[float, int]]] = {}
    nonvanishing: dict[str, set[tuple[float, int]]] = {}
    for pair in expansion._representations_pairs:
        name = f"block_expansion_{expansion._escape_pair(pair)}"
        block = getattr(expansion, name)
        elements = [(round(e["radius"], 6), abs(e["irrep:frequency"])) for e in block.basis]
        active.update(e for e, i in zip(elements, block._mask.tolist()) if i)
        inactive[name] = {e for e, i in zip(elements, block._mask.tolist()) if not i}

    def present(name: str) -> set[tuple[float, int]]:
        """Elements that were left out though they do not vanish: what sampling makes vanish says nothing about the
        limit."""
        if name not in nonvanishing:
            block = getattr(expansion, name)
            size = block.basis.sample(points).square().sum(dim=(0, 2, 3)).tolist()
            elements = [(round(e["radius"], 6), abs(e["irrep:frequency"])) for e in block.basis]
            nonvanishing[name] = {e for e, i, n in zip(elements, block._mask.tolist(), size) if not i and n > 1e-10}
        return nonvanishing[name]

    def explains(limit: dict[float, int]) -> bool:
        if any(f > limit[r] for r, f in active):
            return False
        # sampled only where an element was left out that the limit admits, which takes long for large fields
        names = [name for name, elements in inactive.items() if any(f <= limit[r] for r, f in elements)]
        return not any(f <= limit[r] for name in names for r, f in present(name))

    rings = [round(r, 6) for r in convolution._rings]
    candidates: list[dict[float, int]] = []
    highest = int(convolution._maximum_frequency)
    proportional = (highest + 1e-9) / max(rings) if max(rings) > 0 else None
    for policy in (cutoff, *policies, proportional):
        admits, *_, built = compute_basis_params(
            convolution.kernel_size, policy, list(convolution._rings), list(convolution._sigma), convolution.dilation
        )
        if built != highest:
            continue
        frequencies = range(highest + 1)
        candidates.append(
            {
                rounded: max([f for f in frequencies if admits({"radius": r, "irrep:frequency": f})], default=-1)
                for rounded, r in zip(rings, convolution._rings)
            }
        )
    candidates.append({r: max([f for q, f in active if math.isclose(q, r)], default=-1) for r in rings})
    for limit in candidates:
        if explains(limit):
            return tuple(limit.items())
    raise UnsupportedModuleError(
        type(convolution),
        "the layer's basis_filter is no limit on the frequency by radius, so relaxed kernels cannot share it",
        remedy="build the layer with frequencies_cutoff instead, or leave this layer out",
    )


def default_band(dimension: int, kernel_size: int) -> tuple[tuple[float, ...], tuple[float, ...], int, Limit]:
    """escnn's own sampling of a convolution's kernels: rings, their widths, the highest angular frequency of any, and
    the highest on each ring."""
    from escnn.nn.modules.conv import r2convolution, r3convolution

    admits, rings, sigma, highest = (r2convolution if dimension == 2 else r3convolution).compute_basis_params(
        kernel_size
    )
    frequencies = range(int(highest) + 1)
    limit = [(round(r, 6), max(f for f in frequencies if admits({"radius": r, "irrep:frequency": f}))) for r in rings]
    return tuple(rings), tuple(sigma), int(highest), tuple(limit)


def default_highest(dimension: int, kernel_size: int) -> int:
    """The highest angular frequency of a convolution's kernels under escnn's own band limit."""
    return max(frequency for _, frequency in default_band(dimension, kernel_size)[3])


# --- copying and pickling ---------------------------------------------------------------------------------------------
#
# escnn's groups, representations and G-spaces hold local functions, so that nothing which mentions a field type can be
# pickled, and some (octahedral ones) cannot even be deep-copied. They are all determined by a few values; told so
# through Python's own registry, pickle stores these and copy shares the one instance that escnn keeps anyway.


def _rebuild_group(kind: Any, keys: dict[str, Any]) -> Any:
    return kind._generator(**keys)


def _rebuild_representation(
    group: Any, name: str, irreps: list[Any], change_of_basis: NDArray[Any], nonlinearities: list[str]
) -> Any:
    from escnn.group import Representation

    if name in group.representations:
        return group.representations[name]
    return Representation(group, name, irreps, change_of_basis, nonlinearities)


def _rebuild_irrep(group: Any, id: tuple[Any, ...]) -> Any:
    return group.irrep(*id)


def _rebuild_gspace(kind: Any, id: Any, name: str) -> Any:
    space = kind(id)
    space.name = name  # part of the hash; the factories of escnn choose another than the class
    return space


def _rebuild_element(group: Any, value: Any, param: str) -> Any:
    return group.element(value, param)


def _subclasses(kind: Any) -> Iterator[Any]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)


def make_picklable() -> None:
    """Register escnn's value-like classes with :mod:`copyreg`, so that what holds them can be pickled and copied."""
    import copyreg

    from escnn.group import Group, GroupElement, IrreducibleRepresentation, Representation
    from escnn.gspaces import GSpace0D, GSpace2D, GSpace3D
    from escnn.nn import FieldType

    for kind in _subclasses(Group):
        copyreg.pickle(kind, lambda group: (_rebuild_group, (type(group), group._keys)))
    copyreg.pickle(GroupElement, lambda g: (_rebuild_element, (g.group, g._element, g.param)))
    for kind in (IrreducibleRepresentation, *_subclasses(IrreducibleRepresentation)):
        copyreg.pickle(kind, lambda r: (_rebuild_irrep, (r.group, r.id)))
    copyreg.pickle(
        Representation,
        lambda r: (
            _rebuild_representation,
            (r.group, r.name, r.irreps, r.change_of_basis, sorted(r.supported_nonlinearities)),
        ),
    )
    for kind in (GSpace2D, GSpace3D):
        copyreg.pickle(kind, lambda space: (_rebuild_gspace, (type(space), space._sg_id, space.name)))
    copyreg.pickle(GSpace0D, lambda space: (GSpace0D, (space.fibergroup,)))
    copyreg.pickle(FieldType, lambda t: (FieldType, (t.gspace, t.representations)))


def register_group(kind: Any) -> None:
    """Let escnn find a group class that it does not have: it computes Clebsh-Gordan coefficients by the class's
    name."""
    from escnn.group import groups_dict

    groups_dict.setdefault(kind.__name__, kind)


# --- rebuilding steerable layers on other field types -----------------------------------------------------------------


def frequency_limit(layer: Any) -> Callable[[float], int]:
    """Largest frequency on each ring of a convolution, as a function of the radius.

    The limit of :func:`band_limit` where the layer has one; else the largest frequency that it kept on each ring,
    which admits whatever its own filter admitted.
    """
    from .errors import UnsupportedModuleError

    try:
        limit = _point_limit(layer) if is_point_convolution(layer) else dict(band_limit(layer))
    except UnsupportedModuleError:
        limit = _largest_frequencies(layer)
    return lambda radius: limit[min(limit, key=lambda ring: abs(ring - radius))]


def _largest_frequencies(layer: Any) -> dict[float, int]:
    limit = {round(r, 6): 0 for r in layer._rings}
    for _, block in block_modules(expansion(layer)):
        for e in block.get_basis_info():
            ring = round(e["radius"], 6)
            limit[ring] = max(limit.get(ring, 0), abs(e["irrep:frequency"]))
    return limit


def _point_limit(layer: Any) -> dict[float, int]:
    """escnn's own policy (three times the radius), or one proportional to the radius, where it explains the layer."""
    highest, rings = int(layer._maximum_frequency), [round(r, 6) for r in layer._rings]
    for factor in (3.0, (highest + 1e-6) / max(rings) if max(rings) > 0 else 0.0):
        limit = {r: min(int(factor * r + 1e-9), highest) for r in rings}
        elements = [
            (abs(e["irrep:frequency"]) <= limit[round(e["radius"], 6)], bool(active))
            for _, block in block_modules(expansion(layer))
            for e, active in zip(block.basis, block._mask)
        ]
        if int(factor * max(rings) + 1e-9) == highest and all(inside == active for inside, active in elements):
            return limit
    return _largest_frequencies(layer)


def is_point_convolution(layer: Any) -> bool:
    """Whether the layer's kernels are functions of the plane or of space, never sampled on a grid."""
    return hasattr(layer, "basissampler")


def expansion(layer: Any) -> Any:
    """What holds the blocks of a steerable layer: its basis expansion, between points its basis sampler."""
    return layer.basissampler if is_point_convolution(layer) else layer.basisexpansion


def kernels(block: Any, points: Tensor | None = None) -> Tensor:
    """The kernels of a block, shape ``(K, out size, in size, S)``, float64; a sampler's at ``points``, ``(S, d)``."""
    if points is None:
        return block.sampled_basis.detach().double().cpu()
    return block(points.to(block.sizes)).permute(3, 1, 2, 0).detach().double().cpu()


def rebuild(layer: Any, in_type: Any, out_type: Any) -> Any:
    """An uninitialised layer of the class, options and filter supports of ``layer`` between other field types.

    Its basis is its own: escnn otherwise shares the sampled basis among all layers of a process.
    """
    import copy

    import torch
    from escnn.nn import Linear

    options: dict[str, Any] = {"bias": layer.bias is not None, "initialize": False, "recompute": True}
    if not isinstance(layer, Linear):
        names = ("kernel_size", "padding", "output_padding", "stride", "dilation", "padding_mode", "groups")
        options.update({name: getattr(layer, name) for name in names if hasattr(layer, name)})
        options.update(rings=list(layer._rings), sigma=list(layer._sigma), frequencies_cutoff=frequency_limit(layer))
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # escnn's constructors know no other
    try:
        new = type(layer)(in_type, out_type, **options)
    finally:
        torch.set_default_dtype(default_dtype)
    if is_point_convolution(new):  # the analytic kernels are modules too, kept by the G-space for all its layers
        copies: dict[int, Any] = {}
        for _, block in block_modules(expansion(new)):
            block.basis = copy.deepcopy(block.basis, copies)
    return new


def convert(layer: Any, like: Tensor) -> Any:
    """Move a layer to the device and precision of a tensor, in place; returns the layer.

    Between points torch's own way fails: it leaves out modules that equal an earlier one, and escnn's analytic kernels
    are equal where their values are.
    """
    if not is_point_convolution(layer):
        return layer.to(device=like.device, dtype=like.dtype)
    modules: dict[int, Module] = {}
    queue: list[Module] = [layer]
    while queue:
        module = queue.pop()
        if id(module) not in modules:
            modules[id(module)] = module
            queue.extend(m for m in module._modules.values() if m is not None)
    for module in modules.values():
        for name, tensor in module._buffers.items():
            if tensor is not None:
                dtype = like.dtype if tensor.is_floating_point() else tensor.dtype
                module._buffers[name] = tensor.to(device=like.device, dtype=dtype)
        for parameter in module._parameters.values():
            if parameter is not None:
                parameter.data = parameter.data.to(device=like.device, dtype=like.dtype)
    return layer


def block_modules(expansion: Any) -> Iterator[tuple[tuple[str, str], Any]]:
    """The blocks of an escnn basis expansion or sampler, in the order of its weights: ``((in name, out name),
    module)``."""
    escaped = getattr(expansion, "_escape_pair", None)
    for pair in expansion._representations_pairs:
        yield pair, getattr(expansion, f"block_expansion_{escaped(pair)}" if escaped else f"block_sampler_{pair}")


def block_name(in_name: str, out_name: str) -> str:
    """The name under which a basis expansion holds the block of two representations."""
    from escnn.nn.modules.basismanager import BlocksBasisExpansion

    escape = BlocksBasisExpansion._escape_name
    return f"block_expansion_{(escape(None, in_name), escape(None, out_name))}"


def weight_range(expansion: Any, pair: tuple[str, str]) -> tuple[int, int]:
    """Start and stop of a block's coefficients, to be viewed as ``(out fields * in fields, kernels)``."""
    return expansion._weights_ranges[pair]


def irrep_positions(block: Any) -> list[tuple[int, int]]:
    """For each kernel of a block, the positions of the irreps it connects: ``(out, in)`` within the two fields."""
    return [(e["out_irrep_idx"], e["in_irrep_idx"]) for e in block.get_basis_info()]


def initialise(layer: Any) -> None:
    r"""Draw a layer's weights as escnn does when it constructs one, in place, in milliseconds where escnn takes
    seconds.

    He's initialisation, generalised to irreps (Weiler and Cesa, NeurIPS 2019): with :math:`n_o` the number of different
    irreps that kernels lead from to the irrep o of the output, and :math:`b_{\psi o}` the number of all kernels from
    irreps :math:`\psi` to it, weights have the standard deviation :math:`1 / \sqrt{n_o b_{\psi o}}`. That is the same
    for all fields of one kind, so it is found once for each pair of representations; escnn goes through the weights one
    by one. The same seed gives the same weights.
    """
    import torch

    expansion = layer.basisexpansion
    counts: dict[tuple[str, int], dict[Any, int]] = {}
    fields = {"in": [r.name for r in expansion._in_reprs], "out": [r.name for r in expansion._out_reprs]}
    blocks = {pair: list(block.get_basis_info()) for pair, block in block_modules(expansion)}
    for (source, target), kernels in blocks.items():
        for kernel in kernels:
            irreps = counts.setdefault((target, kernel["out_irrep_idx"]), {})
            irreps[kernel["in_irrep"]] = irreps.get(kernel["in_irrep"], 0) + fields["in"].count(source)
    deviations = torch.ones(expansion.dimension())
    for pair, kernels in blocks.items():
        irrep_counts = [counts[pair[1], kernel["out_irrep_idx"]] for kernel in kernels]
        sizes = [(len(irreps) * irreps[kernel["in_irrep"]]) ** -0.5 for irreps, kernel in zip(irrep_counts, kernels)]
        start, stop = weight_range(expansion, pair)
        deviations[start:stop] = torch.tensor(sizes).repeat((stop - start) // max(len(sizes), 1))
    with torch.no_grad():
        layer.weights.copy_(deviations.to(layer.weights) * torch.randn_like(layer.weights))
