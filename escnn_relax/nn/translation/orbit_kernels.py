"""Kernels on scattered points that a group permutes, one for each orbit, and the weights nearest to a kernel."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from escnn.group import Representation
from escnn.nn import FieldType
from torch import Tensor

from ...symmetry.grid.sites import Sites, grid_points, permutes
from ...symmetry.groups.lattice import subgroups
from ...symmetry.groups.subgroup import Subgroup

__all__ = ["fit_weights", "invariant_biases", "orbit_kernels"]


def orbit_kernels(sites: Sites, subgroup: Subgroup, i: Representation, o: Representation, dtype: torch.dtype) -> Tensor:
    """One kernel for each orbit and each entry of the matrix there, ``(orbits * o * i, o size, i size, sites)``."""
    left = torch.as_tensor(np.stack([np.asarray(o(g)) for g in subgroup.elements]), dtype=dtype)  # (order, o, o)
    right = torch.as_tensor(np.stack([np.asarray(i(g)) for g in subgroup.elements]), dtype=dtype)
    turned = torch.einsum("gpa,gqb->abpqg", left, right)  # rho_out E_ab rho_in^T
    kernels = turned.new_zeros(sites.orbits, *turned.shape[:4], len(sites))
    for r, points in enumerate(sites.index):
        kernels[r].index_add_(4, points.cpu(), turned * float(sites.share[r]))
    return kernels.flatten(0, 2)


def invariant_biases(out_type: FieldType) -> Tensor:
    """The constant fields that the group leaves alone, in columns, shape ``(channels, trivial irreps)``."""
    blocks = []
    for r in out_type.representations:
        sizes = [r.group.irrep(*id).size for id in r.irreps]
        starts = np.cumsum([0, *sizes])
        trivial = [start for start, id in zip(starts, r.irreps) if r.group.irrep(*id).is_trivial()]
        blocks.append(torch.as_tensor(np.asarray(r.change_of_basis)[:, trivial], dtype=torch.get_default_dtype()))
    return torch.block_diag(*blocks)


def fit_weights(layer: Any) -> Tensor:
    """Least-squares weights for a random kernel on the pixels."""
    shape = (layer.kernel_size,) * layer.d
    in_reprs, out_reprs = (
        layer.in_type.representations[: len(layer.in_type) // layer.groups],
        layer.out_type.representations,
    )
    known = {r.name: r for r in (*in_reprs, *out_reprs)}
    largest = max(
        (h for h in subgroups(layer.space) if h <= layer.subgroup and permutes(h, shape)), key=lambda h: h.order
    )
    pixels, matrix = Sites(grid_points(shape), largest), layer.anchors.matrix().double()
    bound = math.sqrt(6 / (layer.kernel.in_size * matrix.shape[0]))
    weights = torch.zeros(layer.weights.shape, dtype=torch.float64, device=layer.weights.device)
    for block in layer.kernel.blocks["equivariant"]:
        kernels = orbit_kernels(pixels, largest, known[block.in_name], known[block.out_name], torch.float64)
        drawn = torch.empty(block.outputs * block.inputs, len(kernels)).uniform_(-bound, bound).double()
        share = pixels.share.double().repeat_interleave(len(kernels) // pixels.orbits)
        target = ((drawn * share) @ kernels.flatten(1)).to(matrix.device)
        basis = (layer.kernel.basis(block).double() @ matrix.T).flatten(1)
        # few anchors crowd, and their kernels may be dependent
        weights[block.start : block.stop] = (target @ torch.linalg.pinv(basis, rtol=1e-10)).flatten()
    return weights
