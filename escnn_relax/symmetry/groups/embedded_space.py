r"""A G-space for any finite group of turns and reflections of space, those included for which escnn has none.

escnn's G-spaces in space are its subgroups of O(3). It builds none of the tetrahedral groups and of those with
rotoreflections (S4, D2d, C3h, ...). Here the kernels are solved from the matrices by which the group moves points: with
harmonics :math:`Y_l(gx) = D_l(g) Y_l(x)` and irreps :math:`\sigma` of the input and :math:`\tau` of the output,
:math:`K(x) = \sum_m C_m Y_{lm}(x)` is equivariant exactly if C is fixed under :math:`\tau \otimes \sigma \otimes D_l`,
and the average over the group projects on those (Reynolds).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from escnn import group as g
from escnn import gspaces, kernels
from numpy.typing import NDArray
from torch import Tensor

from .decomposition import decompose
from .finite_groups import group_elements

__all__ = ["EmbeddedBasis", "EmbeddedGSpace"]


class EmbeddedGSpace(gspaces.GSpace3D):
    """Space with a finite group that moves it by given matrices.

    Args:
        fibergroup: a finite group of escnn's.
        matrices: orthogonal matrices of its elements, in the order of ``fibergroup.elements``, shape ``(order, 3, 3)``.
        name: of the group where it lies, for printing.
    """

    def __init__(self, fibergroup: g.Group, matrices: NDArray[Any], name: str) -> None:
        self.matrices: NDArray[Any] = np.asarray(matrices, dtype=np.float64)
        self.label = name
        self._sg_id = None  # escnn's id in O(3), of which there is none
        gspaces.GSpace.__init__(self, fibergroup, 3, f"{name}_on_R3[{fibergroup.name}]")
        position = {e: i for i, e in enumerate(group_elements(fibergroup))}
        o3 = g.o3_group()
        self._images = tuple(_o3_element(o3, m) for m in self.matrices)
        self._position = position
        ids, change = decompose(fibergroup, lambda h: self.matrices[position[h]])
        self._action = g.Representation(fibergroup, f"{name}_on_R3", ids, change, [])

    @property
    def basespace_action(self) -> g.Representation:
        return self._action

    def images(self) -> tuple[g.GroupElement, ...]:
        """The elements as elements of O(3), in the order of ``fibergroup.elements``."""
        return self._images

    def restrict(self, id: Any) -> tuple[gspaces.GSpace, Callable[..., Any], Callable[..., Any]]:
        """The same space seen by a subgroup, see :func:`~escnn_relax.symmetry.groups.subgroup_embedding.embedding` for
        ids."""
        from .subgroup_embedding import embedding

        group, embed, pull = embedding(self.fibergroup, id)
        matrices = np.stack([self.matrices[self._position[embed(h)]] for h in group_elements(group)])
        return EmbeddedGSpace(group, matrices, f"{self.label}:{group.name}"), embed, pull

    def _basis_generator(
        self,
        in_repr: g.Representation,
        out_repr: g.Representation,
        rings: list[float],
        sigma: list[float],
        **kwargs: Any,
    ) -> kernels.KernelBasis:
        highest = kwargs.get("maximum_frequency", 5)
        g.o3_group(highest)  # has the irreps that are needed
        shells = kernels.SphericalShellsBasis(highest, kernels.GaussianRadialProfile(rings, sigma))
        return kernels.SteerableKernelBasis(shells, in_repr, out_repr, EmbeddedBasis, space=self)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, EmbeddedGSpace)
            and self.fibergroup == other.fibergroup
            and np.allclose(self.matrices, other.matrices, atol=1e-6)
        )

    def __hash__(self) -> int:
        return hash((self.fibergroup.name, "EmbeddedGSpace"))

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddedGSpace, (self.fibergroup, self.matrices, self.label)


def _o3_element(o3: g.Group, matrix: NDArray[Any]) -> g.GroupElement:
    inversion = np.linalg.det(matrix) < 0
    return o3.element((int(inversion), matrix * (-1.0 if inversion else 1.0)), "MAT")


class EmbeddedBasis(kernels.IrrepBasis):
    """Kernels between two irreps of the group of an :class:`EmbeddedGSpace`, as escnn composes them to layers."""

    def __init__(
        self,
        basis: kernels.SteerableFiltersBasis,
        in_irrep: g.IrreducibleRepresentation,
        out_irrep: g.IrreducibleRepresentation,
        space: EmbeddedGSpace,
    ) -> None:
        elements, images = group_elements(space.fibergroup), space.images()
        pairs = np.stack([np.kron(np.asarray(out_irrep(h)), np.asarray(in_irrep(h))) for h in elements])
        solutions: dict[Any, Tensor] = {}
        for j, multiplicity in basis.js:
            harmonics = np.stack([np.asarray(basis.group.irrep(*j)(e)) for e in images])
            fixed = _fixed_vectors(pairs, harmonics)
            if multiplicity and len(fixed):
                shape = (-1, out_irrep.size, in_irrep.size, harmonics.shape[1])
                solutions[j] = torch.as_tensor(fixed, dtype=torch.float32).reshape(shape)
        self._counts = {j: len(solution) for j, solution in solutions.items()}
        self._multiplicity = {j: basis.multiplicity(j) for j in solutions}
        self.space = space
        dim = sum(self._counts[j] * self._multiplicity[j] for j in solutions)
        super().__init__(basis, in_irrep, out_irrep, dim, harmonics=list(solutions))
        for number, j in enumerate(self.js):
            self.register_buffer(f"coeff_{number}", solutions[j])

    def coeff(self, number: int) -> Tensor:
        """Coefficients of one irrep of O(3), shape ``(K, out size, in size, 2 l + 1)``."""
        coefficients: Tensor = getattr(self, f"coeff_{number}")
        return coefficients

    def sample_harmonics(self, points: dict[Any, Tensor], out: dict[Any, Tensor] | None = None) -> dict[Any, Tensor]:
        if out is None:
            out = {j: p.new_zeros(len(p), self.dim_harmonic(j), *self.shape) for j, p in points.items() if j in self.js}
        for number, j in enumerate(self.js):
            if j in out:
                values = torch.einsum("dpnm,sim->sdipn", self.coeff(number).to(points[j]), points[j])
                out[j][:] = values.reshape(out[j].shape)
        return out

    def dim_harmonic(self, j: Any) -> int:
        return self._counts.get(j, 0) * self._multiplicity.get(j, 0)

    def attrs_j_iter(self, j: Any) -> Iterator[dict[str, Any]]:
        if j not in self._counts:
            return
        irrep_attributes = {f"irrep:{k}": v for k, v in self.basis.group.irrep(*j).attributes.items()}
        radial = list(self.basis.steerable_attrs_j_iter(j))
        start = self._start_index[j]
        for s in range(self._counts[j]):
            for i, attributes in enumerate(radial):
                yield {**irrep_attributes, **attributes, "idx": start + s * len(radial) + i, "j": j, "i": i, "s": s}

    def attrs_j(self, j: Any, idx: int) -> dict[str, Any]:
        return list(self.attrs_j_iter(j))[idx]

    def __getitem__(self, idx: int) -> dict[str, Any]:
        return list(self)[idx]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for j in self.js:
            yield from self.attrs_j_iter(j)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, EmbeddedBasis)
            and self.basis == other.basis
            and self.space == other.space
            and (self.in_irrep, self.out_irrep) == (other.in_irrep, other.out_irrep)
        )

    def __hash__(self) -> int:
        return hash((self.basis, self.space, self.in_irrep.id, self.out_irrep.id))

    @classmethod
    def _generator(cls, basis: Any, psi_in: Any, psi_out: Any, **kwargs: Any) -> EmbeddedBasis:
        space: EmbeddedGSpace = kwargs["space"]
        group = space.fibergroup
        in_irrep, out_irrep = (group.irrep(*group.get_irrep_id(psi)) for psi in (psi_in, psi_out))
        irrep_basis = cls(basis, in_irrep, out_irrep, space=space)
        if not irrep_basis.dim:
            raise kernels.EmptyBasisException()
        return irrep_basis


def _fixed_vectors(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Orthonormal vectors fixed by all tensor products of two lists of orthogonal matrices, as rows."""
    average = np.einsum("hab,hcd->acbd", first, second, optimize=True) / len(first)
    size = first.shape[1] * second.shape[1]
    values, vectors = np.linalg.eigh(average.reshape(size, size))
    fixed: NDArray[Any] = vectors[:, values > 0.5].T
    return fixed
