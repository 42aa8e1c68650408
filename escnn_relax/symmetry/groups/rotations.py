"""How irreps of SO(3) and O(3) turn: many rotations at once, by the exponentials of their generators."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from escnn.group import Group, IrreducibleRepresentation
from torch import Tensor

__all__ = ["generators", "rotation", "rotation_matrices"]

#: An angle (radians) whose multiples by all frequencies stay below half a turn, so that the logarithm is the right one.
SMALL = 0.1


def rotation(group: Group, vector: Tensor) -> object:
    """The element of SO(3) or O(3) that turns about a vector by its length (radians)."""
    vector = vector.detach().double()
    angle = float(vector.norm())
    axis = vector / angle if angle > 0 else vector
    quaternion = np.append(axis.numpy() * np.sin(angle / 2), np.cos(angle / 2))
    return group.element((0, quaternion) if type(group).__name__ == "O3" else quaternion, "Q")


def generators(psi: IrreducibleRepresentation) -> Tensor:
    r"""The antisymmetric :math:`G_a` with :math:`\psi(\text{turn by } v) = \exp(\sum_a v_a G_a)`, shape ``(3, d, d)``.

    >>> from escnn.group import so3_group
    >>> psi, vector = so3_group(2).irrep(2), torch.tensor([0.3, -0.8, 0.5])
    >>> expected = torch.as_tensor(psi(rotation(so3_group(2), vector)))
    >>> bool((rotation_matrices(generators(psi), vector.double()) - expected).abs().max() < 1e-7)
    True
    """
    matrices = []
    for axis in torch.eye(3, dtype=torch.float64):
        logarithm = np.real(scipy.linalg.logm(np.asarray(psi(rotation(psi.group, SMALL * axis))))) / SMALL
        matrices.append(torch.as_tensor((logarithm - logarithm.T) / 2))
    return torch.stack(matrices)


def rotation_matrices(generators: Tensor, vectors: Tensor) -> Tensor:
    """The matrices of rotations by these vectors, ``(..., 3)`` to ``(..., d, d)``."""
    return torch.matrix_exp(torch.einsum("...a,aij->...ij", vectors, generators))
