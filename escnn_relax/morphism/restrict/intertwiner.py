r"""The linear map between the coefficients of a steerable layer of G and those of the same layer on H.

A kernel equivariant under G is equivariant under H, so each element of G's basis is a combination of H's:
:math:`\Phi_G = T \Phi_H`, and :math:`w_H = w_G T` gives the same kernel. H's kernels connect one irrep of H to another,
so in the irreps' coordinates the system falls apart into small ones.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from escnn.group import Representation
from escnn.nn import EquivariantModule, FieldType
from torch import Tensor

from ... import _escnn
from ...errors import EmptyBasisError, naming
from ...symmetry.kernels.linear_algebra import pseudo_inverse
from ...symmetry.kernels.sampling import check_axis

__all__ = ["BlockMap", "block_maps", "carry_weights", "bias_map", "renamed", "RESIDUAL_TOLERANCE", "RANK_TOLERANCE"]

#: Share of a kernel's norm that may be missing from H's span. escnn samples its bases in float32, whence 1e-7.
RESIDUAL_TOLERANCE = 1e-4
#: Smaller singular values, relative to the largest, belong to kernels that coincide on the grid.
RANK_TOLERANCE = 1e-5
#: Above this many multiplications H's basis is not polished (see :func:`block_maps`) unless the layer is in float64.
POLISH_LIMIT = 2e9


class BlockMap(NamedTuple):
    """One pair of representations of G: its name pair, that of H, T of shape ``(K_G, K_H)``, and H's sampled basis."""

    pair: tuple[str, str]
    new_pair: tuple[str, str]
    transfer: Tensor
    basis: Tensor


def _irrep_slices(representation: Representation) -> list[slice]:
    sizes = [representation.group.irrep(*id).size for id in representation.irreps]
    ends = np.cumsum(sizes)
    return [slice(int(e - s), int(e)) for s, e in zip(sizes, ends)]


def _by_name(type: FieldType) -> dict[str, Representation]:
    return {r.name: r for r in type.representations}


def renamed(old_type: FieldType, new_type: FieldType) -> dict[str, str]:
    """The name that each representation of the old field type has in the new one, field by field."""
    return {a.name: b.name for a, b in zip(old_type.representations, new_type.representations)}


def block_maps(old: EquivariantModule, new: EquivariantModule, polish: bool = True) -> list[BlockMap]:
    r"""T for each block of a layer, and H's basis.

    escnn samples both bases in float32, so that :math:`\Phi_G = T\Phi_H + R` with :math:`|R| \sim 10^{-7}`. H's basis
    is therefore polished, :math:`\Phi_H + T^+ R`, the smallest change after which :math:`\Phi_G` lies in its span: in
    float64 the kernels then agree to 1e-14, while H's constraint is met as well as by escnn's own kernels.

    Args:
        old: the layer of G; a point convolution has nothing sampled to polish, its kernels agree to 1e-6 in either
            precision.
        new: the layer rebuilt on H, fields in the same order.

    Raises:
        ReflectionAxisError: see :func:`~escnn_relax.symmetry.kernels.sampling.check_axis`.
        EmptyBasisError: H's basis does not contain G's; the message gives the residual norm.
    """
    with naming(type(old)):
        check_axis(old)
    ins, outs = _by_name(new.in_type), _by_name(new.out_type)
    to_in, to_out = renamed(old.in_type, new.in_type), renamed(old.out_type, new.out_type)
    blocks = dict(_escnn.block_modules(_escnn.expansion(new)))
    points = _sampling_points(old) if _escnn.is_point_convolution(old) else None
    maps = []
    for pair, block in _escnn.block_modules(_escnn.expansion(old)):
        new_pair = to_in[pair[0]], to_out[pair[1]]
        rows = _escnn.kernels(block, points)
        if new_pair not in blocks:
            raise _missing(type(old), pair, 1.0)
        basis = _escnn.kernels(blocks[new_pair], points)
        positions = _escnn.irrep_positions(blocks[new_pair])
        transfer, residual = _solve(rows, basis, positions, ins[new_pair[0]], outs[new_pair[1]])
        share = float(residual.norm() / rows.norm())
        if share > RESIDUAL_TOLERANCE:
            raise _missing(type(old), pair, share)
        work = len(rows) * len(basis) * rows[0].numel()
        if polish and points is None and (work < POLISH_LIMIT or block.sampled_basis.dtype == torch.float64):
            for _ in range(2):  # the second pass removes the rounding of the first
                residual = rows - torch.einsum("gh,hois->gois", transfer, basis)
                basis = basis + torch.einsum("hg,gois->hois", pseudo_inverse(transfer, 1e-9), residual)
        maps.append(BlockMap(pair, new_pair, transfer, basis))
    return maps


def _sampling_points(layer: EquivariantModule) -> Tensor:
    """Points on each ring, in more directions than there are harmonics: they tell all kernels of a layer apart."""
    d, highest = layer.d, int(layer._maximum_frequency)
    count = 4 * (highest + 1) if d == 2 else 2 * (highest + 1) ** 2 + 4
    directions = torch.randn(count, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    return torch.cat([radius * directions for radius in layer._rings])


def _missing(layer: type, pair: tuple[str, str], share: float) -> EmptyBasisError:
    return EmptyBasisError(
        layer,
        f"the subgroup's basis lacks kernels of the group's, {pair[0]} to {pair[1]}: residual norm {share:.2e} of 1",
        remedy="the layer's basis_filter keeps them out; build it with frequencies_cutoff instead",
    )


def _solve(
    rows: Tensor, basis: Tensor, positions: list[tuple[int, int]], in_repr: Representation, out_repr: Representation
) -> tuple[Tensor, Tensor]:
    """T and the residual, the latter in the irreps' coordinates."""
    left = torch.as_tensor(np.asarray(out_repr.change_of_basis_inv), dtype=torch.float64)
    right = torch.as_tensor(np.asarray(in_repr.change_of_basis), dtype=torch.float64)
    images = torch.einsum("po,kois,iq->kpqs", left, rows, right)
    residual = images.clone()
    transfer = rows.new_zeros(len(rows), len(basis))
    outs, ins = _irrep_slices(out_repr), _irrep_slices(in_repr)
    members: dict[tuple[int, int], list[int]] = {}
    for k, position in enumerate(positions):
        members.setdefault(position, []).append(k)
    for (o, i), which in members.items():
        span = torch.einsum("po,kois,iq->kpqs", left[outs[o]], basis[which], right[:, ins[i]]).flatten(1)
        target = images[:, outs[o], ins[i]].flatten(1)
        solution = target @ pseudo_inverse(span, RANK_TOLERANCE)
        transfer[:, which] = solution
        residual[:, outs[o], ins[i]] -= (solution @ span).view(len(rows), *residual[0, outs[o], ins[i]].shape)
    return transfer, residual


def carry_weights(
    vector: Tensor, old: EquivariantModule, new: EquivariantModule, maps: list[BlockMap], squared: bool = False
) -> Tensor:
    """Coefficients of the layer on G, or anything of their shape, as coefficients on H: ``w T`` block by block.

    Args:
        squared: take the squares of T's entries, as variances of independent coefficients propagate.
    """
    result = torch.zeros(new.weights.shape, dtype=torch.float64)
    vector = vector.detach().double().cpu()
    for m in maps:
        transfer = m.transfer**2 if squared else m.transfer
        start, stop = _escnn.weight_range(_escnn.expansion(old), m.pair)
        first, last = _escnn.weight_range(_escnn.expansion(new), m.new_pair)
        result[first:last] = (vector[start:stop].view(-1, len(transfer)) @ transfer).flatten()
    return result


def bias_map(old: EquivariantModule, new: EquivariantModule) -> tuple[Tensor, Tensor]:
    """T for the bias (shape ``(trivials of G, trivials of H)``) and H's expansion, polished as the kernels are."""
    columns = old.bias_expansion.detach().double().cpu()
    expansion = new.bias_expansion.detach().double().cpu()
    transfer = (torch.linalg.pinv(expansion) @ columns).T
    transfer[transfer.abs() < 1e-7] = 0.0
    for _ in range(2):
        expansion = expansion + (columns - expansion @ transfer.T) @ torch.linalg.pinv(transfer.T)
    return transfer, expansion
