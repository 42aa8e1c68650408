"""Which biases the summands of a mixture have, and which summands add nothing to a larger one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from escnn.nn import EquivariantModule, FieldType
from torch import Tensor

from ...symmetry.groups.lattice import Subgroup
from ...symmetry.kernels.graded import fixed_vectors
from ...symmetry.kernels.pathway import EQUIVARIANT
from .basis import MixtureBasis

__all__ = ["mixture_biases", "coinciding"]


def mixture_biases(strict: EquivariantModule, groups: Mapping[str, Subgroup]) -> dict[str, Tensor]:
    """For each summand the vectors that its bias is a combination of, shape ``(out channels, coefficients)``, float64.

    escnn's own for G, first; orthonormal invariant vectors for a subgroup. Without a bias only G's entry, with no
    vector.
    """
    if strict.bias is None:
        return {EQUIVARIANT.name: torch.zeros(strict.out_type.size, 0)}
    subgroups = {name: _invariant(strict.out_type, h) for name, h in groups.items()}
    return {EQUIVARIANT.name: strict.bias_expansion.detach().double().cpu(), **subgroups}


def _invariant(type: FieldType, group: Subgroup) -> Tensor:
    """Orthonormal vectors of a field type that a subgroup leaves invariant, shape ``(channels, vectors)``, float64."""
    vectors = {r.name: fixed_vectors(r, group).T for r in set(type.representations)}
    return torch.block_diag(*(vectors[r.name] for r in type.representations))


def coinciding(basis: MixtureBasis, biases: Mapping[str, Tensor], groups: Mapping[str, Subgroup]) -> dict[str, str]:
    """Subgroups that add nothing here to a larger one of the mixture, with its name."""
    size = {name: sum(basis.dimension(name, pair) for pair in pairs) for name, pairs in basis.combinations.items()}
    size[EQUIVARIANT.name] = sum(basis.counts.values())
    coincident: dict[str, str] = {}
    for name, group in groups.items():
        larger = [EQUIVARIANT.name, *(n for n, h in groups.items() if group < h and n not in coincident)]
        for other in larger:
            same_bias = name not in biases or biases[name].shape == biases[other].shape
            if size[name] == size[other] and same_bias:
                coincident[name] = other
                break
    return coincident
