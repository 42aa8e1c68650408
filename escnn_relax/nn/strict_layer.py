"""The plain escnn layer that the equivariant pathway of a relaxed layer is."""

from __future__ import annotations

from typing import Any

from escnn.nn import EquivariantModule

from .. import _escnn
from ..errors import UnsupportedModuleError
from ..symmetry.kernels.pathway import EQUIVARIANT
from ..symmetry.kernels.sampling import Band

__all__ = ["strict_layer"]


def strict_layer(layer: Any) -> EquivariantModule:
    """A new escnn layer with the weights and kernels of a relaxed layer's equivariant pathway, and its bias.

    Args:
        layer: a :class:`~escnn_relax.nn.steerable.SteerableConvolution`; of a mixture one with G's summand alone.

    Raises:
        UnsupportedModuleError: escnn builds another basis here than where the layer was made.

    >>> import torch
    >>> from escnn import gspaces, nn
    >>> from escnn_relax.nn import RelaxedR2Conv
    >>> space = gspaces.rot2dOnR2(4)
    >>> fields = nn.FieldType(space, [space.regular_repr])
    >>> with torch.no_grad():
    ...     strict = strict_layer(RelaxedR2Conv(fields, fields, 3, bias=False))
    >>> type(strict).__name__
    'R2Conv'
    """
    weights = layer.weights[EQUIVARIANT.name]
    options = {name: getattr(layer, name) for name in layer._geometry}
    if isinstance(layer.band, Band):
        options |= {
            "sigma": list(layer.band.sigma),
            "frequencies_cutoff": layer.band.cutoff,
            "rings": list(layer.band.rings),
        }
    with _escnn.single_precision():
        # recompute: a block of its own, since moving it to another dtype or device must not move other layers'
        strict = layer._strict(
            layer.in_type, layer.out_type, **options, bias=layer.bias is not None, recompute=True, initialize=False
        )
    strict.to(weights)
    if strict.weights.shape != weights.shape:
        remedy = "load the state dict of a layer that was made with the same versions of escnn and scipy"
        raise UnsupportedModuleError(
            type(layer), "escnn builds another basis here than where the layer was made", remedy=remedy
        )
    strict.weights.copy_(weights)
    for (_, _, basis, _), block in zip(_escnn.blocks(strict.basisexpansion), layer.kernel.blocks[EQUIVARIANT.name]):
        basis.copy_(layer.kernel.basis(block))
    if layer.bias is not None:
        strict.bias.copy_(layer.bias)
    return strict
