"""Decomposing a representation, known by its matrices, into irreducible ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from escnn import group as g
from numpy.typing import NDArray

from ...errors import SubgroupError
from .finite_groups import group_elements, group_order

__all__ = ["decompose", "generating_elements"]

#: Below this a vector counts as zero: matrices of escnn's larger groups are accurate to about 1e-8.
TOLERANCE = 1e-5


def generating_elements(group: g.Group) -> list[g.GroupElement]:
    """Elements that generate the group, a continuous one up to closure."""
    if group_order(group) > 0:
        return list(group.generators) or [group.identity]
    kind = type(group).__name__
    if kind == "SO2":
        return [group.element(1.0)]
    if kind == "O2":
        return [group.element((0, 1.0)), group.element((1, 0.0))]
    if kind in ("SO3", "O3"):
        quaternions = [np.array([np.sin(0.5), 0, 0, np.cos(0.5)]), np.array([0, 0, np.sin(0.5), np.cos(0.5)])]
        if kind == "SO3":
            return [group.element(q, "Q") for q in quaternions]
        return [group.element((0, q), "Q") for q in quaternions] + [group.inversion]
    return [group.inclusion1(a) for a in generating_elements(group.G1)] + [
        group.inclusion2(b) for b in generating_elements(group.G2)
    ]


def _irreps(group: g.Group) -> Iterator[g.IrreducibleRepresentation]:
    """All irreps of a finite group; those of a continuous one by growing frequency, without end."""
    kind = type(group).__name__
    if kind == "SO2":
        yield from (group.irrep(f) for f in range(1000))
    elif kind == "O2":
        yield group.irrep(0, 0)
        yield group.irrep(1, 0)
        yield from (group.irrep(1, f) for f in range(1, 1000))
    elif kind == "SO3":
        yield from (group.irrep(f) for f in range(100))
    elif kind == "O3":
        yield from (group.irrep(parity, f) for f in range(100) for parity in (0, 1))
    elif isinstance(group, g.DirectProductGroup) and type(group.G1).__name__ == "CyclicGroup" and group.G1.order() == 2:
        for psi in _irreps(group.G2):
            for sign in (0, 1):
                yield group.irrep((sign,), psi.id)
    elif isinstance(group, g.DirectProductGroup):
        for a in group.G1.irreps():
            for b in group.G2.irreps():
                yield group.irrep(a.id, b.id)
                for i in range(1, 4):
                    if a.sum_of_squares_constituents > 1 and b.sum_of_squares_constituents > 1 and i < 2:
                        yield group.irrep(a.id, b.id, i)
    else:
        yield from group.irreps()


def decompose(
    group: g.Group, matrix: Callable[[g.GroupElement], NDArray[Any]]
) -> tuple[list[tuple[Any, ...]], NDArray[Any]]:
    r"""Irreps and change of basis of a real representation, :math:`\rho(h) = Q \bigoplus_i \psi_i(h)\, Q^{-1}`.

    The intertwiners from :math:`\psi` to :math:`\rho` are, for a finite group, the averages
    :math:`\frac1{|H|}\sum_h \rho(h) X \psi(h)^{-1}` (Schur; Serre, *Linear representations of finite groups*, section
    2.2), otherwise the null space of :math:`X \mapsto \rho(h) X - X \psi(h)` over generating elements.

    Args:
        matrix: element of the group -> invertible matrix, shape ``(n, n)``.

    Returns:
        ids of the irreps and Q, shape ``(n, n)``, float64; orthogonal where the representation is.

    Raises:
        SubgroupError: the irreps that escnn knows do not add up to the representation.

    >>> from escnn.group import cyclic_group
    >>> c4 = cyclic_group(4)
    >>> ids, q = decompose(c4, c4.regular_representation)
    >>> sorted(ids)
    [(0,), (1,), (2,)]
    """
    elements = list(group_elements(group)) if group_order(group) > 0 else generating_elements(group)
    rho = np.stack([np.asarray(matrix(h), dtype=np.float64) for h in elements])
    size = rho.shape[1]
    metric = np.eye(size)
    if group_order(group) > 0 and not np.allclose(rho @ rho.transpose(0, 2, 1), np.eye(size), atol=1e-9):
        # the invariant inner product: in its square root's coordinates the representation is orthogonal
        values, vectors = np.linalg.eigh((rho.transpose(0, 2, 1) @ rho).mean(0))
        metric = (vectors * np.sqrt(values)) @ vectors.T
        rho = metric @ rho @ np.linalg.inv(metric)
    ids: list[tuple[Any, ...]] = []
    basis = np.zeros((size, 0))
    for psi in _irreps(group):
        if basis.shape[1] == size:
            break
        images = np.stack([np.asarray(psi(h), dtype=np.float64) for h in elements])
        candidates = _averages(rho, images) if group_order(group) > 0 else _null_space(rho, images)
        while basis.shape[1] < size:
            candidates = candidates - np.einsum("ij,kj,nkd->nid", basis, basis, candidates)
            norms = (candidates**2).sum((1, 2))
            if not len(norms) or norms.max() < TOLERANCE:
                break
            best = candidates[norms.argmax()]
            best = best / np.sqrt((best**2).sum() / psi.size)
            basis = np.concatenate([basis, best], axis=1)
            ids.append(psi.id)
    if basis.shape[1] != size:
        raise SubgroupError(
            group.name,
            f"a representation of size {size} contains only {basis.shape[1]} dimensions of known irreps",
            remedy="build the representation from irreps of the group, or instantiate higher ones first",
        )
    return ids, np.linalg.inv(metric) @ basis


def _averages(rho: NDArray[Any], psi: NDArray[Any]) -> NDArray[Any]:
    """Intertwiners ``(candidates, n, d)`` that averaging the elementary matrices over the group gives."""
    size, d = rho.shape[1], psi.shape[1]
    averages = np.einsum("hia,hjb->abij", rho, psi, optimize=True) / len(rho)
    return averages.reshape(size * d, size, d)


def _null_space(rho: NDArray[Any], psi: NDArray[Any]) -> NDArray[Any]:
    size, d = rho.shape[1], psi.shape[1]
    rows = [np.kron(r, np.eye(d)) - np.kron(np.eye(size), p.T) for r, p in zip(rho, psi)]
    _, values, vectors = np.linalg.svd(np.concatenate(rows))
    return vectors[values < TOLERANCE].reshape(-1, size, d)
