"""What one pass over the data is to find out, and what it found: sums of gradients over groups of samples."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from escnn.nn import FieldType
from torch import Tensor

from .effect import Sizes

__all__ = ["GradientSums", "Plan"]

#: By initialisation, group, layer and pathway, one for each pair of representations.
Features = list[list[dict[str, dict[str, list[Tensor]]]]]


@dataclass(frozen=True)
class Plan:
    """What one pass is to find out.

    Attributes:
        groups: of samples.
        units: what samples belong together, see :class:`~.samples.Grouping`.
        in_type, out_type: where the network does not tell.
        inputs: gradients of a function that knows no targets, and of the strict kernels.
        curvature: at each minibatch.
        turned: gradients of samples that are turned by any element of the group.
    """

    groups: int
    units: Sequence[Hashable] | None = None
    in_type: FieldType | None = None
    out_type: FieldType | None = None
    inputs: bool = False
    curvature: bool = False
    turned: bool = False


@dataclass
class GradientSums:
    """Sums over the samples of each group; indices: initialisation, group, layer, pathway, pair of representations.

    Attributes:
        gradients, unlabelled: features of the loss, and of a function of the outputs alone.
        turned: of the loss of samples turned by random elements, exact on the grid or not; empty where that cannot be
            done.
        curvature: of random columns, whose mean square is the curvature; empty for a loss of the user's.
        strict: of the loss in equivariant kernels, by group, layer, pair; first initialisation only, like the two
            before.
        squares: of the whole kernel gradients, by initialisation and layer, summed over groups.
        sizes, turned_sizes: of the groups.
        curvature_samples: number of samples whose curvature was looked at.
        errors: of the law that gradients follow, by layer; empty where the input's type is not known.
        uneven: strides that leave pixels over on one side, by the name of the module.
        offset: of the images from the middle of the grid (pixels).
    """

    gradients: Features = field(default_factory=list)
    unlabelled: Features = field(default_factory=list)
    turned: Features = field(default_factory=list)
    curvature: Features = field(default_factory=list)
    strict: list[dict[str, list[Tensor]]] = field(default_factory=list)
    squares: list[dict[str, float]] = field(default_factory=list)
    sizes: Sizes = field(default_factory=lambda: Sizes(torch.zeros(0), torch.zeros(0)))
    turned_sizes: Sizes = field(default_factory=lambda: Sizes(torch.zeros(0), torch.zeros(0)))
    curvature_samples: int = 0
    errors: dict[str, float] | None = None
    uneven: dict[str, str] = field(default_factory=dict)
    offset: list[float] | None = None
    num_data: int = 0
    repeated: int = 0
