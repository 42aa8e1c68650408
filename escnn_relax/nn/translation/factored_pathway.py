r"""Linear maps between whole signals that are factored over the sites.

With regular fields :math:`\phi_{i,r}` (input field i, orbit r of sites; :mod:`escnn_relax.symmetry.grid.sites`), both
made equivariant under a group by weights :math:`w(g^{-1} g')` between them:

.. math::
    h_{i,o} = b_o + \sum_r u_{i,o,r} * \phi_{i,r}, \qquad
    y_{o,r'} = b_{r'} + \sum_i v_{o,r',i} * h_{i,o}

Of the trivial group, with all channels scalars, this is the factored layer of van der Ouderaa, Immer, van der
Wilk (NeurIPS 2023): C C'(S + S') weights instead of C C' S S'. Its weights are two grouped linear layers, u with one
group for each input field and v with one for each output field, so that their Kronecker factors have the size of one
group and nothing block-diagonal is ever formed: each group has an output factor of its own, where the published factors
share one, summed over the groups, among all of them. With anchors (``sparse``), S and S' become the numbers of anchors,
and :math:`b_{r'}` is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .grouped import GroupedLinear
from .site_pathway import SitePathway

__all__ = ["FactoredPathway"]


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
        fields = [
            linear(field.flatten(1)).view(count, linear.groups, linear.outputs, order)
            for linear, field in zip(self.into, self.source.read(input))
        ]
        hidden = torch.cat(fields, dim=1).transpose(1, 2)  # (N, output fields, input fields, order)
        fields, start = [], 0
        for linear in self.onto:
            group = hidden[:, start : start + linear.groups].flatten(1)
            fields.append(linear(group).view(count, linear.groups, linear.outputs, order))
            start += linear.groups
        return self.target.write(fields)

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


def _uniform(shape: Sequence[int], summed: int) -> Tensor:
    """Random numbers with which a sum of so many terms keeps the variance."""
    bound = (3 / summed) ** 0.5
    return torch.empty(tuple(shape)).uniform_(-bound, bound)
