"""What escnn documents of its steerable layers, on layers with pathways."""

from __future__ import annotations

import math
from typing import Any

import torch
from escnn.group import GroupElement
from torch import Tensor

from ..errors import NotEquivariantError
from ..symmetry.equivariance.model_error import equivariance_error
from .strict_layer import strict_layer

__all__ = ["EscnnSurface"]

#: What escnn keeps for itself, and where it is found here.
INSTEAD = {
    "_basisexpansion": "basisexpansion",
    "_rings": "band.rings",
    "_sigma": "band.sigma",
    "_maximum_frequency": "band.highest",
    "_input_size": "in_type.size",
    "_output_size": "out_type.size",
}


class EscnnSurface:
    """A base class beside ``EquivariantModule``: the attributes under which escnn's users know a steerable layer.

    ``weights`` is in :class:`~escnn_relax.nn.pathway_weights.PathwayWeights`; ``expand_parameters``, ``export`` and
    ``evaluate_output_shape`` are the layer's own. escnn has ``filter``, ``matrix`` and ``expanded_bias`` in eval mode;
    here they are there in either mode, always of the present weights.
    """

    @property
    def basisexpansion(self) -> Any:
        """escnn's basis expansion of the equivariant pathway: ``dimension()``, ``get_basis_info()``, and called with
        the pathway's weights the kernel that it contributes. Made when first asked for; not part of the state."""
        expansion = self.__dict__.get("_expansion")
        weights: Any = self.weights
        known = None if expansion is None else next((b for b in expansion.buffers() if b.is_floating_point()), None)
        if known is None or (known.dtype, known.device) != (weights.dtype, weights.device):
            with torch.no_grad():
                layer: Any = self
                expansion = strict_layer(layer).basisexpansion
            self.__dict__["_expansion"] = expansion
        return expansion

    @property
    def filter(self) -> Tensor:
        """The whole kernel, all pathways added up, without a graph: ``(out, in / groups, *size)``, transposed layers as
        torch has them."""
        return self._whole_kernel("filter", linear=False)

    @property
    def matrix(self) -> Tensor:
        """The whole matrix of a linear layer without a graph, ``(out, in)``."""
        return self._whole_kernel("matrix", linear=True)

    def _whole_kernel(self, name: str, linear: bool) -> Tensor:
        if (getattr(self, "d", 0) == 0) != linear:
            raise AttributeError(name)  # which Python answers by asking __getattr__
        with torch.no_grad():
            return self.expand_parameters()[0]

    @property
    def expanded_bias(self) -> Tensor | None:
        """The bias of each channel, ``(out,)``, without a graph; ``None`` where there is none."""
        with torch.no_grad():
            return self.expand_parameters()[1]

    def __getattr__(self, name: str) -> Any:
        if name in ("filter", "matrix"):
            other = "filter" if name == "matrix" else "matrix"
            raise AttributeError(f"{type(self).__name__} has no {name!r}: as in escnn, it is called {other!r} here")
        if name in INSTEAD:
            raise AttributeError(
                f"{type(self).__name__} has no {name!r}, which escnn keeps for itself; use {INSTEAD[name]!r}"
            )
        module: Any = super()
        return module.__getattr__(name)

    def check_equivariance(
        self,
        atol: float = 0.1,
        rtol: float = 0.1,
        assertion: bool = True,
        verbose: bool = True,
        device: Any = None,
    ) -> list[tuple[GroupElement, float]]:
        """Try the group's testing elements, as escnn's method of this name does; needs no image library.

        Args:
            atol, rtol: largest relative error, their sum; a linear map is tried at 1e-5 unless they are given smaller.
            assertion: raise where the error is larger.
            verbose: print each element with its error.
            device: where to compute; the layer goes back to where it was.

        Returns:
            each element tried with its relative error (fraction), see :func:`~escnn_relax.equivariance_error`, which
            says more.

        Raises:
            NotEquivariantError: with ``assertion``; an ``AssertionError`` too, as escnn's.
        """
        layer: Any = self
        before = layer.weights.device
        space = layer.in_type.gspace
        try:
            if device is not None:
                layer.to(device)
            result = equivariance_error(layer, elements=list(space.testing_elements))
        finally:
            layer.to(before)
        tolerance = atol + rtol if space.dimensionality else min(atol + rtol, 1e-5)
        pairs = list(zip(result.elements, result.errors))
        for element, error in pairs:
            if verbose:
                print(element, error)
            if assertion and not (error <= tolerance and math.isfinite(error)):
                raise NotEquivariantError(
                    type(self).__name__,
                    f"not equivariant: relative error {error:.1e} under {element}, tolerance {tolerance:.0e}",
                    remedy="a relaxed layer may have left its group by what it learned; see breaking_energy",
                )
        return pairs
