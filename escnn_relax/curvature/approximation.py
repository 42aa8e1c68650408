"""What an approximation of the curvature is: how a layer's weights are summed over the data, and what that ends in.

A new one is one class, which users pass as ``curvature=``.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..deprecation import former_method
from ..errors import CurvatureError
from .factors import Factor
from .layers.extraction import Use
from .layers.linear_map import LinearMap, WeightBlock
from .output_hessian import OutputHessian
from .sums.moments import at_least_single

__all__ = ["Approximation", "Batch"]

Kind = TypeVar("Kind", bound="Approximation")


class Batch:
    """What a layer read in one minibatch, and, column by column, what is back-propagated to it.

    A layer that is used twice in a pass just has more places.

    Args:
        counts: how often each sample counts, ``(N,)``; each once where there is none.
        total: how many samples the pass will read, if that is known, and if rows of some of them are enough.
    """

    def __init__(
        self, layer: LinearMap, inputs: Sequence[Tensor], counts: Tensor | None = None, total: int | None = None
    ) -> None:
        self.layer, self.inputs = layer, tuple(layer.prepare(at_least_single(x)) for x in inputs)
        self.counts, self.total = counts, total

    @cached_property
    def patches(self) -> Tensor:
        """Patches of all uses, shape ``(N, groups, C S, places)``."""
        return _join([self.layer.patches(x) for x in self.inputs])

    def gradients(self, uses: Sequence[Use]) -> Tensor:
        """One column at the same places, shape ``(N, groups, out channels / groups, places)``."""
        return _join([at_least_single(self.layer.gradients(use.gradient)) for use in uses])


class Approximation(ABC):
    """Takes a layer's inputs and output gradients batch by batch; ends in factors for its weights.

    What users pass is a prototype: :meth:`start` makes a copy of it with empty sums for the weights of one layer. So
    options are given to ``__init__``, and the sums are made in :meth:`prepare`. :mod:`.conventions` has the symbols.
    Biases are summed beside, exactly.

    Attributes:
        name: how it is called, in settings, messages and checkpoints; the class's name by default.
        separable: whether the block of the sum over outputs is the sum of theirs; else outputs have no noise of their
            own.
        differentiable: whether factors have graphs to what is inside the network, and no second pass.
        passes: how many passes over the data it takes, see :meth:`second_pass`.
        few_columns: whether ``samples="auto"`` draws one column for each sample instead of taking one for each output.
        reduce: whether the columns of a sample are summed over its places, so that its bias is exact in any convention.
        layer, layer_name, parameters, blocks: of a started one, the linear map, the names, and the weight blocks of
            these parameters.

    >>> from torch import nn
    >>> from escnn_relax import Evidence
    >>> from escnn_relax.curvature.sums.contraction import pull_back
    >>> from escnn_relax.curvature.factors import DenseFactor
    >>> class Isotropic(Approximation):
    ...     '''The mean of the diagonal in every direction.'''
    ...     def prepare(self):
    ...         self.traces = {block.parameter: 0.0 for block in self.blocks}
    ...     def add(self, batch, gradients):
    ...         kernels = gradients @ batch.patches.transpose(-1, -2)  # (N, groups, channels, C S)
    ...         for block in self.blocks:
    ...             self.traces[block.parameter] += float(pull_back(kernels, block).square().sum())
    ...     def factors(self):
    ...         sizes = self.layer.parameters
    ...         means = {name: trace / sizes[name] for name, trace in self.traces.items()}
    ...         return {n: (DenseFactor(n, mean * torch.eye(sizes[n]).double()),) for n, mean in means.items()}
    >>> data = [(torch.randn(8, 3), torch.randint(2, (8,)))]
    >>> evidence = Evidence(nn.Sequential(nn.Linear(3, 2)), curvature=Isotropic(), relaxed_only=False)
    >>> _ = evidence.refresh(data)
    >>> len(set(evidence.eigenvalues["0.weight"].tolist()))
    1
    """

    name: str = ""
    separable = True
    differentiable = True
    passes = 1
    few_columns = False
    reduce = False

    layer: LinearMap
    layer_name: str
    parameters: tuple[str, ...]
    blocks: tuple[WeightBlock, ...]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def start(self: Kind, layer_name: str, layer: LinearMap, parameters: Sequence[str]) -> Kind:
        """One like this with empty sums, for these parameters of a layer, by their names within it."""
        started = copy.deepcopy(self)  # no two layers share what an ``__init__`` may have made
        started.layer_name, started.layer, started.parameters = layer_name, layer, tuple(parameters)
        started.blocks = tuple(block for block in layer.blocks if block.parameter in parameters)
        started.prepare()
        return started

    @abstractmethod
    def prepare(self) -> None:
        """Make the empty sums."""

    def read(self, batch: Batch) -> None:
        """A new minibatch."""

    @abstractmethod
    def add(self, batch: Batch, gradients: Tensor) -> None:
        """One column of the same minibatch, ``(N, groups, out channels / groups, places)``."""

    def add_hessian(self, batch: Batch, hessian: OutputHessian) -> bool:
        """Instead of all columns of a minibatch, the loss Hessian that they are a root of, where the layer's outputs
        are the network's. Returns whether it was added; if not, as by default, the columns come."""
        return False

    @abstractmethod
    def factors(self) -> dict[str, tuple[Factor, ...]]:
        """Factors by parameter name within the layer."""

    def second_pass(self) -> Approximation | None:
        """A started one that needs the same data once more, and whose factors count instead of these; ``None`` for
        most."""
        return None

    def follow(self, leader: Any, batch: Batch) -> None:
        """As :meth:`read`, where a ``leader`` of the same kind and layer has read the batch, whose sums over what is
        read may be shared: they are those of another output of the network. By default nothing is shared."""
        self.read(batch)

    def sums(self) -> Iterable[Any]:
        """All that is summed over the data; each has a ``gather()`` that adds up the sums of all processes."""
        return (self,)

    def gather(self) -> None:
        """Add up the sums of all processes; called only where there are several."""
        problem = f"the sums of several processes are not added up under {self.name!r}"
        raise CurvatureError(
            self.layer_name, problem, remedy="define its gather() by escnn_relax.curvature.distributed.sum_processes"
        )

    def rehearse(self) -> dict[str, tuple[Factor, ...]]:
        """:meth:`factors` of the sums so far, which go on; of the size that they will have in the end."""
        return self.factors()

    def growth(self) -> tuple[int, int]:
        """Bytes by which the sums may still grow, and bytes more that growing and ending takes for a while."""
        return 0, 0

    def row_count(self) -> tuple[float, int]:
        """Number of rows so far, and of the directions that they have; zeros where it is not rows that are summed."""
        return 0, 0

    def parameter_name(self, parameter: str) -> str:
        """The parameter as error messages call it."""
        return f"{self.layer_name}.{parameter}" if self.layer_name else parameter

    where = former_method("where", "parameter_name")


def _join(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim=-1)
