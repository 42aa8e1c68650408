"""The operator norm of a convolution of any geometry, with groups, strides, dilations and padding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from escnn.nn import FieldType, R2ConvTransposed, R3ConvTransposed
from torch import Tensor, nn

from ...errors import UnsupportedModuleError
from ...symmetry.equivariance.operator_norm import Norm, affordable, operator_norm, padding_norm
from ..geometry import PlanarTransposed, SpatialTransposed
from ..merged import MergedConvolution

__all__ = ["ConvolutionNorm"]

#: Layers whose kernel torch has as ``(in, out, *space)``.
TRANSPOSED = (
    PlanarTransposed,
    SpatialTransposed,
    R2ConvTransposed,
    R3ConvTransposed,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class ConvolutionNorm:
    """What of a convolution's geometry its norm depends on; call :meth:`norm` with a kernel.

    Attributes:
        in_type, out_type: between which the kernel maps, of one group of a grouped layer.
        transposed: the torch layer has its axes the other way round.
    """

    in_type: FieldType
    out_type: FieldType
    groups: int
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    padding: float

    @classmethod
    def from_layer(cls, layer: Any) -> ConvolutionNorm:
        """That of a layer of ours, of escnn's or a merged one; ``UnsupportedModuleError`` for one without a kernel."""
        if not hasattr(layer, "expand_parameters") or not isinstance(getattr(layer, "in_type", None), FieldType):
            problem = f"a {type(layer).__name__} has no kernel on the grid"
            raise UnsupportedModuleError(
                type(layer), problem, remedy="certify the convolutions and linear layers of the model"
            )
        if hasattr(layer, "sites"):
            problem = "pathways that break translations have no kernel"
            raise UnsupportedModuleError(type(layer), problem, remedy="certify its .convolution, and measure the rest")
        from_torch = layer.convolution if isinstance(layer, MergedConvolution) else layer
        space, groups = layer.in_type.gspace, getattr(from_torch, "groups", 1)
        d = space.dimensionality
        each = {
            n: _each(getattr(from_torch, n, 1 if n != "padding" else 0), d) for n in ("stride", "dilation", "padding")
        }
        transposed = isinstance(from_torch, TRANSPOSED)
        ins, outs = list(layer.in_type.representations), list(layer.out_type.representations)
        if transposed:
            outs = outs[: len(outs) // groups]
        else:
            ins = ins[: len(ins) // groups]
        mode, size = getattr(from_torch, "padding_mode", "zeros"), _each(getattr(from_torch, "kernel_size", 1), d)
        whole_turn = all(2 * p <= n * (k - 1) for p, n, k in zip(each["padding"], each["dilation"], size))
        padded = (
            1.0 if mode == "circular" and whole_turn else padding_norm(mode, each["padding"])
        )  # then a window of a torus
        return cls(
            FieldType(space, ins), FieldType(space, outs), groups, each["stride"], each["dilation"], transposed, padded
        )

    def steerable(self, kernel: Tensor) -> Tensor:
        """``(out, in, *space)`` from the shape that torch's layer has."""
        return kernel.transpose(0, 1) if self.transposed else kernel

    def affordable(self, kernel: Tensor, work: float) -> bool:
        """Whether a norm takes no more than this work."""
        kernels = self._by_group(kernel)
        return affordable(kernels[0].shape, self.stride, work / len(kernels))

    def norm(self, kernel: Tensor, work: float) -> Norm:
        """Of the layer with this kernel: the largest of its groups', padding included."""
        kernels = self._by_group(kernel)
        norms = [operator_norm(p, self.stride, self.dilation, work / len(kernels)) for p in kernels]
        bound = math.nan if any(math.isnan(n.bound) for n in norms) else max(n.bound for n in norms)
        return Norm(max(n.reached for n in norms), self.padding * bound)

    def _by_group(self, kernel: Tensor) -> list[Tensor]:
        kernels = kernel.chunk(self.groups, dim=1 if self.transposed else 0)
        return [
            p.transpose(0, 1) if self.transposed else p for p in kernels
        ]  # the adjoint of a convolution with a stride


def _each(value: Any, d: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (int(value),) * d
