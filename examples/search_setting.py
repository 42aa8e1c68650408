"""What search_table.py compares: the methods, the network, and how much of everything there is."""

from __future__ import annotations

from collections.abc import Sequence

import escnn_relax  # noqa: E402, F401, I001  # before escnn, which may need what it brings
from escnn import gspaces
from escnn import nn as enn
from torch import Tensor, nn

DATA = ("rotated_mnist", "mnist")
METHODS = {
    "D4": "static D4",
    "C4": "static C4",
    "trivial": "static C1",
    "residual": "residual pathway, no evidence (RPP)",
    "evolve": "EquiNAS_E, accuracy",
    "pareto": "EquiNAS_E, Pareto",
    "evolve-evidence": "evolution by evidence",
    "differentiate": "EquiNAS_D, the mixture, merged",
    "discretised": "EquiNAS_D, one group a layer, retrained",
    "relaxed": "relaxed by evidence",
}
MODES = ("compute", "parameters")
KEY = ("data", "mode", "method", "seed", "size")
#: Methods that find an architecture, which is then trained from scratch at another width.
SEARCHES = ("evolve", "pareto", "evolve-evidence", "discretised")
POOLED = ((5, 1, 2), (5, 1, 1), (5, 1, 2), (5, 1, 1), (5, 1, 1))
STRIDED = ((6, 2, 1), (4, 2, 1), (3, 1, 1), (3, 1, 1))
SOME, MORE = [(None, 4), (None, 1)], [(None, 4), (0, 2), (None, 2), (0, 1), (None, 1)]
#: Fields, layers (kernel size, stride, pooling), training passes of the final network and how many of them are the
#: search's, batch, digits to train, select and test on, generations, survivors, passes before the first refresh of the
#: evidence, digits for its curvature, subgroups of D4 to choose from.
SIZES = {
    "cpu": {
        "fields": 3, "layers": STRIDED, "epochs": 6, "search": 3, "batch": 100, "train": 10000, "select": 2000,
        "test": 10000, "generations": 5, "population": 2, "burn_in": 3, "curvature": 1000, "groups": SOME,
    },
    "gpu": {
        "fields": 6, "layers": POOLED, "epochs": 30, "search": 15, "batch": 64, "train": 10000, "select": 2000,
        "test": 10000, "generations": 14, "population": 4, "burn_in": 5, "curvature": 1000, "groups": MORE,
    },
    "quick": {
        "fields": 2, "layers": STRIDED, "epochs": 2, "search": 1, "batch": 64, "train": 200, "select": 100,
        "test": 200, "generations": 1, "population": 1, "burn_in": 1, "curvature": 100, "groups": SOME,
    },
}  # fmt: skip
INVARIANT = 32


class Network(nn.Module):
    """Steerable convolutions with norms, the last one to invariant fields; every module used once and in order. Strides
    go with even kernels, for which the middle of an even image stays in the middle."""

    def __init__(self, fields: int, layers: Sequence[tuple[int, int, int]]) -> None:
        super().__init__()
        space = gspaces.flipRot2dOnR2(4)
        self.gray, hidden = (
            enn.FieldType(space, [space.trivial_repr]),
            enn.FieldType(space, fields * [space.regular_repr]),
        )
        invariant, parts, before = enn.FieldType(space, INVARIANT * [space.trivial_repr]), [], self.gray
        for index, (kernel, stride, pool) in enumerate(layers, 1):
            after = invariant if index == len(layers) else hidden
            parts += [enn.R2Conv(before, after, kernel, padding=(kernel - stride + 1) // 2, stride=stride, bias=False)]
            parts += [enn.InnerBatchNorm(after), enn.ReLU(after)]
            parts += [enn.PointwiseAvgPool2D(after, pool)] if pool > 1 else []
            before = after
        self.features, self.linear = enn.SequentialModule(*parts), nn.Linear(INVARIANT, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(self.gray(x)).tensor.mean((-2, -1)))
