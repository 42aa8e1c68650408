r"""Linear maps between regular fields, several side by side."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...errors import ArgumentError

__all__ = ["GroupedLinear"]


class GroupedLinear(nn.Module):
    r"""Linear maps between fields of the regular representation, one for each group of fields.

    .. math:: y_{s,o}(g) = b_{s,o} + \sum_{i, g'} w_{s,o,i}(g^{-1} g')\, x_{s,i}(g')

    for each group s of fields, with the inputs i and the outputs o of that group. Of the trivial group these are plain
    linear maps side by side, without the block-diagonal matrix of them.

    Args:
        groups: number of groups of fields.
        inputs, outputs: regular fields of each group, before and after.
        table: position of :math:`g^{-1} g'`, shape ``(order, order)``; ``None`` for the trivial group.
        bias: for each output field of each group the position of its bias, shape ``(groups, outputs)``; ``None`` for no
            bias.

    Attributes:
        weight: shape ``(groups, outputs, inputs, order)``.
        bias: shape ``(number of biases,)``.

    >>> GroupedLinear(3, 4, 2)(torch.zeros(5, 12)).shape
    torch.Size([5, 6])
    """

    table: Tensor
    bias_index: Tensor

    def __init__(
        self, groups: int, inputs: int, outputs: int, table: Tensor | None = None, bias: Tensor | None = None
    ) -> None:
        super().__init__()
        self.groups, self.inputs, self.outputs = groups, inputs, outputs
        table = torch.zeros(1, 1, dtype=torch.long) if table is None else table.clone()
        self.register_buffer("table", table, persistent=False)
        self.weight = nn.Parameter(torch.empty(groups, outputs, inputs, self.order))
        self.bias = None
        if bias is not None:
            self.bias = nn.Parameter(torch.zeros(int(bias.max()) + 1))
            self.register_buffer("bias_index", bias.clone(), persistent=False)
        self.reset_parameters()

    @property
    def order(self) -> int:
        """Order of the group."""
        return len(self.table)

    def reset_parameters(self, gain: float = 1.0) -> None:
        """Uniform weights that keep the variance, times ``gain``; no bias."""
        bound = gain * math.sqrt(3 / (self.inputs * self.order))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def matrices(self) -> Tensor:
        """The maps, shape ``(groups, outputs * order, inputs * order)``."""
        if self.order == 1:
            return self.weight.squeeze(-1)
        return self.weight[..., self.table].permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)

    def forward(self, input: Tensor) -> Tensor:
        """``(N, groups * inputs * order)`` to ``(N, groups * outputs * order)``; ``ArgumentError`` for another
        shape."""
        size = self.groups * self.inputs * self.order
        if input.dim() != 2 or input.shape[1] != size:
            expected = f"an input of shape (N, {size})"
            remedy = "flatten the sites and fields of each sample"
            raise ArgumentError(type(self), expected=expected, got=tuple(input.shape), remedy=remedy)
        by_group = input.view(len(input), self.groups, self.inputs * self.order).transpose(0, 1)  # (groups, N, ...)
        result = torch.bmm(by_group, self.matrices().transpose(1, 2)).transpose(0, 1)
        if self.bias is not None:
            result = result + self.bias[self.bias_index].repeat_interleave(self.order, dim=1)
        return result.flatten(1)

    def extra_repr(self) -> str:
        fields = f"{self.groups} x ({self.inputs} -> {self.outputs}) fields"
        return f"{fields} of order {self.order}, bias={self.bias is not None}"
