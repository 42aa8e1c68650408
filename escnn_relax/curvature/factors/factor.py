"""What every curvature block answers for, and the decompositions that they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...errors import ArgumentError, CoverageError, CurvatureError, naming
from ...symmetry.kernels.linear_algebra import LinAlgError

__all__ = [
    "Factor",
    "clamp_roundings",
    "decompose",
    "eigenvalues",
    "eigenvectors",
    "check_finite",
    "rayleigh",
    "same_kind",
    "weighted_total",
]

Kind = TypeVar("Kind", bound="Factor")

#: Negative eigenvalues down to this fraction of the largest are rounding, and are taken as zero: sums in single
#: precision of 1600 products in a row may be off by that, and 5e-6 has been seen.
INDEFINITE_TOLERANCE = 1e-4
#: So are those down to this: products of tiny gradients underflow, and a factor that vanishes in theory is nothing but
#: roundings, the square of a double precision one for each unit of what cancelled. No prior precision comes anywhere
#: near it.
VANISHING = 1e-15


class Factor(ABC):
    """One positive semi-definite block H, P x P.

    A new kind says what its ``dimension``, its ``spectrum`` and its ``dense`` matrix are; all else has a default that
    takes the dense matrix, or refuses. What a factor can do cheaper, or at all, it overrides.

    Attributes:
        name: of the parameter whose weights they are, as errors call it.
        positions: which weights of the flattened parameter the block holds; ``None`` for all, in order.
        sums: for each of :meth:`tensors`, whether it is a sum over samples; else it is a mean over rows.
    """

    name: str
    positions: Tensor | None = None
    sums: tuple[bool, ...] = (True,)

    @property
    @abstractmethod
    def dimension(self) -> int:
        """P, the number of weights."""

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the matrices that are decomposed."""
        return (self.dimension,)

    @cached_property
    @abstractmethod
    def spectrum(self) -> Tensor:
        """Eigenvalues of H, shape ``(P,)``, float64 on the CPU, none negative.

        Raises:
            CurvatureError: entries that are not finite, eigenvalues that are clearly negative, or a failed
                decomposition.
        """

    @abstractmethod
    def dense(self) -> Tensor:
        """H itself, shape ``(P, P)``; for tests and small blocks."""

    # --- its eigenbasis -----------------------------------------------------------------------------------------------

    @cached_property
    def eigensystem(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues ``(P,)``, and the eigenvectors in columns, of the block as one matrix."""
        with naming(self.name):
            values, vectors = decompose(torch.linalg.eigh, self.dense())
            return clamp_roundings(values), vectors

    @property
    def axis_values(self) -> Tensor:
        """The eigenvalue of each axis of :meth:`rotate`, ``(P,)``, float64."""
        return self.eigensystem[0]

    def rotate(self, vectors: Tensor) -> Tensor:
        """Vectors ``(..., P)`` along the block's eigenvectors, of the same shape, float64."""
        U = self.eigensystem[1]
        return vectors.to(U) @ U

    def whiten(self, vectors: Tensor, scale: float, delta: float) -> Tensor:
        r"""Vectors v, shape ``(..., P)``, times a root of :math:`(hH + \delta)^{-1}`: their inner products are
        :math:`v^\top (hH + \delta)^{-1} v`. h is ``scale``."""
        return self.rotate(vectors) / (scale * self.axis_values + delta).sqrt()

    def modes(self, weights: Tensor, slope: Tensor, scale: float, delta: float) -> tuple[Tensor, Tensor, Tensor]:
        r"""The likelihood :math:`\exp(b^\top w - \tfrac12 w^\top hH w)` around weights with :math:`b = (hH + \delta) w
        - r`.

        Args:
            weights, slope: w and r, ``(P,)``.
            scale, delta: h, and the prior precision.

        Returns:
            eigenvalues of hH, how often each occurs, and the sums of the squares of b along its eigenvectors.
        """
        values = scale * self.axis_values
        along, back = (self.rotate(vector.flatten()) for vector in (weights, slope))
        return values, torch.ones_like(values), ((values + delta) * along - back) ** 2

    # --- the outputs' side, where the block has one -------------------------------------------------------------------

    @property
    def kronecker_factors(self) -> tuple[Tensor, Tensor] | None:
        """B and A where the block is the one product of these matrices; else ``None``."""
        return None

    @property
    def output_axes(self) -> Tensor | None:
        """Eigenvectors on the side of the outputs, in columns, ``(O, O)``, where the block has some; else ``None``."""
        return None

    def restriction(
        self, matrix: Tensor, weights: Tensor, scale: float, delta: float
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        r"""The block on the weights that :math:`B^\top` spans in each output, in the axes of the outputs, which it does
        not couple.

        Args:
            matrix: B, ``(n, D)``, float64.
            weights: ``(O, D)``, float64.
            scale, delta: h, and the prior precision.

        Returns:
            the curvature, ``(n, n)``, or ``(O, n, n)``; by what it is multiplied for each output, ``(O,)``, or ``None``
            if it has one for each; and :math:`(hH + \delta) w`, ``(O, n)``.

        Raises:
            CurvatureError: a block without :attr:`output_axes`.
        """
        raise CurvatureError(self.name, f"no outputs apart in a {type(self).__name__}", remedy="take its dense matrix")

    # --- as tensors ---------------------------------------------------------------------------------------------------

    def tensors(self, purpose: str = "running average") -> tuple[Tensor, ...]:
        """The tensors that the block consists of and is smooth in; ``ArgumentError`` for one that has none."""
        problem = f"not possible with an {type(self).__name__}, whose basis changes"
        raise ArgumentError(purpose, problem, remedy="use 'expand'")

    def rebuild(self, tensors: Sequence[Tensor]) -> Factor:
        """A block of the same weights from other :meth:`tensors`."""
        raise ArgumentError("rebuild", f"not possible with an {type(self).__name__}", remedy="use 'expand'")

    def smooth_spectrum(self, tensors: Sequence[Tensor]) -> Tensor:
        """The eigenvalues of :meth:`rebuild`, with a graph to these tensors, in any order."""
        (matrix,) = tensors
        return torch.linalg.eigvalsh((matrix + matrix.T) / 2).clamp(min=0)

    def portion(self, whole: Factor, purpose: str = "hypergradient") -> tuple[Tensor, ...]:
        """:meth:`tensors` as they enter those of the ``whole`` data's block, of which this one is a minibatch's."""
        return self.tensors(purpose)

    def average(self, previous: Sequence[Tensor], share: float, ratio: float) -> Factor:
        """The mean with a block of older samples, as a sum over this one's.

        Args:
            previous: its :meth:`tensors`.
            share: what it counts (fraction).
            ratio: how many samples this block is of, for each of the other's.

        Raises:
            ArgumentError: a kind whose basis changes.
            CoverageError: tensors of another form.
        """
        present = self.tensors()
        if [old.shape for old in previous] != [new.shape for new in present]:
            remedy = "refresh once with keep=0, or take the same curvature as before"
            raise CoverageError(
                "running average", f"the previous curvature of {self.name} has another form", remedy=remedy
            )
        grown = [ratio if summed else 1.0 for summed in self.sums]
        return self.rebuild(  # what comes from a checkpoint lies on the CPU
            [share * r * old.to(new) + (1 - share) * new for old, new, r in zip(previous, present, grown, strict=True)]
        )

    # --- of several outputs -------------------------------------------------------------------------------------------

    @classmethod
    def weighted_sum(cls, factors: Sequence[Factor], weights: Sequence[float]) -> Factor:
        """The block of the weighted sum of blocks of the same weights, the first of which is of this kind.

        Raises:
            CurvatureError: blocks that have no such sum, or are of several kinds.
        """
        problem = f"outputs cannot be told apart in an {cls.__name__}"
        raise CurvatureError(factors[0].name, problem, remedy="use 'expand'")

    def diagonals(self, factors: Sequence[Factor]) -> Tensor:
        r"""Diagonals :math:`d_{c,i} = u_i^\top H_c u_i` of single outputs' blocks in this one's eigenbasis, which is
        their sum's.

        Shape ``(outputs, P)``, float64 on the CPU, in the order of :attr:`spectrum`, which is their weighted sum. For
        other weights :math:`\sum_c h_c d_{c,i}` is the diagonal of the curvature in that basis: right to first order,
        and by Hadamard's inequality never with a smaller log determinant.
        """
        U = self.eigensystem[1]
        return torch.stack([rayleigh(factor.dense(), U) for factor in factors])


def same_kind(kind: type[Kind], factors: Sequence[Factor]) -> list[Kind]:
    """The factors, which have to be of one kind; else ``CurvatureError``."""
    alike = [factor for factor in factors if isinstance(factor, kind)]
    if len(alike) < len(factors):
        got = sorted({type(factor).__name__ for factor in factors})
        remedy = "take one curvature for all outputs, or noise='shared'"
        raise CurvatureError(factors[0].name, expected=f"a {kind.__name__} for each output", got=got, remedy=remedy)
    return alike


def weighted_total(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Their weighted sum."""
    first, *others = (w * t for w, t in zip(weights, tensors))
    return sum(others, first)


def rayleigh(matrix: Tensor, axes: Tensor) -> Tensor:
    """The quadratic form of each column of ``axes``, none negative."""
    return (axes * (matrix.to(axes) @ axes)).sum(0).clamp(min=0)


def eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric positive semi-definite matrix, float64 on the CPU, clamped at 0."""
    return clamp_roundings(decompose(torch.linalg.eigvalsh, matrix))


def eigenvectors(matrix: Tensor) -> Tensor:
    """Its eigenvectors, in columns, float64 on the CPU."""
    return decompose(torch.linalg.eigh, matrix)[1]


def decompose(decomposition: Callable[[Tensor], Any], matrix: Tensor) -> Any:
    """What ``decomposition`` makes of a symmetric matrix, float64 on the CPU; ``CurvatureError`` where it fails."""
    matrix = check_finite(matrix)
    try:
        return decomposition((matrix + matrix.T) / 2)
    except LinAlgError as error:
        raise CurvatureError("", f"the eigendecomposition failed: {error}", remedy="lower the learning rate") from error


def check_finite(matrix: Tensor) -> Tensor:
    """In float64 on the CPU; ``CurvatureError`` for entries that are not finite."""
    matrix = matrix.detach().to("cpu", torch.float64)
    if not torch.isfinite(matrix).all():
        raise CurvatureError(
            "", "the curvature is not finite", remedy="look for NaN or huge weights, inputs or activations"
        )
    return matrix


def clamp_roundings(values: Tensor) -> Tensor:
    """Eigenvalues without negative roundings; ``CurvatureError`` for those that are clearly negative."""
    if len(values) and values.min() < -max(INDEFINITE_TOLERANCE * float(values.max()), VANISHING):
        raise CurvatureError(
            "",
            f"the curvature has the negative eigenvalue {float(values.min()):.3g} (largest {float(values.max()):.3g})",
            remedy="a factor must be positive semi-definite; report this unless you built it yourself",
        )
    return values.clamp(min=0)
