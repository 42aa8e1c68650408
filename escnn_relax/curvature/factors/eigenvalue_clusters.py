r"""Eigenvectors of nearly equal eigenvalues, turned so that rounding does not choose them.

A factor of a steerable layer has equal eigenvalues in pairs and more, since it is a mean over the components of the
output fields, which the group exchanges. Within such a cluster any orthonormal basis diagonalises it, LAPACK's is a
matter of the last digits, and with it what a second operator has on its diagonal there. So that operator says which
basis is meant: its part within the cluster is diagonalised.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["clusters", "turn_clusters"]

#: Eigenvalues closer than this share of the largest are one cluster: float32 leaves 1e-7, which turns the eigenvectors
#: of others by less than 1 percent of a radian.
TOGETHER = 1e-6

#: Nor are such as differ by more than this share of themselves.
ALIKE = 0.01

#: More than this many are not kept together; they are cut at the widest of their gaps. A group exchanges no more than
#: the squared dimension of an irrep of it, and where there are hundreds they are zero.
MOST = 9


def clusters(values: Tensor) -> list[Tensor]:
    """Where the members of each cluster stand among ascending eigenvalues, by size: tensors ``(clusters, size)``, size
    1 first.

    >>> [of.tolist() for of in clusters(torch.tensor([0.1, 0.5, 0.5, 1.0]))]
    [[[0], [3]], [[1, 2]]]
    """
    gaps = values.diff()
    far = (gaps > TOGETHER * values[-1:].abs()) | (gaps > ALIKE * values[1:].abs())
    by_size: dict[int, list[range]] = {}
    start = 0
    for stop in [*(far.nonzero().flatten() + 1).tolist(), len(values)]:
        for cluster in _cut(range(start, stop), gaps.tolist()):
            by_size.setdefault(len(cluster), []).append(cluster)
        start = stop
    return [torch.tensor([list(cluster) for cluster in by_size[size]]) for size in sorted(by_size)]


def _cut(cluster: range, gaps: Sequence[float]) -> list[range]:
    """In pieces of at most ``MOST``, at the widest gaps first."""
    pieces, left = [], [cluster]
    while left:
        piece = left.pop()
        if len(piece) <= MOST:
            pieces.append(piece)
            continue
        widest = max(piece[:-1], key=gaps.__getitem__) + 1
        left += [range(widest, piece.stop), range(piece.start, widest)]
    return pieces


def turn_clusters(axes: Tensor, where: Tensor, operator: Tensor) -> Tensor:
    """Turn those columns of ``axes``, ``(D, D)``, that are in clusters of one size, in place, into the eigenvectors of
    an operator.

    Args:
        where: the clusters, ``(clusters, size)``.
        operator: on each of them, ``(clusters, size, size)``, in the present axes.

    Returns:
        the eigenvectors in the old axes, ``(clusters, size, size)``, in columns.
    """
    _, turn = torch.linalg.eigh(operator)
    flat = where.flatten().to(axes.device)
    members = axes[:, flat].view(len(axes), *where.shape).transpose(0, 1)  # (clusters, D, size)
    axes[:, flat] = (members @ turn.to(members)).transpose(0, 1).flatten(1)
    return turn
