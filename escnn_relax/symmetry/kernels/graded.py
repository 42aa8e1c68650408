r"""The graded kernel space: all kernels of a layer, sorted by how they break the group.

The kernels from :math:`\rho_{in}` to :math:`\rho_{out}` carry the representation
:math:`(g \cdot K)(x) = \rho_{out}(g) K(g^{-1}x) \rho_{in}(g)^{-1}`. Its trivial part are the equivariant kernels; each
other irrep :math:`\psi` is one way to break the symmetry. An intertwiner into :math:`\rho_{out} \otimes \psi` is a
tuple of :math:`\dim\psi` kernels that transform among themselves by :math:`\psi`, so escnn's own solver, asked for
:math:`\rho_{in} \to \rho_{out} \otimes \psi`, builds each part. The kernels equivariant under a subgroup H are the
combinations of such tuples by the H-fixed vectors of the :math:`\psi` (Frobenius reciprocity).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from escnn.group import IrreducibleRepresentation, Representation
from escnn.gspaces import GSpace
from torch import Tensor

from ..groups.decomposition import generating_elements
from ..groups.irreps import highest_frequency, instantiate, irreps_up_to
from ..groups.lattice import Subgroup
from .sampling import Sampler

#: A vector that generating elements move by less than this is fixed; escnn's larger matrices are accurate to 1e-8.
FIXED_TOLERANCE = 1e-5

_PRODUCTS: dict[tuple[int, Any, Any], Representation] = {}

__all__ = ["isotypic_tuples", "isotypic_kernels", "fixed_vectors", "fixed_kernels", "product"]


def isotypic_tuples(
    band: Sampler, gspace: GSpace, in_repr: Representation, out_repr: Representation, psi: IrreducibleRepresentation
) -> Tensor:
    r"""Tuples of kernels that transform by ``psi``, shape ``(K, dim psi, out size, in size, S)``, float64.

    For an irrep of complex or quaternionic type the tuples are 2 or 4 times redundant, since :math:`\psi` commutes
    with more than the scalars.

    >>> from escnn import gspaces, nn
    >>> space = gspaces.rot2dOnR2(4)
    >>> regular = nn.FieldType(space, [space.regular_repr])
    >>> from escnn_relax.symmetry.kernels.sampling import Band
    >>> band = Band.from_layer(nn.R2Conv(regular, regular, 5, initialize=False))
    >>> [isotypic_kernels(band, space, *2 * [space.regular_repr], psi).shape[0] for psi in space.irreps]
    [44, 88, 44]
    """
    group = gspace.fibergroup
    if group.continuous:
        instantiate(group, sum(highest_frequency([representation]) for representation in (in_repr, out_repr, psi)))
    target = out_repr if psi.is_trivial() else product(out_repr, psi)
    kernels = band.sample(gspace, in_repr, target)
    return kernels.unflatten(1, (out_repr.size, psi.size)).transpose(1, 2)


def product(out_repr: Representation, psi: IrreducibleRepresentation) -> Representation:
    r""":math:`\rho_{out} \otimes \psi`; that of two irreps, which many pathways and pairs ask for, is made once."""
    if not isinstance(out_repr, IrreducibleRepresentation):
        return out_repr.tensor(psi)
    key = id(psi.group), out_repr.id, psi.id  # escnn's groups have no hash
    if key not in _PRODUCTS:
        _PRODUCTS[key] = out_repr.tensor(psi)  # which holds on to the group
    return _PRODUCTS[key]


def isotypic_kernels(
    band: Sampler, gspace: GSpace, in_repr: Representation, out_repr: Representation, psi: IrreducibleRepresentation
) -> Tensor:
    """Kernels that span the ``psi`` part, not redundant, shape ``(m, out size, in size, S)``.

    For complex type, the first members of all tuples already span the part (the complex structure carries the first
    member of one tuple to the other members of another). For real type the members are independent.
    """
    tuples = isotypic_tuples(band, gspace, in_repr, out_repr, psi)
    members = psi.size // psi.sum_of_squares_constituents
    return tuples[:, : max(1, members)].flatten(0, 1)


def fixed_vectors(psi: IrreducibleRepresentation, subgroup: Subgroup) -> Tensor:
    r"""Orthonormal vectors :math:`v` with :math:`\psi(h) v = v` for all h in H, shape ``(f, dim psi)``, float64.

    They are the common null space of :math:`\psi(h) - 1` over elements that generate H (a continuous H up to closure).

    >>> from escnn import gspaces
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> space = gspaces.flipRot2dOnR2(-1)
    >>> turns, third = subgroup(space, (None, -1)), subgroup(space, (None, 3))
    >>> [[len(fixed_vectors(psi, h)) for psi in irreps_up_to(space.fibergroup, 4)] for h in (turns, third)]
    [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 2, 0]]
    """
    moves = [np.asarray(psi(subgroup.embed(h))) - np.eye(psi.size) for h in generating_elements(subgroup.group)]
    _, values, vectors = torch.linalg.svd(torch.as_tensor(np.concatenate(moves), dtype=torch.float64))
    return vectors[values < FIXED_TOLERANCE]


def fixed_kernels(
    band: Sampler,
    gspace: GSpace,
    in_repr: Representation,
    out_repr: Representation,
    subgroup: Subgroup,
    irreps: Iterable[IrreducibleRepresentation] | None = None,
) -> Tensor:
    """Kernels that span the subgroup's equivariant kernels beyond the group's own, shape ``(m, out, in, S)``.

    Args:
        irreps: where to look for them; all irreps of a finite group by default.
    """
    kernels = [torch.zeros(0, out_repr.size, in_repr.size, len(band.points), dtype=torch.float64)]
    for psi in irreps_up_to(gspace.fibergroup, None) if irreps is None else irreps:
        if psi.is_trivial():
            continue
        vectors = fixed_vectors(psi, subgroup)
        if len(vectors):
            tuples = isotypic_tuples(band, gspace, in_repr, out_repr, psi)
            kernels.append(torch.einsum("fa,kaois->fkois", vectors, tuples).flatten(0, 1))
    return torch.cat(kernels)
