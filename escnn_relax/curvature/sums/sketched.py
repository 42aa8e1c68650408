r"""``expand`` for layers whose rows are too many numbers to form and decompose their second moment.

A is never formed. Its products with vectors are taken from a sample of the rows, two products with thin matrices for
each; what it costs grows with the width as a convolution does, not with the cube. See
:mod:`~escnn_relax.curvature.factors.sketch` for what is made of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..approximation import Approximation, Batch
from ..conventions import FACTOR_BYTES
from ..factors import Factor, SketchedFactor
from ..factors.sketch import AXES, PROBES, STEPS, Sketch, sketch
from ..layers.input_positions import Window
from ..layers.linear_map import LinearMap, Piece, WeightBlock, width
from ..processes import summed
from .accumulation import OutputMoments
from .contraction import row_basis
from .moments import accurate, counted, number
from .patch_moments import PatchMoments
from .row_sample import RowSample

__all__ = ["RowOperator", "Sketched"]


#: Sampled rows, which are places times components of the output field: so many for each coefficient, within these
#: bounds, and at least so many places. In ``tests/benchmarks/width.md`` a quarter of that decides as ``expand`` does,
#: too.
RATIO, FEWEST, ROWS, PLACES = 4, 4096, 16384, 256

#: Numbers in what one product writes at a time.
PART = 1 << 24

#: The exact trace is taken where it costs no more than so many forward passes of the layer.
WORTH = 4.0


class Sketched(Approximation):
    """A sample of the rows, the exact second moment of single fields for the trace, and ``expand``'s B."""

    name, differentiable, few_columns = "sketched", False, True

    def prepare(self) -> None:
        members = min(block.channels.shape[1] for block in self.blocks)
        seed = zlib.crc32(self.layer_name.encode())
        wanted = min(ROWS, max(FEWEST, RATIO * max(block.positions.shape[1] for block in self.blocks)))
        self._rows = RowSample(self.layer, max(PLACES, wanted // members), seed)
        self._fields = FieldMoments(self.layer, self.blocks)
        self._output_moments = OutputMoments(self.blocks)
        self._seed = seed
        self._sketches: dict[float, list[Sketch]] = {}

    def read(self, batch: Batch) -> None:
        self._rows.add(batch.inputs, batch.counts)
        self._fields.add(batch.inputs, batch.counts)

    def follow(self, leader: Any, batch: Batch) -> None:
        self._rows, self._fields, self._sketches = leader._rows, leader._fields, leader._sketches

    def add(self, batch: Batch, gradients: Tensor) -> None:
        self._output_moments.add(gradients)

    def sums(self) -> Iterable[Any]:
        return self._rows, self._fields, self._output_moments

    def rehearse(self) -> dict[str, tuple[Factor, ...]]:
        return {}  # it would cost as much as the real one; growth() says what it takes

    def growth(self) -> tuple[int, int]:
        stays, sorting = self._rows.growth()
        return stays, max(sorting, *(self._sketching(block) for block in self.blocks))

    def _sketching(self, block: WeightBlock) -> int:
        """Bytes that the sketch of a block's A takes for a while, at most."""
        rows, item = self._rows.size, self._rows.item_size
        read = sum(width(piece) for piece in block.pieces)
        size = block.positions.shape[1]
        vectors = min(AXES, size)
        at_a_time = max(
            min(PART, read * vectors * block.channels.shape[1]), read * vectors
        )  # numbers in one product's kernels
        product = 5 * at_a_time + rows * (at_a_time // read)
        kernels = sum(0 if piece.basis is None else piece.basis.numel() for piece in block.pieces)
        return item * (3 * rows * read + product + 4 * kernels) + FACTOR_BYTES * size * (
            6 * AXES + PROBES * (STEPS + 6)
        )

    def factors(self) -> dict[str, tuple[Factor, ...]]:
        rows = self._rows.rows
        if rows not in self._sketches:
            self._sketches.clear()
            self._sketches[rows] = self._sketched()
        found: dict[str, tuple[Factor, ...]] = {}
        for block, of in zip(self.blocks, self._sketches[rows], strict=True):
            factor = SketchedFactor(
                self.where(block.parameter), of, self._output_moments.total(block), block.positions, rows
            )
            found[block.parameter] = (*found.get(block.parameter, ()), factor)
        return found

    def _sketched(self) -> list[Sketch]:
        found = []
        moments: dict[int, dict[tuple[int, ...], Tensor]] = {}
        for index, block in enumerate(self.blocks):
            operator = RowOperator(block, self._rows.group(block.group))
            trace = self._fields.trace(block, operator.grams)
            generator = torch.Generator().manual_seed(self._seed + index)
            own = operator.trace(moments.setdefault(block.group, {}))
            of = sketch(operator, operator.size, own, generator)
            ratio = 1.0 if trace is None else trace / max(own, torch.finfo(torch.float64).tiny)
            found.append(Sketch(of.axes, of.top * ratio, of.rest * ratio))
        return found


class RowOperator:
    r""":math:`v \mapsto A v`, with A the mean outer product of a block's rows at given places.

    Args:
        block: with coefficients :math:`D = \sum I K`.
        patches: of its group, ``(rows, C S)``.
    """

    def __init__(self, block: WeightBlock, patches: Tensor) -> None:
        self._patches, self._members = patches, block.channels.shape[1]
        self._pieces = [_Piece(piece, patches) for piece in block.pieces]
        self.size = sum(piece.size for piece in self._pieces)
        self._read = torch.cat([piece.rows.flatten() for piece in self._pieces])
        self._all = torch.equal(self._read, torch.arange(patches.shape[1]))

    def __call__(self, vectors: Tensor) -> Tensor:
        """``(D, m)`` to the same, float64 on the CPU."""
        total = torch.zeros_like(vectors)
        given = vectors.to(self._patches)
        patches = self._patches if self._all else self._patches[:, self._read.to(self._patches.device)]
        step = max(1, PART // (len(self._read) * vectors.shape[1]))
        for start in range(0, self._members, step):
            members = slice(start, min(start + step, self._members))
            parts = given.split([piece.size for piece in self._pieces])
            kernels = torch.cat(
                [piece.kernels(part, members) for piece, part in zip(self._pieces, parts)]
            )  # (C S, o, m)
            images = (patches.T @ (patches @ kernels.flatten(1))).view_as(kernels)
            cut = images.split([piece.rows.numel() for piece in self._pieces])
            total += torch.cat([p.coefficients(image, members) for p, image in zip(self._pieces, cut)]).to(total)
        return total / (len(self._patches) * self._members)

    @property
    def grams(self) -> list[Tensor | None]:
        """Of each piece's kernels, see :func:`gram`; ``None`` where it has none."""
        return [piece.gram for piece in self._pieces]

    def trace(self, known: dict[tuple[int, ...], Tensor] | None = None) -> float:
        """Exactly, of the rows at hand; moments of single fields are kept in ``known``, for other blocks of the same
        patches."""
        known = {} if known is None else known
        total = 0.0
        for piece in self._pieces:
            key = tuple(piece.rows[:, 0].tolist())
            if key not in known:
                fields = self._patches[:, piece.rows.flatten().to(self._patches.device)].unflatten(1, piece.rows.shape)
                flat = fields.flatten(0, 1)
                known[key] = (flat.T @ flat).to(torch.float64)
            total += traced(known[key], piece.gram)
        return total / (len(self._patches) * self._members)


class _Piece:
    """Coefficients ``(I K, m)`` to kernels ``(I i S, members, m)``, and back."""

    def __init__(self, piece: Piece, like: Tensor) -> None:
        self.rows, self.basis = row_basis(piece, like)  # (I, i S) and (K, o, i S)
        self.size = len(self.rows) * (self.rows.shape[1] if self.basis is None else len(self.basis))

    def kernels(self, part: Tensor, members: slice) -> Tensor:
        if self.basis is None:
            return part.unsqueeze(1)
        fields = part.unflatten(0, (len(self.rows), -1)).transpose(0, 1)  # (K, I, m)
        turned = self.basis[:, members].flatten(1).T @ fields.flatten(1)  # (o i S, I m), one product for all fields
        turned = turned.view(-1, self.rows.shape[1], *fields.shape[1:])  # (o, i S, I, m)
        return turned.permute(2, 1, 0, 3).flatten(0, 1)

    def coefficients(self, image: Tensor, members: slice) -> Tensor:
        if self.basis is None:
            return image.squeeze(1)
        fields = image.unflatten(0, self.rows.shape).permute(2, 1, 0, 3)  # (o, i S, I, m)
        found = self.basis[:, members].flatten(1) @ fields.flatten(2).flatten(0, 1)  # (K, I m)
        return found.view(len(found), len(self.rows), -1).transpose(0, 1).flatten(0, 1)

    @cached_property
    def gram(self) -> Tensor | None:
        return None if self.basis is None else gram(self.basis)


def gram(basis: Tensor) -> Tensor:
    r""":math:`\sum_{k,d} \Phi_{kd} \Phi_{kd}^\top` of kernels ``(K, o, i S)``."""
    flat = basis.flatten(0, 1)
    return flat.T @ flat


def traced(moment: Tensor, gram: Tensor | None) -> float:
    """Sum of the squares of all coefficients, given the second moment of single fields ``(i S, i S)``."""
    return float(moment.trace() if gram is None else (moment * gram).sum())


class FieldMoments:
    r"""Second moment of the patches of single fields, summed over all fields of a representation: all that traces need.

    Where even that is dearer than the layer itself, as for large kernels in space, nothing is summed.
    """

    def __init__(self, layer: LinearMap, blocks: Sequence[WeightBlock]) -> None:
        self._layer, self.rows = layer, 0.0
        self._moments: dict[Any, Any] = {}
        self._members: dict[tuple[Any, ...], Tensor] = {}
        single = LinearMap((), None, layer.places)
        for block in blocks:
            for piece in block.pieces:
                key = _kind(block, piece)
                if key not in self._moments and _affordable(layer, block, piece):
                    self._moments[key], self._members[key] = PatchMoments(single), piece.channels

    def add(self, inputs: Sequence[Tensor], counts: Tensor | None = None) -> None:
        """Add one minibatch: the inputs of all uses of the layer; see :func:`~.moments.counted`."""
        for input in inputs:
            places = self._layer.places
            self.rows += number(input, counts) * places.table(places.shape(input)).shape[1]
            input = counted(input, counts)
            axis = -1 if places.channels_last else 1
            grouped = accurate(input).unflatten(axis, (self._layer.groups, -1))
            for key, moments in self._moments.items():
                channels = self._members[key].to(input.device)
                of_group = grouped.select(-2 if places.channels_last else 1, key[0])
                fields = of_group.index_select(axis, channels.flatten()).unflatten(axis, channels.shape)
                moments.add([fields.movedim(-2 if places.channels_last else 1, 1).flatten(0, 1)])

    def gather(self) -> None:
        """Add up those of all processes."""
        self.rows = float(summed(torch.tensor(self.rows, dtype=torch.float64)))
        for moments in self._moments.values():
            moments.gather()

    def trace(self, block: WeightBlock, grams: Sequence[Tensor | None] | None = None) -> float | None:
        """Of the block's A; ``None`` where it was too dear. ``grams`` are those of its pieces, where they are known."""
        total = 0.0
        for index, piece in enumerate(block.pieces):
            key = _kind(block, piece)
            if key not in self._moments:
                return None
            moments = self._moments[key]
            moment = moments.mean[0] * (moments.rows / (self.rows or 1.0))
            if grams is None:
                _, basis = row_basis(piece, moment)
                total += traced(moment, None if basis is None else gram(basis))
            else:
                total += traced(moment, grams[index])
        return total / block.channels.shape[1]


def _kind(block: WeightBlock, piece: Piece) -> tuple[Any, ...]:
    return block.group, tuple(piece.channels.flatten().tolist())


def _affordable(layer: LinearMap, block: WeightBlock, piece: Piece) -> bool:
    """Against one forward pass of the layer, in multiplications."""
    sites = 1 if piece.basis is None else piece.basis.shape[-1]
    if isinstance(layer.places, Window):
        sites = torch.Size(layer.places.kernel_size).numel()
    saved = 1
    if isinstance(layer.places, Window) and len(layer.places.kernel_size) == 2 and layer.places.stride[0] == 1:
        saved = layer.places.kernel_size[0]  # second moments go row by row
    return piece.channels.shape[1] * sites / saved <= WORTH * max(block.channels.numel(), 64)
