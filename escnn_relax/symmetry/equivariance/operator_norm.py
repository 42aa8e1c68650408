r"""The operator norm of a convolution, from above and from below, for all inputs of whatever size.

On the infinite grid a convolution by :math:`K` multiplies Fourier coefficients by the matrices
:math:`\hat K(\omega) = \sum_m K_m e^{i \omega m}`, so its norm is :math:`\sup_\omega \sigma_{\max}(\hat K(\omega))`;
zero padding restricts it to a subspace, which makes it no larger. The largest value on a grid of N points an axis
bounds the supremum: a trigonometric polynomial of degree r that reaches 1 is at least :math:`\cos(\pi r / N)` at the
nearest point of the grid (Riesz's lemma; Ehlich and Zeller, *Schwankung von Polynomen zwischen Gitterpunkten*, Math. Z.
86, 1964), and :math:`\mathrm{Re}\, u^* \hat K v` is one for all unit vectors u and v.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Norm", "WORK", "affordable", "operator_norm", "padding_norm"]

#: Multiplications that a layer's norms may take by default: up to a second.
WORK = 3e9
#: Points of the frequency grid for each degree of the kernel, the finest that the work allows: 2, 8 and 41 % an axis
#: lost.
FINENESS = (16, 8, 4)
#: Room for the rounding of float64 in the Fourier sums and eigenvalues (fraction).
ROUNDING = 1e-10


class Norm(NamedTuple):
    """Two sides of an operator norm.

    Attributes:
        reached: by a plane wave on a large grid.
        bound: never exceeded.
    """

    reached: float
    bound: float


def operator_norm(kernel: Tensor, stride: Sequence[int] = (), dilation: Sequence[int] = (), work: float = WORK) -> Norm:
    r"""The norm of :math:`x \mapsto K * x` as a map between square-summable signals.

    Args:
        kernel: shape ``(out, in, *size)``; without axes of space a matrix.
        stride, dilation: for each axis; 1 by default.
        work: multiplications that it may take. If the coarsest frequency grid needs more, Schur's test gives a bound:
            the root of the largest row sum times the largest column sum of absolute values.

    NaN for a kernel that is not finite.

    >>> norm = operator_norm(torch.tensor([[[[0., 1., 0.], [1., 4., 1.], [0., 1., 0.]]]]))
    >>> round(norm.reached, 6), 8 <= norm.bound < 8.4
    (8.0, True)
    """
    kernel = kernel.detach().to("cpu", torch.float64)
    d = kernel.dim() - 2
    if not torch.isfinite(kernel).all():
        return Norm(math.nan, math.nan)
    if any(s > 1 for s in stride):  # without a stride a dilation only renames frequencies
        kernel = _phases(_dilate(kernel, dilation or (1,) * d), stride)
    largest_entry = float(kernel.abs().max()) if kernel.numel() else 0.0
    if largest_entry == 0:
        return Norm(0.0, 0.0)
    kernel = kernel / largest_entry
    small, large = sorted(kernel.shape[:2])
    degrees = [n // 2 for n in kernel.shape[2:]]
    for fineness in FINENESS:
        points = [max(1, fineness * r) for r in degrees]
        if _cost(kernel.shape, points) <= work or not d:
            reached = largest_entry * _largest(kernel, points)
            share = math.prod(math.cos(math.pi * r / n) for r, n in zip(degrees, points))
            return Norm(reached, reached / share * (1 + ROUNDING))
    sums = kernel.abs().flatten(2).sum(-1)
    bound = largest_entry * math.sqrt(float(sums.sum(0).max() * sums.sum(1).max()))
    return Norm(largest_entry * float(kernel.flatten(2).sum(-1).norm()) / math.sqrt(small), bound * (1 + ROUNDING))


def affordable(shape: Sequence[int], stride: Sequence[int], work: float) -> bool:
    """Whether the norm of a kernel ``(out, in, *size)`` is within the work, at least on the coarsest grid of
    frequencies."""
    phases = math.prod(stride)
    size = [-(-n // s) for n, s in zip(shape[2:], stride or (1,) * len(shape[2:]))]
    return _cost((shape[0], shape[1] * phases, *size), [max(1, FINENESS[-1] * (n // 2)) for n in size]) <= work


def padding_norm(mode: str, padding: Sequence[int]) -> float:
    """The norm of padding, for images of any size: the root of how often a pixel may come.

    >>> padding_norm("zeros", (2, 2)), padding_norm("reflect", (1, 1))
    (1.0, 3.0)
    """
    if mode == "zeros" or not any(padding):
        return 1.0
    # a pixel comes back once from either side; the only pixel of an axis is repeated as the edge; wrapped once around
    most = [1 if not p else 2 * p + 1 if mode == "replicate" else 3 for p in padding]
    return math.sqrt(math.prod(most))


def _cost(shape: Sequence[int], points: Sequence[int]) -> float:
    small, large = sorted(shape[:2])
    frequencies = math.prod(points[:-1]) * (points[-1] // 2 + 1) if points else 1
    return float(frequencies * (4 * small * small * large + 25 * small**3))


def _largest(kernel: Tensor, points: Sequence[int]) -> float:
    """The largest singular value on a grid of frequencies, real kernels having conjugate halves."""
    spectrum = torch.fft.rfftn(kernel, s=tuple(points), dim=tuple(range(2, kernel.dim()))) if points else kernel
    matrices = spectrum.flatten(2).permute(2, 0, 1) if points else spectrum[None]
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.transpose(1, 2)
    chunk = max(1, 2**24 // max(1, matrices.shape[1] * matrices.shape[2]))
    largest = 0.0
    for batch in matrices.split(chunk):
        values = torch.linalg.eigvalsh(batch @ batch.mH)
        largest = max(largest, float(values[..., -1].max()))
    return math.sqrt(max(largest, 0.0))


def _dilate(kernel: Tensor, dilation: Sequence[int]) -> Tensor:
    if all(n == 1 for n in dilation):
        return kernel
    sizes = [(k - 1) * n + 1 for k, n in zip(kernel.shape[2:], dilation)]
    wide = kernel.new_zeros(*kernel.shape[:2], *sizes)
    places: tuple[Any, ...] = (..., *(slice(None, None, n) for n in dilation))
    wide[places] = kernel
    return wide


def _phases(kernel: Tensor, stride: Sequence[int]) -> Tensor:
    """The same map without a stride, from the input's phases as channels: ``(out, in * phases, *smaller)``."""
    d = len(stride)
    pad = [p for n, s in zip(reversed(kernel.shape[2:]), reversed(stride)) for p in (0, -n % s)]
    extended = torch.nn.functional.pad(kernel, pad)
    shape = [n for size, s in zip(extended.shape[2:], stride) for n in (size // s, s)]
    phases = extended.view(*kernel.shape[:2], *shape)
    order = [0, 1, *(3 + 2 * a for a in range(d)), *(2 + 2 * a for a in range(d))]
    phases = phases.permute(*order)
    return phases.reshape(kernel.shape[0], kernel.shape[1] * math.prod(stride), *phases.shape[2 + d :])
