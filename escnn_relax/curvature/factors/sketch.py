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

__all__ = ["Sketch", "decompose", "direct_sum", "sketch", "sketch_blocks"]

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
    return sketch_blocks(product, [torch.arange(size)], [trace], generator, axes, probes)[0]


def sketch_blocks(
    product: Callable[[Tensor], Tensor],
    blocks: Sequence[Tensor],
    traces: Sequence[float],
    generator: torch.Generator,
    axes: int = AXES,
    probes: int = PROBES,
) -> list[Sketch]:
    """Sketch each block of a block diagonal matrix. A vector has a part in each of them, so that a product serves all.

    Args:
        product: vectors ``(size, m)`` to the matrix times them, float64 on the CPU.
        blocks: where the rows of each block stand; all rows are of one.
        traces: of the blocks.
        axes: of the largest eigenvalues of each block.
        probes: random vectors for the quadrature.

    >>> A = torch.diag(torch.tensor([4.0, 1.0, 2.0], dtype=torch.float64))
    >>> blocks = [torch.tensor([0, 2]), torch.tensor([1])]
    >>> [found.values for found in sketch_blocks(lambda v: A @ v, blocks, [6.0, 1.0], torch.Generator().manual_seed(0))]
    [tensor([4.0000, 2.0000], dtype=torch.float64), tensor([1.], dtype=torch.float64)]
    """
    size = sum(map(len, blocks))

    def draw(count: int) -> Tensor:
        return torch.randn(size, count, dtype=torch.float64, generator=generator)

    def join(columns: Sequence[Tensor]) -> Tensor:
        whole = torch.zeros(size, max(piece.shape[1] for piece in columns), dtype=torch.float64)
        for block, piece in zip(blocks, columns):
            whole[block, : piece.shape[1]] = piece
        return whole

    def images(columns: Sequence[Tensor]) -> list[Tensor]:
        whole = product(join(columns))
        return [whole[block, : piece.shape[1]] for block, piece in zip(blocks, columns)]

    start = draw(min(axes, max(map(len, blocks))))
    spaces = [torch.linalg.qr(start[block, : len(block)])[0] for block in blocks]
    for _ in range(ITERATIONS):
        spaces = [torch.linalg.qr(image)[0] for image in images(spaces)]
    tops = []
    for index, image in enumerate(images(spaces)):
        inner = spaces[index].T @ image
        values, turn = torch.linalg.eigh((inner + inner.T) / 2)
        spaces[index], top = spaces[index] @ turn.flip(1), values.flip(0).clamp(min=0)
        tops.append(top)
    left = max(len(block) - len(top) for block, top in zip(blocks, tops))
    if not left:
        return [Sketch(Q, top, top[:0]) for Q, top in zip(spaces, tops)]

    def remaining(vectors: Tensor) -> Tensor:
        return join([vectors[block] - Q @ (Q.T @ vectors[block]) for block, Q in zip(blocks, spaces)])

    member = torch.zeros(size, dtype=torch.long)
    for index, block in enumerate(blocks):
        member[block] = index
    start = remaining(draw(min(probes, left)))
    nodes, weights = _lanczos(lambda v: remaining(product(v)), start, min(STEPS, left), member)
    return [
        Sketch(Q, top, _quantiles(nodes[index], weights[index], len(block) - len(top), trace - float(top.sum())))
        for index, (block, Q, top, trace) in enumerate(zip(blocks, spaces, tops, traces))
    ]


def _quantiles(nodes: Tensor, weights: Tensor, count: int, trace: float) -> Tensor:
    """As many eigenvalues with that sum, spread as nodes with these weights are."""
    if not count:
        return nodes[:0]
    order = nodes.argsort(descending=True)
    edges = weights[order].cumsum(0) * count / weights.sum()
    middles = torch.arange(count, dtype=torch.float64) + 0.5
    values = nodes[order][torch.searchsorted(edges, middles).clamp(max=len(nodes) - 1)]
    total = max(trace, 0.0)
    return values * (total / float(values.sum())) if float(values.sum()) > 0 else torch.full_like(values, total / count)


def _lanczos(product: Callable[[Tensor], Tensor], start: Tensor, steps: int, member: Tensor) -> tuple[Tensor, Tensor]:
    """Ritz values and weights of each start vector by itself in each block, joined for a block, ``(blocks, nodes)``;
    every basis is orthogonalised in full. ``member`` is the block of each row."""
    count = int(member.max()) + 1

    def inner(first: Tensor, second: Tensor) -> Tensor:  # (blocks, m)
        products = first * second
        if count == 1:
            return products.sum(0, keepdim=True)
        return products.new_zeros(count, products.shape[1]).index_add_(0, member, products)

    def spread(numbers: Tensor) -> Tensor:
        return numbers if count == 1 else numbers[member]

    tiny = torch.finfo(start.dtype).tiny
    norms = inner(start, start).sqrt()
    vectors = start / spread(norms.clamp(min=tiny))
    bases, diagonal, beside = [vectors], [], []
    largest = torch.zeros(())
    for _ in range(steps):
        image = product(bases[-1])
        diagonal.append(inner(bases[-1], image))
        largest = torch.maximum(largest, inner(image, image).sqrt())
        for _ in range(2):
            for basis in bases:
                image = image - basis * spread(inner(basis, image))
        norms = inner(image, image).sqrt()
        over = norms <= ROUNDING * largest  # the space that this vector reaches is exhausted
        beside.append(torch.where(over, torch.zeros_like(norms), norms))
        bases.append(image * spread(torch.where(over, torch.zeros_like(norms), 1 / norms.clamp(min=tiny))))
    T = torch.diag_embed(torch.stack(diagonal, 2))
    if steps > 1:
        upper = torch.diag_embed(torch.stack(beside[:-1], 2), 1)
        T = T + upper + upper.transpose(2, 3)
    nodes, turns = torch.linalg.eigh(T)
    return nodes.clamp(min=0).flatten(1), turns[:, :, 0].square().flatten(1)
