"""A convolution beside pathways that need not commute with translations."""

from __future__ import annotations

import copy
from typing import Any, Mapping, Sequence

import torch
from escnn.nn import EquivariantModule, GeometricTensor
from torch import Tensor, nn

from ..errors import ArgumentError, FieldTypeError
from .recorded import Recorded
from .relaxed import RelaxedConvolution
from .site_pathways import SitePathway
from .types import check_input

__all__ = ["CONVOLUTION", "RelaxedTranslation"]

#: What the convolution is called among the pathways.
CONVOLUTION = "convolution"


class RelaxedTranslation(Recorded, EquivariantModule):
    r"""A convolution and pathways between whole signals, added up.

    .. math:: y = \mathrm{conv}(x) + \sum_p P_p(x)

    The convolution, any steerable one, commutes with translations (but for its borders and strides) and, as far as it is not
    relaxed, with the group; a pathway commutes with the group that it keeps, about the centre of the grid, and not with
    translations. So translations and the group are relaxed independently.

    Args:
        convolution: from and to fields on a grid.
        in_shape: spatial shape of its inputs.
        pathways: by name; from ``in_shape`` to the shape that the convolution puts out.
        average: divide by the number of summands, as van der Ouderaa et al. (NeurIPS 2023) do.

    Attributes:
        sites: the pathways, by name.
        divisor: what the sum is divided by.
        log_precision, effective_dimension: see :class:`~escnn_relax.nn.recorded.Recorded`.

    Raises:
        ArgumentError: pathways from or to another shape, or none, or one called ``"convolution"``.
        FieldTypeError: a convolution that has no field types.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax.symmetry.subgroups import subgroup
    >>> space = gspaces.rot2dOnR2(4)
    >>> one = enn.FieldType(space, [space.trivial_repr])
    >>> convolution = enn.R2Conv(one, one, 3, padding=1)
    >>> from escnn_relax.nn import FactoredPathway
    >>> free = FactoredPathway(one, one, (6, 6), (6, 6), subgroup(space, 1))
    >>> layer, x = RelaxedTranslation(convolution, (6, 6), {"factored_free": free}), one(torch.randn(2, 1, 6, 6))
    >>> torch.equal(layer(x).tensor, convolution(x).tensor)
    True
    """

    sites: Any  # a ModuleDict of SitePathway

    def __init__(
        self,
        convolution: EquivariantModule,
        in_shape: Sequence[int],
        pathways: Mapping[str, SitePathway],
        average: bool = False,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        if not isinstance(convolution, EquivariantModule):
            raise FieldTypeError(where, expected="a steerable convolution", got=type(convolution).__name__)
        if not pathways or CONVOLUTION in pathways:
            raise ArgumentError(where, expected=f"pathways, none called {CONVOLUTION!r}", got=list(pathways))
        self.in_type, self.out_type, self.space = convolution.in_type, convolution.out_type, convolution.in_type.gspace
        self.in_shape, self.divisor = tuple(in_shape), 1 + len(pathways) if average else 1
        size = (1, self.in_type.size, *self.in_shape)
        self.out_shape = tuple(convolution.evaluate_output_shape(size)[2:])
        for name, pathway in pathways.items():
            if (pathway.in_shape, pathway.out_shape) != (self.in_shape, self.out_shape):
                raise ArgumentError(
                    where,
                    f"the pathway {name!r} is of another spatial size",
                    expected=f"{self.in_shape} to {self.out_shape}",
                    got=f"{pathway.in_shape} to {pathway.out_shape}",
                )
        self.convolution, self.sites = convolution, nn.ModuleDict(pathways)
        self._begin_record(len(self.sites))
        self.to(next(convolution.parameters()))

    def forward(self, input: GeometricTensor) -> GeometricTensor:
        """Raises ``FieldTypeError`` for an input of another type, ``ArgumentError`` for one of another spatial size."""
        check_input(input, self.in_type, type(self).__name__)
        total = self.convolution(input).tensor
        for pathway in self.sites.values():
            total = total + pathway(input.tensor)
        total = total / self.divisor if self.divisor != 1 else total
        return GeometricTensor(total, self.out_type, coords=None)

    def pathway_weights(self) -> dict[str, tuple[str, ...]]:
        """The names of each pathway's weights, biases aside."""
        return {
            name: tuple(f"sites.{name}.{n}" for n, _ in pathway.named_parameters() if n.endswith("weight"))
            for name, pathway in self.sites.items()
        }

    def breaking_weights(self) -> tuple[str, ...]:
        """The names of all these: each pathway breaks translations."""
        return tuple(name for names in self.pathway_weights().values() for name in names)

    def energies(self) -> dict[str, float]:
        """Share of the energy of the whole linear map in each summand, ``"convolution"`` first (fractions that sum to 1).

        The energy is the squared Frobenius norm. That of the convolution is counted as if no place lay at the border.
        """
        places = torch.Size(self.out_shape).numel()
        squares = {CONVOLUTION: places * float(_kernel(self.convolution).double().square().sum())}
        squares.update((name, pathway.energy()) for name, pathway in self.sites.items())
        total = sum(squares.values())
        return {name: square / total if total > 0 else 0.0 for name, square in squares.items()}

    @property
    def breaking_energy(self) -> float:
        """The share that does not commute with translations (fraction)."""
        return 1 - self.energies()[CONVOLUTION]

    def evaluate_output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the output for an input ``(batch, channels, *in_shape)``."""
        if tuple(input_shape[1:]) != (self.in_type.size, *self.in_shape):
            expected = f"a shape (batch, {self.in_type.size}, {', '.join(map(str, self.in_shape))})"
            raise ArgumentError(type(self).__name__, expected=expected, got=tuple(input_shape))
        return (input_shape[0], self.out_type.size, *self.out_shape)

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}, divided by {self.divisor}"

    def reduced(self, convolution: EquivariantModule, kept: Sequence[str]) -> EquivariantModule:
        """A layer with another convolution, to be used up, and only some of the pathways; no more than the convolution if
        there are none. Nothing else changes: what an average divides by stays."""
        if kept:
            pathways = {name: copy.deepcopy(self.sites[name]) for name in kept}
            layer = RelaxedTranslation(convolution, self.in_shape, pathways)
            layer.divisor = self.divisor
            chosen = [index for index, name in enumerate(self.sites) if name in kept]
            layer.log_precision.copy_(self.log_precision[chosen])
            layer.effective_dimension.copy_(self.effective_dimension[chosen])
            return layer.train(self.training)
        with torch.no_grad():
            for parameter in convolution.parameters():  # the kernel and the bias are linear in them
                parameter.div_(self.divisor)
        return convolution.train(self.training)

    def export(self) -> Any:
        """Not possible in one layer of torch; ``ArgumentError`` says what to do."""
        raise ArgumentError(
            type(self).__name__,
            "no layer of torch adds a convolution and maps between whole signals",
            remedy="harden the model first: a layer whose pathways died becomes a plain convolution",
        )


def _kernel(convolution: EquivariantModule) -> Tensor:
    with torch.no_grad():
        if isinstance(convolution, RelaxedConvolution):
            return convolution.expand_parameters()[0]
        training = convolution.training
        try:  # in eval mode escnn's layers keep their filter
            convolution.train()
            return convolution.expand_parameters()[0]
        finally:
            convolution.train(training)
