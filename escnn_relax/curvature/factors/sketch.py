r"""The spectrum of a large positive semi-definite matrix from products with few vectors.

1. Axes Q of the largest eigenvalues, by subspace iteration from random vectors (Halko, Martinsson, Tropp, *Finding
   structure with randomness*, SIAM Review 2011); their Ritz values are the eigenvalues of :math:`Q^\top A Q`.
2. On what is left, :math:`(1 - QQ^\top) A (1 - QQ^\top)`, stochastic Lanczos quadrature: a few random vectors, a few
   steps each, whose Ritz values and weights are the quantiles of the spectrum (Ubaru, Chen, Saad, *Fast estimation of
   tr f(A)*, SIAM Journal on Matrix Analysis 2017).
3. The trace is known, and what is left is scaled to it.

Small matrices are decomposed. A direct sum has the sketches of its summands, joined.

Cutting a matrix into two diagonal blocks never lowers a sum of concave functions of its eigenvalues, so up to the noise
of the random vectors log determinants and effective dimensions err upwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Sketch", "decompose", "direct_sum", "sketch"]

#: Axes of the largest eigenvalues.
AXES = 32
#: Products with all axes before their Ritz values are taken.
ITERATIONS = 2
#: Random vectors for the quadrature, and its steps.
PROBES, STEPS = 4, 10
#: What remains of a vector below this share of it is rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Sketch:
    """What is known of a matrix A, ``(D, D)``.

    Attributes:
        axes: orthonormal columns ``(D, m)``, close to the eigenvectors of the largest eigenvalues.
        top: their Ritz values ``(m,)``, falling.
        rest: the other eigenvalues as quantiles ``(D - m,)``, falling; with ``top`` they add up to the trace.
    """

    axes: Tensor
    top: Tensor
    rest: Tensor

    @property
    def values(self) -> Tensor:
        """All eigenvalues, ``(D,)``."""
        return torch.cat([self.top, self.rest])

    @property
    def level(self) -> float:
        """The mean of the other eigenvalues."""
        return float(self.rest.mean()) if len(self.rest) else 0.0

    def dense(self) -> Tensor:
        """A with its mean level in place of the other eigenvalues."""
        eye = torch.eye(len(self.axes), dtype=self.axes.dtype)
        return self.level * eye + (self.axes * (self.top - self.level)) @ self.axes.T


def decompose(matrix: Tensor) -> Sketch:
    """All eigenvalues with their axes, of a matrix ``(D, D)``."""
    values, axes = torch.linalg.eigh((matrix + matrix.T) / 2)
    return Sketch(axes.flip(1), values.flip(0).clamp(min=0), values[:0])


def direct_sum(sketches: Sequence[Sketch], positions: Sequence[Tensor], size: int) -> Sketch:
    """Of a matrix ``(size, size)`` that is zero beside some blocks, with the axes of its :data:`AXES` largest
    eigenvalues.

    Args:
        sketches: of the different blocks.
        positions: where the rows of each copy of a block stand, ``(copies, D)``.

    >>> block = Sketch(torch.eye(2), torch.tensor([3.0, 1.0]), torch.tensor([]))
    >>> direct_sum([block], [torch.tensor([[0, 3], [1, 2]])], 5).values
    tensor([3., 3., 1., 1., 0.])
    """
    copied = [(sketch, copy) for sketch, copies in zip(sketches, positions) for copy in copies]
    values = torch.cat([sketch.top for sketch, _ in copied])
    order = values.argsort(descending=True, stable=True)
    known = order[:AXES]
    columns = torch.full((len(values),), -1)
    columns[known] = torch.arange(len(known))
    axes = values.new_zeros(size, len(known))
    for (sketch, copy), onto in zip(copied, columns.split([len(sketch.top) for sketch, _ in copied])):
        axes[copy[:, None], onto[onto >= 0]] = sketch.axes[:, onto >= 0]
    rest = torch.cat([values[order[AXES:]], *(sketch.rest for sketch, _ in copied)])
    rest = torch.cat([rest, rest.new_zeros(size - len(known) - len(rest))])
    return Sketch(axes, values[known], rest.sort(descending=True).values)


def sketch(
    product: Callable[[Tensor], Tensor],
    size: int,
    trace: float,
    generator: torch.Generator,
    axes: int = AXES,
    probes: int = PROBES,
) -> Sketch:
    """Sketch a matrix ``(size, size)`` of known trace.

    Args:
        product: vectors ``(size, m)`` to the matrix times them, float64 on the CPU.
        axes: of the largest eigenvalues.
        probes: random vectors for the quadrature.

    >>> A = torch.diag(torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64))
    >>> found = sketch(lambda v: A @ v, 3, 6.0, torch.Generator().manual_seed(0))
    >>> found.values
    tensor([4.0000, 1.0000, 1.0000], dtype=torch.float64)
    """

    def draw(count: int) -> Tensor:
        return torch.randn(size, count, dtype=torch.float64, generator=generator)

    Q = torch.linalg.qr(draw(min(axes, size)))[0]
    for _ in range(ITERATIONS):
        Q = torch.linalg.qr(product(Q))[0]
    inner = Q.T @ product(Q)
    values, turn = torch.linalg.eigh((inner + inner.T) / 2)
    Q, top = Q @ turn.flip(1), values.flip(0).clamp(min=0)
    left = size - len(top)
    if not left:
        return Sketch(Q, top, top[:0])

    def remaining(vectors: Tensor) -> Tensor:
        return vectors - Q @ (Q.T @ vectors)

    nodes, weights = _lanczos(lambda v: remaining(product(v)), remaining(draw(min(probes, left))), min(STEPS, left))
    order = nodes.argsort(descending=True)
    edges = weights[order].cumsum(0) * left / weights.sum()
    middles = torch.arange(left, dtype=torch.float64) + 0.5
    rest = nodes[order][torch.searchsorted(edges, middles).clamp(max=len(nodes) - 1)]
    total = max(trace - float(top.sum()), 0.0)
    rest = rest * (total / float(rest.sum())) if float(rest.sum()) > 0 else torch.full_like(rest, total / left)
    return Sketch(Q, top, rest)


def _lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Ritz values and weights of each start vector by itself, joined; every basis is orthogonalised in full."""
    vectors = start / start.norm(dim=0)
    bases, diagonal, beside = [vectors], [], []
    largest = torch.zeros(())
    for _ in range(steps):
        image = product(bases[-1])
        diagonal.append((bases[-1] * image).sum(0))
        largest = torch.maximum(largest, image.norm(dim=0))
        for _ in range(2):
            for basis in bases:
                image = image - basis * (basis * image).sum(0)
        norms = image.norm(dim=0)
        over = norms <= ROUNDING * largest  # the space that this vector reaches is exhausted
        beside.append(torch.where(over, torch.zeros_like(norms), norms))
        bases.append(torch.where(over, torch.zeros_like(image), image / norms.clamp(min=torch.finfo(norms.dtype).tiny)))
    T = torch.diag_embed(torch.stack(diagonal, 1))
    if steps > 1:
        upper = torch.diag_embed(torch.stack(beside[:-1], 1), 1)
        T = T + upper + upper.transpose(1, 2)
    nodes, turns = torch.linalg.eigh(T)
    return nodes.clamp(min=0).flatten(), turns[:, 0].square().flatten()
