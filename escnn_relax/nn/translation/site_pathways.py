r"""Linear maps between whole signals that need not be stationary: dense, and factored over the sites.

With regular fields :math:`\phi_{i,r}` (input field i, orbit r of sites; :mod:`escnn_relax.symmetry.grid.sites`), both
made equivariant under a group by weights :math:`w(g^{-1} g')` between them:

.. math::
    \text{dense:} \quad y_{o,r'} = \sum_{i,r} w_{o,r',i,r} * \phi_{i,r} + b_{o,r'}

.. math::
    \text{factored:} \quad h_{i,o} = b_o + \sum_r u_{i,o,r} * \phi_{i,r}, \qquad
    y_{o,r'} = b_{r'} + \sum_i v_{o,r',i} * h_{i,o}

Of the trivial group, with all channels scalars, the second is the factored layer of van der Ouderaa, Immer, van der
Wilk (NeurIPS 2023): C C'(S + S') weights instead of C C' S S'. Its weights are two grouped linear layers, u with one
group for each input field and v with one for each output field, so that their Kronecker factors have the size of one
group and nothing block-diagonal is ever formed: each group has an output factor of its own, where the published factors
share one, summed over the groups, among all of them. With anchors (``sparse``), S and S' become the numbers of anchors,
and :math:`b_{r'}` is left out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from escnn.gspaces import GSpace
from escnn.nn import FieldType
from torch import Tensor, nn

from ...errors import ArgumentError, FieldTypeError, SubgroupError
from ...symmetry.groups.subgroup import Subgroup, subgroup
from ..field_types import check_types
from .anchors import Anchors
from .grouped import GroupedLinear
from .site_fields import SiteFields

__all__ = ["SitePathway", "DensePathway", "FactoredPathway"]


class SitePathway(nn.Module):
    """A map from ``(N, channels, *in_shape)`` to ``(N, channels, *out_shape)`` that need not commute with translations.

    Args:
        in_type, out_type: field types.
        in_shape, out_shape: of the grids.
        kept: the group under which the pathway is equivariant about the centres of the grids; the trivial one makes all
            channels scalars.
        bias: whether there are biases.
        fraction: anchors for each pixel (fraction); ``None`` for no anchors.
        omega, learn_omega: inverse length scale of the interpolation (1 / pixels), and whether it is a parameter, see
            :class:`~escnn_relax.nn.translation.anchors.Anchors`.
        seed: of the anchors.
        noise: of the interpolation, see :class:`~escnn_relax.nn.translation.anchors.Anchors`.
        where: the name of the layer, for errors and warnings; the class by default.

    New pathways put out zeros, so that adding one changes nothing. Without anchors a pathway works in half precision as
    any linear layer does; with anchors it needs float32, float64 or autocast.

    Raises:
        ArgumentError: shapes that are none of the G-space's grids, anchors that do not fit, an input of another spatial
            size, a layer with anchors in half precision.
        FieldTypeError: field types of different G-spaces, an input with another number of channels.
        SubgroupError: a continuous subgroup, one of another G-space, or one that does not permute the pixels.
    """

    def __init__(
        self,
        in_type: FieldType,
        out_type: FieldType,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        kept: Any,
        *,
        bias: bool = True,
        fraction: float | None = None,
        omega: float = 1.0,
        learn_omega: bool = False,
        seed: int = 0,
        noise: float = 0.01,
        where: str = "",
    ) -> None:
        super().__init__()
        self.where = where or type(self).__name__
        check_types(in_type, out_type, GSpace, 1, self.where)
        kept = _kept(kept, in_type.gspace, self.where)
        self.in_type, self.out_type, self.kept = in_type, out_type, kept
        self.in_shape, self.out_shape = (_shape(s, in_type.gspace, self.where) for s in (in_shape, out_shape))
        sides = []
        for offset, (fields, shape) in enumerate(((in_type, self.in_shape), (out_type, self.out_shape))):
            anchors = None
            if fraction is not None:
                anchors = Anchors(shape, kept, fraction, omega, learn_omega, 2 * seed + offset, self.where, noise)
            sides.append(SiteFields(None if kept.order == 1 else fields, fields.size, shape, kept, anchors))
        self.source, self.target = sides
        self._build(bias)
        self.reset_parameters()

    @abstractmethod
    def _build(self, bias: bool) -> None:
        """Make the linear maps."""

    @abstractmethod
    def reset_parameters(self, silent: bool = True) -> None:
        """Random weights; ``silent`` ones put out zeros."""

    @abstractmethod
    def energy(self) -> float:
        """Squared Frobenius norm of the whole linear map, biases aside."""

    def check(self, input: Tensor) -> None:
        """Raise ``ArgumentError`` for another spatial size than ``in_shape``, ``FieldTypeError`` for what is no tensor
        or has another number of channels."""
        if not isinstance(input, Tensor):
            expected = f"a tensor of shape (N, {self.in_type.size}, {', '.join(map(str, self.in_shape))})"
            remedy = "pass the .tensor of a GeometricTensor"
            raise FieldTypeError(self.where, expected=expected, got=type(input).__name__, remedy=remedy)
        if tuple(input.shape[2:]) != self.in_shape:
            raise ArgumentError(
                self.where,
                "inputs of another spatial size than the pathway was built for",
                expected=self.in_shape,
                got=tuple(input.shape[2:]),
                remedy="resize the inputs, or build the pathway with an example of this size",
            )
        if input.shape[1] != self.in_type.size:
            remedy = "pass a tensor of its in_type"
            raise FieldTypeError(
                self.where,
                expected=f"{self.in_type.size} channels of {self.in_type}",
                got=input.shape[1],
                remedy=remedy,
            )


def _uniform(shape: Sequence[int], summed: int) -> Tensor:
    """Random numbers with which a sum of so many terms keeps the variance."""
    bound = (3 / summed) ** 0.5
    return torch.empty(tuple(shape)).uniform_(-bound, bound)


def _shape(shape: Sequence[int], space: GSpace, where: str) -> tuple[int, ...]:
    """A shape as whole numbers, one for each axis of the G-space's grids."""
    found = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    if len(found) != space.dimensionality or not all(isinstance(n, Integral) and n > 0 for n in found):
        remedy = "pass the height and width in pixels, for volumes the depth first"
        raise ArgumentError(
            where, expected=f"a shape of {space.dimensionality} positive whole numbers", got=shape, remedy=remedy
        )
    return tuple(map(int, found))


def _kept(kept: Any, space: GSpace, where: str) -> Subgroup:
    found = subgroup(space, kept, where)
    if found.order < 0:
        raise SubgroupError(
            where, expected="a finite subgroup", got=found.name, remedy="only finite groups permute pixels"
        )
    return found


class DensePathway(SitePathway):
    """Every site to every site; see :class:`SitePathway` for the arguments.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> space = gspaces.rot2dOnR2(4)
    >>> one = enn.FieldType(space, [space.trivial_repr])
    >>> [DensePathway(one, one, (4, 4), (2, 2), subgroup(space, n)).linear.weight.numel() for n in (1, 4)]
    [64, 16]
    """

    def _build(self, bias: bool) -> None:
        inputs, outputs = (sum(c * w for c, w in zip(s.counts, s.widths)) for s in (self.source, self.target))
        index = torch.arange(outputs).unsqueeze(0) if bias else None
        self.linear = GroupedLinear(1, inputs, outputs, self.source.sites.table, index)

    def reset_parameters(self, silent: bool = True) -> None:
        self.linear.reset_parameters(gain=0.0 if silent else 1.0)

    def forward(self, input: Tensor) -> Tensor:
        """See the module's first lines; errors as of :class:`SitePathway`."""
        self.check(input)
        regular = torch.cat([part.flatten(1) for part in self.source.read(input)], dim=1)
        order, target = self.linear.order, self.target
        sizes = [c * w * order for c, w in zip(target.counts, target.widths)]
        parts = self.linear(regular).split(sizes, dim=1)
        return target.write([p.view(len(p), c, w, order) for p, c, w in zip(parts, target.counts, target.widths)])

    def energy(self) -> float:
        with torch.no_grad():
            matrix, order, total = self.linear.matrices()[0], self.linear.order, 0.0
            columns = [c * w * order for c, w in zip(self.source.counts, self.source.widths)]
            rows = [c * w * order for c, w in zip(self.target.counts, self.target.widths)]
            for a, across in enumerate(matrix.split(columns, dim=1)):
                rows_of = across.view(len(across), self.source.counts[a], self.source.widths[a], order)
                read = self.source.spread(a, rows_of).flatten(1)  # (out D, fields * size * S)
                for b, part in enumerate(read.split(rows, dim=0)):
                    columns_of = part.T.reshape(-1, self.target.counts[b], self.target.widths[b], order)
                    total += float(self.target.spread(b, columns_of).double().square().sum())
        return total


class FactoredPathway(SitePathway):
    """Site by site into one hidden field for each pair of an input and an output field, and from there to all sites;
    see :class:`SitePathway` for the arguments.

    >>> from escnn import gspaces, nn as enn
    >>> from escnn_relax.symmetry.groups.lattice import subgroup
    >>> space = gspaces.rot2dOnR2(4)
    >>> three, two = (enn.FieldType(space, n * [space.trivial_repr]) for n in (3, 2))
    >>> pathway = FactoredPathway(three, two, (4, 4), (4, 4), subgroup(space, 1))
    >>> sum(p.numel() for p in pathway.parameters()) == 3 * 2 * (16 + 16) + 2 + 16
    True
    """

    into: Any  # ModuleLists of GroupedLinear
    onto: Any

    def _build(self, bias: bool) -> None:
        table, inputs, outputs = self.source.sites.table, sum(self.source.counts), sum(self.target.counts)
        self.into, self.onto = nn.ModuleList(), nn.ModuleList()
        for count, width in zip(self.source.counts, self.source.widths):
            index = torch.arange(outputs).expand(count, -1) if bias else None
            self.into.append(GroupedLinear(count, width, outputs, table, index))
        for count, width in zip(self.target.counts, self.target.widths):
            # a bias for each site; anchors have none, as published
            index = torch.arange(width).expand(count, -1) if bias and self.target.anchors is None else None
            self.onto.append(GroupedLinear(count, inputs, width, table, index))

    def reset_parameters(self, silent: bool = True, fitted: bool = False) -> None:
        r"""Random weights; ``silent`` ones put out zeros.

        Args:
            fitted: at anchors, start with the values that come nearest, by least squares, to the weights that each site
                would start with, as van der Ouderaa et al. (2023) do: uniform within :math:`\pm\sqrt{3/(sS)}` for u, of
                fields of s channels, and :math:`\pm\sqrt{3/(C |K|)}` for v, of C input fields and a group K that is
                kept. Without anchors it changes nothing.
        """
        for linear in self.into:
            linear.reset_parameters()
        for linear in self.onto:
            linear.reset_parameters(gain=0.0 if silent else 1.0)
        with torch.no_grad():
            if fitted and self.source.anchors is not None:
                for kind, linear in enumerate(
                    self.into
                ):  # what reads is the kernel of one element, the others' are turned
                    size, shape = self.source.turned[kind].size, (linear.groups, linear.outputs)
                    drawn = _uniform((*shape, size, self.source.pixels), size * self.source.pixels).to(linear.weight)
                    linear.weight.copy_(self.source.fit(kind, drawn))
            if fitted and not silent and self.target.anchors is not None:
                for kind, linear in enumerate(self.onto):
                    size, shape = self.target.turned[kind].size, (linear.groups, linear.inputs)
                    drawn = _uniform((*shape, size, self.target.pixels), linear.inputs * linear.order).to(linear.weight)
                    columns = self.target.fit(kind, drawn).transpose(1, 2)  # what is written by the first element
                    linear.weight[..., linear.table[:, 0]] = columns

    def forward(self, input: Tensor) -> Tensor:
        """See the module's first lines; errors as of :class:`SitePathway`."""
        self.check(input)
        order, count = self.into[0].order, len(input)
        parts = [
            linear(part.flatten(1)).view(count, linear.groups, linear.outputs, order)
            for linear, part in zip(self.into, self.source.read(input))
        ]
        hidden = torch.cat(parts, dim=1).transpose(1, 2)  # (N, output fields, input fields, order)
        parts, start = [], 0
        for linear in self.onto:
            own = hidden[:, start : start + linear.groups].flatten(1)
            parts.append(linear(own).view(count, linear.groups, linear.outputs, order))
            start += linear.groups
        return self.target.write(parts)

    def energy(self) -> float:
        with torch.no_grad():
            order = self.into[0].order
            read, written = [], []
            for a, linear in enumerate(self.into):
                rows = linear.matrices().unflatten(2, (1, linear.inputs, order)).flatten(0, 1)  # (I O n, 1, width, n)
                signal = self.source.spread(a, rows).flatten(1).view(linear.groups, linear.outputs, order, -1)
                read.append(signal @ signal.transpose(2, 3))  # (I, O, n, n)
            for b, linear in enumerate(self.onto):
                columns = linear.matrices().transpose(1, 2).unflatten(2, (1, linear.outputs, order)).flatten(0, 1)
                signal = self.target.spread(b, columns).flatten(1).view(linear.groups, linear.inputs, order, -1)
                written.append(signal @ signal.transpose(2, 3))  # (O, I, n, n)
            return float((torch.cat(read).transpose(0, 1).double() * torch.cat(written).double()).sum())
