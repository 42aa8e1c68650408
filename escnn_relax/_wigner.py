r"""Real Wigner matrices in plain numpy: the one thing that escnn takes from lie_learn, which today's Pythons cannot
install.

.. math:: D^l(\alpha, \beta, \gamma) = e^{-i\alpha J_z} e^{-i\beta J_y} e^{-i\gamma J_z}

in the basis of real spherical harmonics of degree l, centred order :math:`m = -l, ..., l`, with the Condon-Shortley
phase, as ``lie_learn.representations.SO3.wigner_d.wigner_D_matrix`` has it by default (equal to 1e-14 up to l = 20).
The generators follow from the commutation relations (any text on angular momentum, e.g. Sakurai, *Modern quantum
mechanics*, ch. 3).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["wigner_D_matrix"]


def wigner_D_matrix(
    l: int,  # noqa: E741 - lie_learn's name for it
    alpha: float,
    beta: float,
    gamma: float,
    field: str = "real",
    normalization: str = "quantum",
    order: str = "centered",
    condon_shortley: str = "cs",
) -> NDArray[np.float64]:
    """The matrix of the rotation with Euler angles ``ZYZ`` (radians) in the real irrep of degree ``l``.

    Returns:
        an orthogonal matrix, shape ``(2 l + 1, 2 l + 1)``, float64.

    Raises:
        NotImplementedError: another basis than the one that escnn uses.

    >>> (wigner_D_matrix(1, 0.3, 0.0, 0.0).round(3) + 0.0).tolist()
    [[0.955, 0.0, 0.296], [0.0, 1.0, 0.0], [-0.296, 0.0, 0.955]]
    """
    convention = (field, normalization, order, condon_shortley)
    if convention != ("real", "quantum", "centered", "cs"):
        raise NotImplementedError(
            f"Wigner matrices only in escnn's basis, not {convention}: install lie_learn for others"
        )
    m, values, vectors, basis = _generators(l)
    about_y = (vectors * np.exp(-1j * float(beta) * values)) @ vectors.conj().T
    complex_matrix = np.exp(-1j * float(alpha) * m)[:, None] * about_y * np.exp(-1j * float(gamma) * m)
    return np.ascontiguousarray((basis @ complex_matrix @ basis.conj().T).real)


@cache
def _generators(degree: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Diagonal of J_z, eigenvalues and -vectors of J_y, and the change of basis from complex to real harmonics."""
    m = np.arange(-degree, degree + 1)
    raising = np.diag(np.sqrt(degree * (degree + 1.0) - m[:-1] * (m[:-1] + 1.0)), -1)
    values, vectors = np.linalg.eigh((raising - raising.T) / 2j)
    basis = np.zeros((2 * degree + 1,) * 2, dtype=complex)
    basis[degree, degree] = 1.0
    for k in range(1, degree + 1):
        phase = (-1.0) ** k
        basis[degree + k, [degree + k, degree - k]] = np.array([phase, 1.0]) / np.sqrt(2)
        basis[degree - k, [degree - k, degree + k]] = np.array([-1j, 1j * phase]) / np.sqrt(2)
    return m, np.rint(values), vectors, basis
