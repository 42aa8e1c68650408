"""The one place where escnn's inside is reached; :mod:`escnn_relax._escnn_repairs` mends its installation.

Everything here imports escnn when it is called, not when this module is loaded: so the module loads where escnn is
missing, and can say what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Module

#: ``((radius, frequency), ...)``: the largest angular frequency on each ring.
Limit = tuple[tuple[float, int], ...]

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


def elements(block: Any) -> list[tuple[float, int, bool]]:
    """Radius and angular frequency of each kernel that a block could have, and whether it has it."""
    kernels = ((round(e["radius"], 6), abs(e["irrep:frequency"])) for e in block.basis)
    return [(*kernel, bool(there)) for kernel, there in zip(kernels, block._mask.tolist())]


def element_sizes(block: Any, points: Tensor) -> list[float]:
    """Squared size of each of these kernels, sampled at points."""
    sizes: list[float] = block.basis.sample(points).square().sum(dim=(0, 2, 3)).tolist()
    return sizes


def policies(convolution: Any) -> tuple[Any, ...]:
    """escnn's own limits on the frequency, as ``frequencies_cutoff`` takes them."""
    return (None, -2.0, -3.0) if convolution.d == 2 else (None, "default2", "default3")


def policy_limit(convolution: Any, policy: Any) -> list[int] | None:
    """The largest frequency that a ``frequencies_cutoff`` admits on each ring of a convolution, -1 for none; ``None``
    if the convolution was built with more or less."""
    from escnn.nn.modules.conv import r2convolution, r3convolution

    module, highest = (r2convolution if convolution.d == 2 else r3convolution), int(convolution._maximum_frequency)
    admits, *_, built = module.compute_basis_params(
        convolution.kernel_size, policy, list(convolution._rings), list(convolution._sigma), convolution.dilation
    )
    if built != highest:
        return None
    frequencies = range(highest + 1)
    return [
        max([f for f in frequencies if admits({"radius": r, "irrep:frequency": f})], default=-1)
        for r in convolution._rings
    ]


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


def rebuild(layer: Any, in_type: Any, out_type: Any, limit: Callable[[Any], Callable[[float], int]]) -> Any:
    """An uninitialised layer of the class, options and filter supports of ``layer`` between other field types.

    Its basis is its own: escnn otherwise shares the sampled basis among all layers of a process.

    Args:
        limit: from a convolution to the largest frequency on each of its rings, by the radius.
    """
    import copy

    import torch
    from escnn.nn import Linear

    options: dict[str, Any] = {"bias": layer.bias is not None, "initialize": False, "recompute": True}
    if not isinstance(layer, Linear):
        names = ("kernel_size", "padding", "output_padding", "stride", "dilation", "padding_mode", "groups")
        options.update({name: getattr(layer, name) for name in names if hasattr(layer, name)})
        options.update(rings=list(layer._rings), sigma=list(layer._sigma), frequencies_cutoff=limit(layer))
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
