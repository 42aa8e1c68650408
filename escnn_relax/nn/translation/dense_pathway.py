r"""Every site to every site.

With regular fields :math:`\phi_{i,r}` (input field i, orbit r of sites; :mod:`escnn_relax.symmetry.grid.sites`), both
made equivariant under a group by weights :math:`w(g^{-1} g')` between them:

.. math:: y_{o,r'} = \sum_{i,r} w_{o,r',i,r} * \phi_{i,r} + b_{o,r'}
"""

from __future__ import annotations

import torch
from torch import Tensor

from .grouped import GroupedLinear
from .site_pathway import SitePathway

__all__ = ["DensePathway"]


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

    def reset_parameters(self, silent: bool = True, fitted: bool = False) -> None:
        self.linear.reset_parameters(gain=0.0 if silent else 1.0)

    def forward(self, input: Tensor) -> Tensor:
        """See the module's first lines; errors as of :class:`SitePathway`."""
        self.check(input)
        regular = torch.cat([field.flatten(1) for field in self.source.read(input)], dim=1)
        order, target = self.linear.order, self.target
        sizes = [c * w * order for c, w in zip(target.counts, target.widths)]
        fields = self.linear(regular).split(sizes, dim=1)
        return target.write([p.view(len(p), c, w, order) for p, c, w in zip(fields, target.counts, target.widths)])

    def energy(self) -> float:
        with torch.no_grad():
            matrix, order, total = self.linear.matrices()[0], self.linear.order, 0.0
            columns = [c * w * order for c, w in zip(self.source.counts, self.source.widths)]
            rows = [c * w * order for c, w in zip(self.target.counts, self.target.widths)]
            for a, across in enumerate(matrix.split(columns, dim=1)):
                field_rows = across.view(len(across), self.source.counts[a], self.source.widths[a], order)
                read = self.source.spread(a, field_rows).flatten(1)  # (out D, fields * size * S)
                for b, kind_columns in enumerate(read.split(rows, dim=0)):
                    field_columns = kind_columns.T.reshape(-1, self.target.counts[b], self.target.widths[b], order)
                    total += float(self.target.spread(b, field_columns).double().square().sum())
        return total
