r"""The loss Hessian in the outputs of a network, in a form that grows with their number and not with its square.

Of a softmax it is :math:`\mathrm{diag}(p) - p p^\top`, of likelihoods without a coupling of outputs a diagonal: all are
:math:`\mathrm{diag}(d) - r r^\top`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["OutputHessian"]


@dataclass(frozen=True)
class OutputHessian:
    r""":math:`\mathrm{diag}(d_n) - r_n r_n^\top` for each sample at each place, importance counted.

    Attributes:
        diagonal: d, ``(rows, C)``.
        root: r, ``(rows, C)``; ``None`` for zero.

    >>> hessian = OutputHessian(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, 0.5]]))
    >>> hessian.total
    tensor([[ 0.2500, -0.2500],
            [-0.2500,  0.2500]], dtype=torch.float64)
    """

    diagonal: Tensor
    root: Tensor | None

    @property
    def outputs(self) -> int:
        """C."""
        return self.diagonal.shape[1]

    def diagonal_total(self) -> Tensor:
        """The sum of d over all rows, ``(C,)``, float64."""
        return self.diagonal.to(torch.float64).sum(0)

    @cached_property
    def total(self) -> Tensor:
        """The sum over all rows, ``(C, C)``, float64."""
        whole = torch.diag(self.diagonal_total())
        if self.root is not None:
            wide = self.root.to(torch.float64)
            whole.addmm_(wide.T, wide, alpha=-1)
        return whole
