"""What all steerable convolutions with pathways share: their kernel as a sum, its energies, their state."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from escnn.group import Representation
from torch import Tensor, nn

from ..deprecation import former_where
from ..errors import DataError
from ..symmetry.kernels.pathway import Pathway
from .construction import EscnnConstruction
from .escnn_surface import EscnnSurface
from .evidence_record import Recorded
from .expanded_convolution import ExpandedConvolution
from .gates import Gated
from .strict_state import VERSION, read_strict_state

__all__ = ["SteerableConvolution"]


class SteerableConvolution(ExpandedConvolution, Gated, Recorded, EscnnSurface, EscnnConstruction):
    """A convolution whose kernel is a sum of pathways.

    A layer is made of two halves: what its kernel is a sum of (a subclass with ``_build``), and how it convolves (one
    of :mod:`escnn_relax.nn.geometry`).

    Attributes:
        pathways: the summands, the equivariant one first.
        empty_pathways: those that have no kernel of their own between these field types.
        kernel: expands coefficients, given by pathway.
        weights: the coefficients of each pathway, by its name.
        bias, bias_expansion: coefficients of the bias, or ``None``, and the constants that they are of, in columns.
        log_precision, effective_dimension: see :class:`~escnn_relax.nn.evidence_record.Recorded`.
    """

    kernel: Any
    pathways: tuple[Pathway, ...]
    empty_pathways: tuple[Pathway, ...]
    bias: nn.Parameter | None
    bias_expansion: Any

    _version = VERSION
    _geometry: tuple[str, ...] = ("kernel_size", "stride", "padding", "dilation", "groups")

    @property
    @abstractmethod
    def breaking_energy(self) -> float:
        """Share of the kernel's energy that breaks the symmetry (fraction)."""

    def _kernel_fields(self) -> tuple[Sequence[Representation], Sequence[Representation]]:
        """Representations of the fields between which the kernel maps: one group's input to all the output."""
        return self.in_type.representations[: len(self.in_type) // self.groups], self.out_type.representations

    def _as_filter(self, kernel: Tensor) -> Tensor:
        return kernel.contiguous().view(*kernel.shape[:2], *(self.kernel_size,) * self.d)

    def pathway_weights(self) -> dict[str, tuple[str, ...]]:
        """The name of each pathway's weights."""
        return {p.name: (f"weights.{p.name}",) for p in self.pathways}

    def breaking_weights(self) -> tuple[str, ...]:
        """The names of the weights that break the symmetry."""
        return tuple(f"weights.{p.name}" for p in self.pathways if p.breaks)

    def expand_parameters(self) -> tuple[Tensor, Tensor | None]:
        """The kernel, in the shape that torch's own layer of this kind has it, and the bias ``(out channels,)``."""
        kernel = self.kernel(self.open_weights())
        return self._as_filter(kernel), None if self.bias is None else self.bias_expansion @ self.bias

    def pathway_kernel(self, name: str) -> Tensor:
        """The part of the kernel that one pathway contributes, in the shape of the whole kernel."""
        return self._as_filter(self.kernel({name: self.weights[name]}))

    @former_where
    def energies(self) -> dict[str, float]:
        r"""Share of the kernel's energy in each pathway, :math:`|W_p|^2 / \sum_q |W_q|^2` (fractions that sum to 1).

        Raises:
            DataError: NaN or infinite weights.
        """
        with torch.no_grad():
            squares = {p.name: float(self.pathway_kernel(p.name).double().square().sum()) for p in self.pathways}
        for name, square in squares.items():
            if not math.isfinite(square):
                raise DataError(
                    type(self),
                    f"NaN or infinite weights in the pathway {name!r}",
                    remedy="go back to a checkpoint with finite weights",
                )
        total = sum(squares.values())
        return {name: square / total if total > 0 else 0.0 for name, square in squares.items()}

    def _expanded(self) -> tuple[Tensor, Tensor | None]:
        """Expanded parameters; in eval mode without gradients kept until a weight has another value.

        Values are compared, not versions, so that no way of writing to a weight leaves a stale kernel behind; of the
        kernels, which are constants and can be large, identities and versions. Nothing is kept of what
        ``functional_call`` puts in the place of the parameters, which ``vmap`` may have batched, nor of the lower
        precision that autocast expands to.
        """
        parameters = list(self.parameters())
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.expand_parameters()
        if not all(isinstance(p, nn.Parameter) for p in parameters):
            return self.expand_parameters()
        current = parameters + ([] if self.bias is None else [self.bias_expansion])
        constants = [*self.kernel.buffers()]
        versions = [None if t.is_inference() else t._version for t in constants]
        if self._cache is not None:
            values, buffers, before, expanded = self._cache
            if (
                versions == before
                and all(a is b for a, b in zip(constants, buffers))
                and all(
                    a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in zip(current, values)
                )
            ):
                return expanded
        expanded = self.expand_parameters()
        if expanded[0].dtype == parameters[0].dtype:
            self._cache = ([p.detach().clone() for p in current], constants, versions, expanded)
        return expanded

    def extra_repr(self) -> str:
        names = ", ".join(f"{p.name}: {self.kernel.dimensions[p.name]}" for p in self.pathways)
        text = f"{self.in_type} -> {self.out_type}"
        defaults = {"kernel_size": 0, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"}
        for name, default in defaults.items():
            if getattr(self, name, default) != default:
                text += f", {name}={getattr(self, name)}"
        return f"{text}{'' if self.bias is not None else ', bias=False'}, pathways=({names})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None, "_expansion": None, "_silent": {}}

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take what a relaxed layer wrote, or what the escnn layer did: then residual weights become zero."""
        written = local_metadata.get("version") or 0
        if written > VERSION and f"{prefix}weights" not in state_dict:
            error_msgs.append(
                f"{prefix or 'layer'}: written by a later escnn_relax (layout {written}, known: {VERSION}); update it"
            )
        problem = read_strict_state(self, state_dict, prefix, missing_keys)
        if problem is not None:
            error_msgs.append(problem)
        self._expansion = None
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
