"""A convolution beside pathways that need not commute with translations."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from escnn.nn import EquivariantModule, GeometricTensor
from torch import Tensor, nn

from ...deprecation import former_keyword, former_where
from ...errors import ArgumentError, DataError, FieldTypeError, RelaxError, layer_name, naming
from ...symmetry.groups.subgroup import Subgroup
from ...symmetry.kernels.pathway import SWITCHED_OFF
from ..affine import add_constant, constant_part, divide, expanded, linear_parameters
from ..evidence_record import DETERMINED, Recorded, switched_off
from ..field_types import check_input
from .signal_pathway import SignalPathway

__all__ = ["CONVOLUTION", "RelaxedTranslation"]

#: What the convolution is called among the pathways.
CONVOLUTION = "convolution"


class RelaxedTranslation(Recorded, EquivariantModule):
    r"""A convolution and pathways between whole signals, added up.

    .. math:: y = \mathrm{conv}(x) + \sum_p P_p(x)

    The convolution, any steerable one, commutes with translations (but for its borders and strides) and, as far as it
    is not relaxed, with the group; a pathway commutes with the group that it keeps, about the centre of the grid, and
    not with translations. So translations and the group are relaxed independently.

    Args:
        convolution: from and to fields on a grid.
        in_shape: spatial shape of its inputs.
        pathways: by name; from ``in_shape`` to the shape that the convolution puts out.
        average: divide by the number of summands, as van der Ouderaa et al. (NeurIPS 2023) do.

    Attributes:
        sites: the pathways, by name.
        divisor: what the sum is divided by.
        where: the layer's name in its model, for errors, if :func:`~escnn_relax.relax_translation` made it.
        log_precision, effective_dimension: of the convolution and then of each pathway, see
            :class:`~escnn_relax.nn.evidence_record.Recorded`. The convolution's precision is the smallest of its
            weights', since any of them keeps it alive.

    Raises:
        ArgumentError: pathways from or to another shape, or none, or one called ``"convolution"``.
        FieldTypeError: a convolution that has no field types, pathways between other ones.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> space = gspaces.rot2dOnR2(4)
    >>> one = enn.FieldType(space, [space.trivial_repr])
    >>> convolution = enn.R2Conv(one, one, 3, padding=1)
    >>> from escnn_relax.nn import FactoredPathway
    >>> free = FactoredPathway(one, one, (6, 6), (6, 6), subgroup(space, 1))
    >>> layer, x = RelaxedTranslation(convolution, (6, 6), {"factored_free": free}), one(torch.randn(2, 1, 6, 6))
    >>> torch.equal(layer(x).tensor, convolution(x).tensor)
    True
    """

    sites: Any  # a ModuleDict of SignalPathway

    def __init__(
        self,
        convolution: EquivariantModule,
        in_shape: Sequence[int],
        pathways: Mapping[str, SignalPathway],
        average: bool = False,
    ) -> None:
        super().__init__()
        self.where = ""
        if not isinstance(convolution, EquivariantModule):
            remedy = "pass a convolution of escnn or escnn_relax"
            raise FieldTypeError(
                type(self), expected="a steerable convolution", got=type(convolution).__name__, remedy=remedy
            )
        if not pathways or CONVOLUTION in pathways:
            remedy = "choose another name for the pathway"
            raise ArgumentError(
                type(self), expected=f"pathways, none called {CONVOLUTION!r}", got=list(pathways), remedy=remedy
            )
        self.in_type, self.out_type, self.space = convolution.in_type, convolution.out_type, convolution.in_type.gspace
        self.in_shape, self.divisor = tuple(in_shape), 1 + len(pathways) if average else 1
        size = (1, self.in_type.size, *self.in_shape)
        self.out_shape = tuple(convolution.evaluate_output_shape(size)[2:])
        for name, pathway in pathways.items():
            types = [getattr(pathway, t, type(pathway).__name__) for t in ("in_type", "out_type")]
            if not isinstance(pathway, SignalPathway) or types != [self.in_type, self.out_type]:
                got = " to ".join(map(str, types))
                expected = f"the pathway {name!r} to lead from {self.in_type} to {self.out_type}"
                remedy = "make the pathway with the field types of the convolution"
                raise FieldTypeError(type(self), expected=expected, got=got, remedy=remedy)
            if (pathway.in_shape, pathway.out_shape) != (self.in_shape, self.out_shape):
                raise ArgumentError(
                    type(self),
                    f"the pathway {name!r} is of another spatial size",
                    expected=f"{self.in_shape} to {self.out_shape}",
                    got=f"{pathway.in_shape} to {pathway.out_shape}",
                    remedy="make the pathway for the convolution's sizes",
                )
        self.convolution, self.sites = convolution, nn.ModuleDict(pathways)
        self._begin_record(1 + len(self.sites))
        self.to(next(convolution.parameters()))

    def forward(self, input: GeometricTensor) -> GeometricTensor:
        """Raises ``FieldTypeError`` for an input of another type, ``ArgumentError`` for one of another spatial size."""
        check_input(input, self.in_type, self.where or type(self))
        try:
            for pathway in self.sites.values():
                pathway.check(input.tensor)
            total = self.convolution(input).tensor
            for pathway in self.sites.values():
                total = total + pathway(input.tensor)
        except RelaxError as error:  # as naming does it, in a way that torch.compile reads
            error.name_layer(self.where or type(self))
            raise
        total = total / self.divisor if self.divisor != 1 else total
        return GeometricTensor(total, self.out_type, coords=None)

    def _name(self) -> str:
        """What errors call the layer: the name that whoever asks has for it, or else the one that it was given."""
        return layer_name(self.where or type(self))

    def pathway_weights(self) -> dict[str, tuple[str, ...]]:
        """The names of the convolution's weights and of each pathway's, biases aside."""
        with naming(self._name()):
            inner = linear_parameters(self.convolution)
        weights = {CONVOLUTION: tuple(f"convolution.{n}" for n in inner if not n.endswith("bias"))}
        for name, pathway in self.sites.items():
            names = (n for n, _ in pathway.named_parameters() if n.endswith(("weight", "weights")))
            weights[name] = tuple(f"sites.{name}.{n}" for n in names)
        return weights

    def breaking_weights(self) -> tuple[str, ...]:
        """The names of those weights and biases that break translations, or, of a sparse kernel, the group."""
        return tuple(
            f"sites.{name}.{n}"
            for name, pathway in self.sites.items()
            if pathway.breaks
            for n, _ in pathway.named_parameters()
            if n.endswith(("weight", "weights", "bias"))
        )

    def record(self, log_precision: Mapping[str, float], effective_dimension: Mapping[str, float]) -> None:
        super().record(log_precision, effective_dimension)
        known = [log_precision[n] for n in self.pathway_weights()[CONVOLUTION] if n in log_precision]
        if known:
            self.log_precision[0] = min(known)

    def stationary(self) -> tuple[str, ...]:
        """The summands that commute with translations: the convolution, and pathways that are convolutions
        themselves."""
        return (CONVOLUTION, *(name for name, pathway in self.sites.items() if pathway.stationary))

    @former_where
    def energies(self) -> dict[str, float]:
        r"""Share of the energy of the whole map in each summand, ``"convolution"`` first (fractions that sum to 1).

        The energy of a pathway :math:`x \mapsto W x + c` is :math:`|W|^2 + |c - \bar c|^2`: the squared Frobenius norm
        of its linear part, and the square of its constant but for the part :math:`\bar c` that the convolution's bias
        can say, the same at all places and invariant under the group. So it is the mean square of what the pathway puts
        out for white inputs, that part aside. The energy of the convolution is its kernel's, counted as if no place lay
        at the border; biases that it can say are counted nowhere.

        Raises:
            DataError: NaN or infinite weights.
        """
        places = torch.Size(self.out_shape).numel()
        squares = {CONVOLUTION: places * float(expanded(self.convolution)[0].double().square().sum())}
        for name, pathway in self.sites.items():
            constant = self._constant(pathway).double()
            said = constant_part(self.convolution, constant)
            squares[name] = pathway.energy() + float(
                (constant - said.view(-1, *[1] * len(self.out_shape))).square().sum()
            )
        for name, square in squares.items():
            if not math.isfinite(square):
                raise DataError(
                    self._name(),
                    f"NaN or infinite weights in the pathway {name!r}",
                    remedy="go back to a checkpoint with finite weights",
                )
        total = sum(squares.values())
        return {name: square / total if total > 0 else 0.0 for name, square in squares.items()}

    def _constant(self, pathway: Any) -> Tensor:
        """What a pathway puts out for zeros, shape ``(channels, *out_shape)``."""
        with torch.no_grad():
            output: Tensor = pathway(next(pathway.parameters()).new_zeros(1, self.in_type.size, *self.in_shape))
        return output[0]

    @former_where
    def switched_off(self, energy: float = SWITCHED_OFF, determined: float = DETERMINED) -> tuple[list[str], float]:
        """The pathways beside the convolution that are switched off, and the share of the energy in them (fraction).

        See :func:`~escnn_relax.nn.evidence_record.switched_off` for the arguments, and :meth:`energies` for errors.
        """
        sizes = {
            name: sum(self.get_parameter(w).numel() for w in names) for name, names in self.pathway_weights().items()
        }
        fractions = {name: gamma / sizes[name] for name, gamma in zip(sizes, self.effective_dimension.tolist())}
        del fractions[CONVOLUTION]
        return switched_off(self.energies(), fractions, energy, determined)

    @former_where
    def living(self, energy: float = SWITCHED_OFF, determined: float = DETERMINED) -> dict[str, Subgroup]:
        """The other pathways, each with the group that it keeps."""
        off, _ = self.switched_off(energy, determined)
        return {name: pathway.subgroup for name, pathway in self.sites.items() if name not in off}

    @property
    def breaking_energy(self) -> float:
        """The share that does not commute with translations (fraction)."""
        energies = self.energies()
        return sum(share for name, share in energies.items() if name not in self.stationary())

    def evaluate_output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the output for an input ``(batch, channels, *in_shape)``."""
        if tuple(input_shape[1:]) != (self.in_type.size, *self.in_shape):
            expected = f"a shape (batch, {self.in_type.size}, {', '.join(map(str, self.in_shape))})"
            remedy = "pass inputs of the size that the layer was made for"
            raise ArgumentError(type(self), expected=expected, got=tuple(input_shape), remedy=remedy)
        return (input_shape[0], self.out_type.size, *self.out_shape)

    def extra_repr(self) -> str:
        return f"{self.in_shape} -> {self.out_shape}, divided by {self.divisor}"

    @former_keyword("kept", "names")
    def reduced(self, convolution: EquivariantModule, names: Sequence[str]) -> EquivariantModule:
        """A layer with another convolution, to be used up, and only some of the pathways; no more than the convolution
        if there are none. What its bias can say of the others' constants is added to it, and what an average divides by
        stays."""
        with torch.no_grad():
            for name, pathway in self.sites.items():
                if name not in names:
                    add_constant(convolution, constant_part(convolution, self._constant(pathway)))
            if not names:
                with naming(self._name()):
                    divide(convolution, self.divisor)
                return convolution.train(self.training)
            pathways = {name: copy.deepcopy(self.sites[name]) for name in names}
            layer = RelaxedTranslation(convolution, self.in_shape, pathways)
            layer.divisor, layer.where = self.divisor, self.where
            chosen = [0, *(1 + index for index, name in enumerate(self.sites) if name in names)]
            layer.log_precision.copy_(self.log_precision[chosen])
            layer.effective_dimension.copy_(self.effective_dimension[chosen])
            return layer.train(self.training)

    def export(self) -> Any:
        """Not possible in one layer of torch; ``ArgumentError`` says what to do."""
        raise ArgumentError(
            type(self).__name__,
            "no layer of torch adds a convolution and maps between whole signals",
            remedy="harden the model first: a layer whose pathways died becomes a plain convolution",
        )
