r"""``expand`` for layers whose rows are too many numbers to form and decompose their second moment.

A is a direct sum, see :mod:`.row_summands`. Small summands are formed from a sample of the rows and decomposed. Large
ones never are: their products with vectors are taken from that sample, two products with thin matrices for each; what
it costs grows with the width as a convolution does, not with the cube. See
:mod:`~escnn_relax.curvature.factors.sketch` for what is made of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..approximation import Approximation, Batch
from ..conventions import FACTOR_BYTES
from ..factors import Factor, SketchedFactor
from ..factors.sketch import AXES, PROBES, STEPS, Sketch, decompose, direct_sum, sketch, sketch_blocks
from ..layers.linear_map import WeightBlock, width
from ..output_hessian import OutputHessian
from .field_moments import FieldMoments
from .output_moments import OutputMoments
from .row_operator import CHUNK, RowOperator
from .row_reservoir import RowReservoir
from .row_summands import Summand, summands, undivided

__all__ = ["Sketched"]

#: Sampled rows, which are places times components of the output field: so many for each coefficient, within these
#: bounds, and at least so many places. In ``tests/benchmarks/width.md`` half of that decides as ``expand`` does, too.
RATIO, FEWEST, ROWS, PLACES = 4, 4096, 8192, 256

#: Summands of so many coefficients are formed; up to there that costs less than a sketch.
FORMED = 640

#: Summands that have no equals are sketched together from so many coefficients of the largest on.
TOGETHER = 320

#: Axes and random vectors of each summand where several are sketched.
AXES_EACH, PROBES_EACH = 12, 2


class Sketched(Approximation):
    """A sample of the rows, the exact second moment of single fields for the trace, and ``expand``'s B."""

    name, differentiable, few_columns = "sketched", False, True

    def prepare(self) -> None:
        members = min(block.channels.shape[1] for block in self.blocks)
        seed = zlib.crc32(self.layer_name.encode())
        number = min(ROWS, max(FEWEST, RATIO * max(block.positions.shape[1] for block in self.blocks)))
        self._rows = RowReservoir(self.layer, max(PLACES, number // members), seed)
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

    def add_hessian(self, batch: Batch, hessian: OutputHessian) -> bool:
        self._output_moments.add_hessian(hessian, self.layer.groups)
        return True

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
            min(CHUNK, read * vectors * block.channels.shape[1]), read * vectors
        )  # numbers in one product's kernels
        product = 5 * at_a_time + rows * (at_a_time // read)
        kernels = sum(0 if piece.basis is None else piece.basis.numel() for piece in block.pieces)
        formed = min(FORMED, size)
        numbers = max(min(CHUNK, rows * block.channels.shape[1] * formed), formed)
        form = item * 2 * numbers + FACTOR_BYTES * 8 * formed**2
        return (
            item * (3 * rows * read + product + 5 * kernels)
            + form
            + FACTOR_BYTES * size * (6 * AXES + PROBES * (STEPS + 6))
        )

    def factors(self) -> dict[str, tuple[Factor, ...]]:
        rows = self._rows.rows
        if rows not in self._sketches:
            self._sketches.clear()
            self._sketches[rows] = self._sketch_blocks()
        factors: dict[str, tuple[Factor, ...]] = {}
        for block, input_sketch in zip(self.blocks, self._sketches[rows], strict=True):
            factor = SketchedFactor(
                self.parameter_name(block.parameter),
                input_sketch,
                self._output_moments.total(block),
                block.positions,
                rows,
            )
            factors[block.parameter] = (*factors.get(block.parameter, ()), factor)
        return factors

    def _sketch_blocks(self) -> list[Sketch]:
        sketches = []
        moments: dict[int, dict[tuple[int, ...], Tensor]] = {}
        for index, block in enumerate(self.blocks):
            patches = self._rows.group(block.group)
            generator = torch.Generator().manual_seed(self._seed + index)
            terms = summands(block, patches)
            operators = [RowOperator(summand, patches, block.channels.shape[1]) for summand in terms]
            known = moments.setdefault(block.group, {})
            raw = direct_sum(
                self._sketch_summands(block, patches, terms, operators, known, generator),
                [summand.positions for summand in terms],
                block.positions.shape[1],
            )
            trace = self._fields.trace(block, _grams(operators, [len(summand.positions) for summand in terms]))
            sampled_trace = float(raw.values.sum())
            ratio = 1.0 if trace is None else trace / max(sampled_trace, torch.finfo(torch.float64).tiny)
            sketches.append(Sketch(raw.axes, raw.top * ratio, raw.rest * ratio))
        return sketches

    def _sketch_summands(
        self,
        block: WeightBlock,
        patches: Tensor,
        terms: Sequence[Summand],
        operators: Sequence[RowOperator],
        known: dict[tuple[int, ...], Tensor],
        generator: torch.Generator,
    ) -> list[Sketch]:
        """Of each summand: formed where it is small. Those that occur once are sketched together, by products of the
        undivided matrix, which has all of them on its diagonal."""
        if len(terms) > 1 and all(len(term.positions) == 1 for term in terms) and _largest(operators) > TOGETHER:
            whole = RowOperator(undivided(block, patches), patches, block.channels.shape[1])
            places, traces = [term.positions[0] for term in terms], [operator.trace(known) for operator in operators]
            return sketch_blocks(whole, places, traces, generator, AXES_EACH, PROBES_EACH)
        large = [operator.size > FORMED for operator in operators]
        axes, probes = (AXES, PROBES) if sum(large) < 2 else (AXES_EACH, PROBES_EACH)
        return [
            sketch(operator, operator.size, operator.trace(known), generator, axes, probes)
            if wide
            else decompose(operator.formed())
            for wide, operator in zip(large, operators)
        ]


def _largest(operators: Sequence[RowOperator]) -> int:
    return max(operator.size for operator in operators)


def _grams(operators: Sequence[RowOperator], copies: Sequence[int]) -> list[Tensor | None]:
    """Of the kernels of each piece of all summands."""
    pieces = zip(*(operator.grams for operator in operators))
    return [
        None if grams[0] is None else sum(count * gram for count, gram in zip(copies, grams) if gram is not None)
        for grams in pieces
    ]
